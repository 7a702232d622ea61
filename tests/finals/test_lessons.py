"""What a teacher has said: when a teacher is too poor for that."""

from __future__ import annotations

import math

import pytest
from datasets import Dataset

from glora_search.finals.lessons import Lesson
from glora_search.training.distillation import SOFT_CLASSES


@pytest.mark.parametrize("column", ["labels", SOFT_CLASSES])
def test_a_teacher_is_poor_by_its_loss_or_without_one(tmp_path, column):
    rows = Dataset.from_dict({column: [0]})
    for loss, poor in ((math.nan, True), (1.25, False), (1.3, column == SOFT_CLASSES), (1.5, True)):
        Lesson(rows, "supernet", 8, 0.5, loss).save(tmp_path / str(loss))
        assert Lesson.load(tmp_path / str(loss)).poor(1.0) == poor
