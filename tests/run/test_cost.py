"""What a run costs: the estimate before it, and the sum after it."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model

from glora_search import Recipe, Run
from glora_search.finals.contest import planned_trainings
from glora_search.finals.finalists import uniform_finalists
from glora_search.run import cost, runner
from glora_search.run.cost import SUPERNET_STEP, count, estimate, spent
from glora_search.training.uniform import uniform_methods

STEP, ROW = 1.0, 0.01


@pytest.fixture
def made(tiny_recipe, tmp_path):
    def make(**sections):
        data = {**copy.deepcopy(tiny_recipe), **sections}
        return Run.create(Recipe.model_validate(data), tmp_path / f"run{len(list(tmp_path.iterdir()))}").context

    return make


def test_supernet_search_retraining_and_baseline_are_counted_in_steps_and_scored_rows(made):
    context = made()
    epoch, scored = -(-len(context.task.train) // 16), ROW * len(context.task.validation)
    found = count(context, STEP, ROW)
    assert found.unit == pytest.approx(3 * epoch * STEP)  # the baseline trains as supernet and retraining together
    assert found.seconds == pytest.approx(
        {
            "train-supernet": 2 * epoch * SUPERNET_STEP,
            "search": 12 * scored,
            "retrain": epoch * SUPERNET_STEP,
            "baselines": 3 * epoch,
        }
    )


def test_the_rows_that_are_timed_have_all_lengths_of_their_split():
    lengths = torch.randperm(100).tolist()
    rows = Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
    assert [len(ids) for ids in cost._some(rows, 10)["input_ids"]] == list(range(0, 100, 11))
    assert len(cost._some(rows, 200)) == 100


def test_processes_share_minutes_and_a_fixed_number_of_their_steps_has_more_rows(made, tiny_recipe):
    one, two = (count(made(), STEP, ROW, processes) for processes in (1, 2))
    assert two.seconds["search"] == one.seconds["search"]
    assert one.seconds["retrain"] <= two.seconds["retrain"] <= one.seconds["retrain"] + STEP * SUPERNET_STEP
    assert two.minutes(120) == one.minutes(60) == 1
    assert "on 2 processes" in str(two)
    assert "processes" not in str(one)
    training = {**tiny_recipe["supernet"]["training"], "max_steps": 10}
    one, two = (count(made(supernet={"training": training}), STEP, ROW, processes) for processes in (1, 2))
    assert two.seconds["train-supernet"] == 2 * one.seconds["train-supernet"]


def test_a_stage_of_several_processes_has_cost_as_much_as_all_of_them(copied):
    run = copied
    alone, path = spent(run.view), run.folder / "search" / "stage.json"
    done = run.view.result("search")
    path.write_text(json.dumps({**done, "processes": 3}))
    unit = run.view.seconds()["baselines"]
    assert spent(run.view) == pytest.approx(alone + 2 * done["seconds"] / unit)


def test_a_step_of_several_subnets_costs_several_steps(made, tiny_recipe):
    one = count(made(), STEP, ROW).seconds["train-supernet"]
    context = made(supernet={**tiny_recipe["supernet"], "sampling": "sandwich"})
    assert count(context, STEP, ROW).seconds["train-supernet"] == pytest.approx(4 * one)


def test_finals_are_counted_with_their_teacher(made, tiny_recipe):
    training = {"num_train_epochs": 4, "per_device_train_batch_size": 16, "use_cpu": True}
    plain = count(made(finals={"teacher": 0, "training": training}, baselines=[]), STEP, ROW)
    assert "retrain" not in plain.seconds
    assert plain.seconds["finals"] > plain.unit
    assert plain.seconds["finals"] < 10 * plain.unit


@pytest.mark.parametrize(
    ("rates", "subnets", "teacher", "trainings"),
    [([0.5, 1, 2], 2, True, 7.25), ([1], 2, True, 5.25), ([0.5, 1, 2], 2, False, 5.0), ([0.5, 1, 2], 0, False, 3.75)],
)
def test_finals_are_counted_with_the_learning_rates_that_may_join(bind, rates, subnets, teacher, trainings):
    methods = uniform_methods(bind("glora-paper"), None, ["lora", "ia3"])
    assert planned_trainings(uniform_finalists(methods, rates), subnets, teacher=teacher) == trainings


def test_the_estimate_is_said_before_the_first_stage_and_the_sum_is_in_the_metrics(made, monkeypatch):
    run, said = Run(made().folder), []
    monkeypatch.setattr(runner, "say", lambda text, style=None: said.append(text))
    metrics = run.all_stages()
    assert "LoRA trainings" in said[0]
    assert metrics["lora_trainings"] == pytest.approx(spent(run.view), abs=0.01)
    assert metrics["lora_trainings"] > 1
    said.clear()
    run.all_stages()
    assert not any("LoRA trainings" in text for text in said)


def test_the_step_that_is_timed_is_the_trainings(made, tiny_recipe, monkeypatch):
    seen = []

    def spy(base, config):
        model = get_peft_model(base, config)
        model.register_forward_pre_hook(
            lambda module, given: seen.append((module.training, torch.is_autocast_enabled("cpu")))
        )
        seen.append(base.is_gradient_checkpointing)
        return model

    monkeypatch.setattr(cost, "get_peft_model", spy)
    training = {**tiny_recipe["supernet"]["training"], "gradient_checkpointing": True, "bf16": True}
    estimate(made(supernet={"training": training}))
    assert seen[0] is True
    assert set(seen[1:]) == {(True, True), (False, False)}


def test_without_room_for_the_timing_a_run_begins_all_the_same(made, monkeypatch):
    def no_room(run):
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(cost, "_timed", no_room)
    assert cost.said(made()) == "cost: no estimate (out of memory. Tried to allocate 20 GiB)"


def test_timing_leaves_nothing_behind(made):
    context = made()
    before = sorted(path.name for path in context.folder.iterdir())
    found = estimate(context)
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert sorted(path.name for path in context.folder.iterdir()) == before


def test_what_workers_on_one_machine_have_shared_counts_once(copied, tiny_recipe):
    training = {"num_train_epochs": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 16, "use_cpu": True}
    finals = {"subnets": 1, "rates": [1], "teacher": 0, "training": training}
    run = Run.create(Recipe.model_validate({**tiny_recipe, "finals": finals}), copied.folder)
    run.do("finals")
    path, taken = run.folder / "finals" / "stage.json", run.view.seconds()
    done = {**run.view.result("finals"), "seconds": 60.0, "trainings": 6.0}
    rest = sum(taken.values()) - taken["finals"]

    def cost(**noted):
        path.write_text(json.dumps({**done, **noted}))
        return spent(run.view)

    # Six trainings of ten seconds in a minute; two workers at a time take as long for each of two; four cannot have
    # trained more at a time than the race let them.
    assert cost(seconds_per_training=10.0) == pytest.approx((60 + rest) / 10)
    assert cost(seconds_per_training=20.0, workers=2) == pytest.approx((60 + rest) / 10)
    assert cost(seconds_per_training=20.0, workers=4) == pytest.approx((60 + rest) / 10)
    assert cost(seconds_per_training=8.0, workers=4) == pytest.approx((60 + rest) / 8)


def test_baselines_beside_finals_are_counted(made, tiny_recipe):
    training = {"num_train_epochs": 4, "per_device_train_batch_size": 16, "use_cpu": True}
    section = {"finals": {"teacher": 0, "training": training}}
    without, found = (count(made(**section, baselines=names), STEP, ROW).seconds for names in ([], ["lora"]))
    assert "baselines" not in without
    assert found["baselines"] == count(made(baselines=["lora"]), STEP, ROW).seconds["baselines"]


def test_a_race_that_ended_before_a_kill_has_a_cost(raced, tmp_path):
    run = Run(shutil.copytree(raced[0].folder, tmp_path / "run"))
    path, done = run.folder / "finals" / "stage.json", run.view.result("finals")
    path.write_text(json.dumps({**done, "seconds": 60.0, "trainings": 6.0, "seconds_per_training": None}))
    taken = run.view.seconds()
    assert spent(run.view) == pytest.approx((sum(taken.values()) - taken["evaluate"]) / 10)
