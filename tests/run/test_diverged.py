"""Trainings that diverge: what is good is kept, no figure is made up, and the key to lower is named."""

from __future__ import annotations

import copy
import json
import math

import pytest

from glora_search import Evaluation, Recipe, Run, SubnetEvaluator
from glora_search.errors import UserError
from glora_search.report import result_rows, write_report
from glora_search.run import retrain
from glora_search.run.baselines import baseline_diverged

DIVERGING = {"learning_rate": 1e37, "optim": "sgd", "max_grad_norm": 0.0}


def recipe_with(data, *sections):
    made = copy.deepcopy(data)
    for section in sections:
        made.setdefault(section, {}).setdefault("training", {}).update(DIVERGING)
    return Recipe.model_validate(made)


def test_a_retraining_that_diverges_leaves_the_inherited_weights_and_a_note(copied, tiny_recipe, capsys):
    run = Run.create(recipe_with(tiny_recipe, "retrain"), copied.folder)
    metrics = run.all_stages()
    note = "retraining has diverged; the inherited weights are kept. Lower retrain.training.learning_rate, 1e+37"
    assert f"retrain: {note}" in capsys.readouterr().out
    assert note in metrics["notes"]
    assert metrics["final"]["source"] == "inherited"
    assert metrics["merged"]["validation"] == metrics["search"]["best"]["validation"]
    assert not list((run.folder / "retrained").glob("*.safetensors"))
    found = json.loads((run.folder / "retrained" / "stage.json").read_text(), parse_constant=pytest.fail)
    assert (found["validation"], found["validation_loss"], found["diverged"]) == (None, None, True)


def test_a_baseline_that_diverges_is_shown_as_diverged(copied, tiny_recipe, call):
    run = Run.create(recipe_with(tiny_recipe, "baseline"), copied.folder)
    metrics = run.all_stages()
    assert any("the baseline lora has diverged. Lower baseline.training" in note for note in metrics["notes"])
    (baseline,) = metrics["baselines"]
    assert (baseline["validation"], baseline["test"], baseline["diverged"]) == (None, None, True)
    json.loads((run.folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    (row,) = (row for row in result_rows(metrics) if row[0].startswith("baseline: lora"))
    assert row[2:] == ("diverged", "diverged")
    assert "diverged" in write_report(run.folder).read_text()
    assert not list((run.folder / "baselines" / "lora").glob("*.safetensors"))
    code, out, _ = call("evaluate", run.folder)
    assert (code, "diverged" in out) == (0, True)
    context = Run.create(recipe_with(tiny_recipe, "retrain"), copied.folder).context
    assert "Lower retrain.training.learning_rate, 1e+37" in baseline_diverged(context, "lora")


def test_a_supernet_that_diverges_is_refused_before_the_search_and_another_rate_is_taken(tiny_recipe, tmp_path):
    run = Run.create(recipe_with(tiny_recipe, "supernet"), tmp_path / "run")
    with pytest.raises(UserError, match=r"supernet\.training\.learning_rate: got 1e\+37; .*the supernet has diverged"):
        run.do("supernet")
    assert not run.view.has_begun()
    assert Run.create(Recipe.model_validate(tiny_recipe), run.folder).do("supernet")["metric"] == "accuracy"


def test_figures_of_a_version_that_noted_nan_rank_last_too(copied):
    path = copied.folder / "retrained" / "stage.json"
    noted = json.loads(path.read_text())
    path.write_text(json.dumps({**noted, "validation": 1.0, "validation_loss": float("nan")}))
    assert copied.view.final()[0] == "best"


def test_a_weight_that_no_validation_row_meets_tells_too(copied, monkeypatch):
    copied.forget("retrained")
    train = retrain.train

    def broken(model, *args, **options):
        train(model, *args, **options)
        next(p for p in model.parameters() if p.requires_grad).data.view(-1)[0] = float("nan")

    monkeypatch.setattr(retrain, "train", broken)
    monkeypatch.setattr(retrain, "evaluate", lambda *args: Evaluation(1.0, 0.0))
    assert copied.do("retrained")["diverged"]
    assert copied.view.final()[0] == "best"


def test_a_search_all_of_whose_trials_fail_says_how_to_search_anew(copied, monkeypatch):
    copied.forget("search")
    with monkeypatch.context() as patch:
        patch.setattr(SubnetEvaluator, "__call__", lambda *args: Evaluation(math.nan, 1.0))
        with pytest.raises(UserError, match="10 evaluations in a row have failed, the last one: metric nan"):
            copied.do("search")
        with pytest.raises(UserError, match=r"no trial has finished .*metric nan.*search anew: .* --again"):
            copied.do("search")
    with pytest.raises(UserError, match="search anew"):
        copied.do("search")
    copied.forget("search")
    assert copied.do("search")["evaluated"] == copied.context.recipe.search.trials


def test_a_search_some_of_whose_trials_fail_says_how_many_and_why(copied, monkeypatch, capsys):
    copied.forget("search")
    original, calls = SubnetEvaluator.__call__, []

    def evaluate(self, genome):
        calls.append(genome)
        if len(calls) in (3, 5):
            raise MemoryError(f"in call {len(calls)}")
        return original(self, genome)

    monkeypatch.setattr(SubnetEvaluator, "__call__", evaluate)
    assert copied.do("search")["failed"] == 2
    said = "note: 2 of 12 evaluations failed, the last one: MemoryError: in call 5"
    assert said in capsys.readouterr().out.replace("\n", " ")
