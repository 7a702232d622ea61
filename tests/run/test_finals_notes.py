"""What is noted of a race."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from glora_search.run.evaluate import no_baseline, notes, poor_teacher, rate_at_the_end


def recipe_of(rate):
    sections = {"supernet": {"learning_rate": rate}, "finals": {"learning_rate": 2e-3}}
    return SimpleNamespace(**{name: SimpleNamespace(training=training) for name, training in sections.items()})


@pytest.mark.parametrize(
    ("own", "best", "said"),
    [
        (2.1, 0.9, "loss is 2.1000, and that of the best method alone is 0.9000; so the subnets raced without it"),
        (None, 0.9, "loss is not a number, and that of the best method alone is 0.9000"),
        (2.1, None, "loss is 2.1000, and that of the best method alone is not a number"),
    ],
)
def test_a_teacher_that_was_too_poor_to_teach_is_noted(own, best, said):
    teacher = {"by": "supernet", "members": 8, "validation_loss": own}
    losses = {"subnet 1 from scratch": 0.5, "LoRA r=1": best, "(IA)3": 3.0}
    rows = [{"method": method, "validation_loss": loss} for method, loss in losses.items()]
    done = {"finalists": rows, "teacher": teacher}
    assert poor_teacher(done, recipe_of(2e-3)) == poor_teacher({}, recipe_of(2e-3)) == []
    teacher["taught"] = False
    (note,) = poor_teacher(done, recipe_of(2e-3))
    assert said in note
    (note,) = poor_teacher({**done, "finalists": rows[:1]}, recipe_of(2e-3))
    assert said.partition(",")[0] + "; so the subnets" in note


@pytest.mark.parametrize(("score", "said"), [(0.5, "worse on validation (loss 0.7000)"), (0.4, "validation (0.4000)")])
def test_a_retraining_that_was_worse_is_noted_by_what_decided(score, said):
    best = {"params": 10, "validation": 0.5, "validation_loss": 0.6}
    view = SimpleNamespace(
        result=lambda stage: best,
        done=lambda stage: {"validation": score, "validation_loss": 0.7},
        final=lambda: ("best", best),
    )
    (note,) = notes(view, SimpleNamespace(constant=None, direction="maximize"), [])
    assert said in note


@pytest.mark.parametrize(
    ("budget", "finalists", "why"),
    [
        (None, [{"method": "subnet 1"}], "the model has no layer for any of finals.methods, bitfit"),
        (500, [{"method": "subnet 1"}], "none of finals.methods, bitfit, fits the model and the budget of 500"),
        (None, [{"method": "BitFit"}], "every one of finals.methods has diverged. Lower finals.training"),
    ],
)
def test_the_reason_for_no_baseline_is_noted(budget, finalists, why):
    finals, search = SimpleNamespace(methods=["bitfit"]), SimpleNamespace(max_params=budget)
    run = SimpleNamespace(
        recipe=SimpleNamespace(finals=finals, search=search),
        view=SimpleNamespace(done=lambda stage: {"finalists": finalists}),
        rate_to_lower=lambda section: f"{section}.training.learning_rate",
    )
    assert no_baseline(run, {"name": "LoRA"}) == []
    (note,) = no_baseline(run, None)
    assert note.startswith(f"the finals have no baseline: {why}")


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
        ({0.5: 0.9, 1: 0.8, 2: 0.7}, "LoRA r=1 is the highest one tried, x2: higher ones"),
        ({0.5: 0.6, 1: 0.8, 2: 0.7}, "LoRA r=1 is the lowest one tried, x0.5: lower ones"),
        ({0.5: 0.9, 1: 0.6, 2: 0.7}, None),
        ({1: 0.6}, None),
        ({0.5: 0.9, 1: 0.6, 2: math.inf}, None),
        ({0.5: math.inf, 1: math.inf}, None),
        ({1: 0.6, 2: math.inf}, "LoRA r=1 is the lowest one tried, x1: lower ones"),
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
