"""What is noted of a race."""

from __future__ import annotations

import math

import pytest

from glora_search.run.evaluate import poor_teacher, rate_at_the_end


@pytest.mark.parametrize(("loss", "noted"), [(2.1, True), (1.0, False)])
def test_a_teacher_that_is_far_worse_than_its_students_is_noted(loss, noted):
    rows = [{"name": "LoRA r=1", "validation_loss": 0.9}, {"name": "LoRA r=1 + teacher", "validation_loss": 0.1}]
    done = {"finalists": rows, "teacher": {"by": "supernet", "members": 8, "validation_loss": loss}}
    notes = poor_teacher(done)
    assert bool(notes) == noted
    assert not noted or ("2.1000" in notes[0] and "0.9000" in notes[0] and "four times" in notes[0])
    assert poor_teacher({}) == []


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({0.5: 0.9, 1: 0.8, 2: 0.7}, "LoRA r=1 is the highest that was raced, x2: higher ones"),
        ({0.5: 0.6, 1: 0.8, 2: 0.7}, "LoRA r=1 is the lowest that was raced, x0.5: lower ones"),
        ({0.5: 0.9, 1: 0.6, 2: 0.7}, None),
        ({1: 0.6}, None),
        ({1: 0.6, 2: math.inf}, None),
    ],
)
def test_a_best_learning_rate_at_the_end_of_those_raced_is_noted(losses, said):
    def row(method, rate, loss, taught=""):
        return {"name": f"{method} x{rate}{taught}", "method": method, "rate": rate, "validation_loss": loss}

    rows = [row("LoRA r=1", 8, 0.1, " + teacher"), row("(IA)3", 1, 0.2)]
    rows += [row("LoRA r=1", rate, losses[rate]) for rate in sorted(losses, key=losses.get)]
    noted = rate_at_the_end({"finalists": [*rows, row("HiRA", 1, math.inf), row("HiRA", 2, math.inf)]})
    assert len(noted) == (said is not None)
    assert said is None or said in noted[0]
    assert rate_at_the_end({}) == []
