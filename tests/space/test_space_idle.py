"""Adapted layers that a model never calls."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments, default_data_collator

from glora_search.find.checks import check_rows
from glora_search.scoring import RowMetric
from glora_search.space import SearchSpace
from glora_search.space.idle import called, idle_notes


@pytest.fixture
def model(make_model):
    made = make_model("bert")
    made.unused = torch.nn.Linear(4, 4)
    return made


def test_layers_that_the_model_does_not_call_are_said(model):
    space = SearchSpace.load("glora-ranks").bind(model)
    layers = [layer.name for layer in space.layers]
    with called(model, layers) as found:
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert found == {*layers} - {"unused"}
    (note,) = idle_notes(space, found)
    assert note.startswith(f"1 of {len(layers)} adapted layers, e.g. unused, count in the budget")
    assert idle_notes(space, {*layers}) == []


def test_find_adapter_warns_of_them(model, tmp_path):
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 2, "labels": [0, 1]})
    scoring = RowMetric(lambda logits, labels: logits.argmax(-1) == labels, default_data_collator)
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.warns(UserWarning, match=r"1 of \d+ adapted layers, e\.g\. unused"):
        check_rows(model, SearchSpace.load("glora-ranks").bind(model), rows, scoring, args, taught=False)
