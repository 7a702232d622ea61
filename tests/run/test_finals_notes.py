"""What is noted of a race."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from glora_search.run.evaluate import poor_teacher, rate_at_the_end


def recipe_of(rate):
    sections = {"supernet": {"learning_rate": rate}, "finals": {"learning_rate": 2e-3}}
    return SimpleNamespace(**{name: SimpleNamespace(training=training) for name, training in sections.items()})


@pytest.mark.parametrize(("loss", "noted"), [(2.1, True), (1.0, False)])
@pytest.mark.parametrize("taught", [True, False])
def test_a_teacher_that_is_far_worse_than_its_students_is_noted(loss, noted, taught):
    rows = [{"name": "LoRA r=1", "validation_loss": 0.9}, {"name": "LoRA r=1 + teacher", "validation_loss": 0.1}]
    teacher = {"by": "supernet", "members": 8, "validation_loss": loss, **({} if taught else {"taught": False})}
    notes = poor_teacher({"finalists": rows, "teacher": teacher}, recipe_of(2e-3))
    assert bool(notes) == noted
    assert not noted or ("2.1000" in notes[0] and "0.9000" in notes[0])
    assert not noted or ("without it" in notes[0].rpartition("0.9000")[2]) == (not taught)
    assert poor_teacher({}, recipe_of(2e-3)) == []


@pytest.mark.parametrize(
    ("rate", "words"), [(2e-3, "learning_rate than 0.002, or more epochs"), (8e-3, "need more epochs")]
)
def test_a_supernet_that_predicts_badly_may_need_a_higher_rate_where_it_has_no_high_one(rate, words):
    done = {"finalists": [], "teacher": {"by": "finalists", "members": 2, "validation_loss": 0.5}}
    (note,) = poor_teacher(done, recipe_of(rate))
    assert note.endswith(words)
    assert "2 finalists" in note


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
