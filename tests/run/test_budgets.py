"""Several budgets on one supernet: a final adapter for each."""

from __future__ import annotations

import copy
import shutil

import pytest
from pydantic import ValidationError

from glora_search import Recipe, Run
from glora_search.files.text import write_json
from glora_search.report import budget_rows, write_report
from glora_search.run import supernet
from glora_search.run.runner import Run as Runner
from glora_search.run.status import status


def several(tiny_recipe, budgets):
    data = copy.deepcopy(tiny_recipe)
    data["search"] |= {"max_params": budgets, "trials": 6}
    data["baselines"] = []
    return data


@pytest.fixture(scope="session")
def ran(tiny_recipe, tmp_path_factory):
    recipe = Recipe.model_validate(several(tiny_recipe, [600, 1000, 300]))
    run = Run.create(recipe, tmp_path_factory.mktemp("budgets") / "run")
    return run, run.all_stages()


def test_a_list_of_budgets_is_the_largest_and_the_smaller_ones(tiny_recipe):
    search = Recipe.model_validate(several(tiny_recipe, [600, 1000, 300, 600])).search
    assert (search.max_params, search.budgets) == (1000, [300, 600])
    assert Recipe.model_validate(several(tiny_recipe, [600])).search.budgets == []


@pytest.mark.parametrize(
    ("budgets", "words"),
    [
        *((budgets, "a whole number, or a list of whole numbers") for budgets in ([1.5, 3], [1000.0, 2000], ["a"], [])),
        ([-1, 3], "greater than or equal to 0"),
    ],
)
def test_what_is_no_budget_is_refused(tiny_recipe, budgets, words):
    with pytest.raises(ValidationError, match=words):
        Recipe.model_validate(several(tiny_recipe, budgets))


def test_a_smaller_budget_is_below_the_largest(tiny_recipe):
    data = several(tiny_recipe, 500)
    data["search"]["budgets"] = [500]
    with pytest.raises(ValidationError, match=r"budgets.*below max_params, 500"):
        Recipe.model_validate(data)


def test_each_budget_ends_in_a_merged_model_within_it(ran):
    run, metrics = ran
    assert metrics["final"]["params"] <= 1000
    assert [one.budget for one in run.view.smaller()] == [300, 600]
    for one in run.view.smaller():
        assert one.done("test")["final"]["params"] <= one.budget
        assert (one.path / "merged" / "config.json").is_file()


def test_the_supernet_is_trained_once_and_the_same_everywhere(ran):
    run, _ = ran
    assert {one.weights() for one in run.view.smaller()} == {run.view.weights()}
    assert {one.done("supernet")["seconds"] for one in run.view.smaller()} == {0.0}
    assert {one.done("supernet")["max_params"] for one in run.view.smaller()} == {1000}


def test_the_table_has_a_row_for_each_budget(ran):
    run, _ = ran
    assert [row[0] for row in budget_rows(run.view)] == ["300", "600", "1,000"]
    assert "Trained adapters under each budget" in write_report(run.folder).read_text()


def test_the_table_of_budgets_has_the_tuned_baseline(ran, tmp_path):
    run = Run(shutil.copytree(ran[0].folder, tmp_path / "run"))
    metrics = run.view.done("test")
    given = {"name": "lora r=1", "validation": 0.61, "test": 0.6}
    tuned = {"name": "LoRA r=1, tuned", "validation": 0.79, "test": 0.8}
    for baselines, shown in (
        ([given], ("0.6100", "0.6000")),
        ([given, tuned], ("0.7900", "0.8000")),
        ([given, {**tuned, "validation": None, "test": None, "diverged": True}], ("0.6100", "0.6000")),
    ):
        write_json(run.folder / "metrics.json", {**metrics, "baselines": baselines})
        assert budget_rows(run.view)[-1][5:7] == shown


