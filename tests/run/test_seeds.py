"""What a training's own seed draws."""

from __future__ import annotations

import copy

import pytest
import torch

from glora_search.recipe.schema import Recipe
from glora_search.run import finals
from glora_search.run.runner import Run
from glora_search.tasks.text_classification import TextClassification


@pytest.fixture
def starts(tiny_recipe, tmp_path, monkeypatch):
    """``starts(seed)``: LoRA as it begins in finals of this seed, of a run whose seed is 0."""

    def make(seed):
        data = copy.deepcopy(tiny_recipe)
        data["finals"] = {"teacher": 0, "methods": ["lora"], "training": {"use_cpu": True, "seed": seed}}
        run = Run.create(Recipe.model_validate(data), tmp_path / str(seed))
        settings = run.context.recipe.finals
        monkeypatch.setattr(finals, "_best_subnets", lambda run, count: [])
        contest = finals.contest_of(run.context, run.folder, settings)
        model = contest._begin(contest.uniform[0])
        return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}

    return make


@pytest.mark.parametrize("stage", ["retrained", "baselines", "supernet"])
def test_every_training_begins_with_its_own_seed(tiny_recipe, tmp_path, monkeypatch, stage):
    data = copy.deepcopy(tiny_recipe)
    section = {"retrained": "retrain", "baselines": "baseline", "supernet": "supernet"}[stage]
    data.setdefault(section, {}).setdefault("training", {})["seed"] = 5
    run = Run.create(Recipe.model_validate(data), tmp_path / "run")
    drawn = []
    monkeypatch.setattr(type(run.context), "base", lambda self, args: drawn.append(args.seed) or self.task.model())
    run.all_stages()
    assert 5 in drawn
    assert 0 in drawn


class WithoutSeed(TextClassification):
    """Makes its model as it likes."""

    def model(self):
        return super().model()


def test_a_task_of_ones_own_may_know_of_no_seed(tiny_recipe, tmp_path):
    data = copy.deepcopy(tiny_recipe)
    data["task"]["type"] = f"{__name__}.WithoutSeed"
    run = Run.create(Recipe.model_validate(data), tmp_path / "run")
    args = run.context.arguments({"seed": 5, "use_cpu": True}, tmp_path)
    assert run.context.base(args).config.num_labels == run.context.base(args).config.num_labels


def test_finals_of_another_seed_begin_with_another_lora_and_another_head(starts):
    one, again, other = starts(0), starts(0), starts(1)
    drawn = [name for name in one if "lora_A" in name or name.endswith("classifier.modules_to_save.default.weight")]
    assert any("classifier" in name for name in drawn)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in drawn)