def test_a_budget_that_comes_later_needs_no_note_of_where_the_run_is_from(ran, tiny_recipe, tmp_path):
    folder = shutil.copytree(ran[0].folder, tmp_path / "run")
    (folder / "origin.json").unlink()  # as its own message advises where it is damaged
    run = Run.create(Recipe.model_validate(several(tiny_recipe, [300, 500, 600, 1000])), folder)
    run.all_stages()
    assert [one.budget for one in run.view.smaller()] == [300, 500, 600]


def test_a_budget_that_is_not_done_is_shown(ran, tmp_path, call):
    run = Run(shutil.copytree(ran[0].folder, tmp_path / "run"))
    assert [one["state"] for one in status(run.view)["budgets"]] == ["done", "done"]
    shutil.rmtree(run.folder / "budgets" / "300")
    (run.folder / "budgets" / "600" / "metrics.json").unlink()
    first, second = status(run.view)["budgets"]
    assert (first["budget"], first["state"], first["left"][0]) == (300, "not begun", "train-supernet")
    assert second == {"budget": 600, "state": "interrupted", "left": ["evaluate"]}
    assert [row[:2] for row in budget_rows(run.view)[:2]] == [("300", "not done yet"), ("600", "not done yet")]
    code, out, _ = call("status", run.folder)
    assert (code, "budget 600: interrupted, left: evaluate" in out) == (0, True)


def test_again_it_does_nothing_and_another_budget_searches_alone(ran, tiny_recipe, monkeypatch):
    run, metrics = ran
    monkeypatch.setattr(supernet, "train_supernet", lambda *args, **kwargs: pytest.fail("trained again"))
    did = []
    work = Runner._work
    monkeypatch.setattr(Runner, "_work", lambda self, stage, options: did.append(stage) or work(self, stage, options))
    assert run.all_stages() == metrics
    assert did == []
    more = Recipe.model_validate(several(tiny_recipe, [300, 400, 600, 1000]))
    again = Run.create(more, run.folder)
    assert again.all_stages() == metrics
    assert {stage.name for stage in did} == {"search", "best", "retrained", "merged", "test"}
    assert [one.budget for one in again.view.smaller()] == [300, 400, 600]


def test_another_supernet_removes_what_was_made_from_it(ran):
    run, _ = ran
    run.forget("supernet")
    assert not (run.folder / "budgets").exists()


@pytest.mark.slow
def test_each_budget_ends_in_finals_of_its_own(tiny_recipe, tmp_path):
    data = several(tiny_recipe, [1000, 600])
    training = {"num_train_epochs": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 16, "use_cpu": True}
    data["finals"] = {"subnets": 1, "methods": ["lora"], "rates": [1], "teacher": 2, "training": training}
    run = Run.create(Recipe.model_validate(data), tmp_path / "run")
    run.all_stages()
    (smaller,) = run.view.smaller()
    for view, budget in ((run.view, 1000), (smaller, 600)):
        name, figures = view.final()
        assert name == "finals"
        assert figures["params"] <= budget
        assert all(row["params"] <= budget for row in view.result("finals")["finalists"])
    costs = [view.done("test")["lora_trainings"] for view in (smaller, run.view)]
    assert min(costs) > 0
    assert [row[-1] for row in budget_rows(run.view)] == [f"{cost:.1f}" for cost in costs]


def test_a_larger_budget_or_a_teacher_redoes_later_stages_under_the_smaller_budgets_too(tiny_recipe, tmp_path):
    run = Run.create(Recipe.model_validate(several(tiny_recipe, [1000, 600])), tmp_path / "run")
    run.all_stages()
    data = several(tiny_recipe, [1200, 1100, 600])
    training = {"num_train_epochs": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 16, "use_cpu": True}
    data["finals"] = {"subnets": 1, "methods": ["lora"], "rates": [1], "teacher": 2, "training": training}
    again = Run.create(Recipe.model_validate(data), tmp_path / "run")
    assert again.all_stages()["budget"] == 1200
    for smaller in again.view.smaller():
        assert smaller.final()[0] == "finals"
        assert smaller.weights() == again.view.weights()
