"""What a training's own seed draws."""

from __future__ import annotations

import copy

import pytest
import torch

from glora_search.recipe.schema import Recipe
from glora_search.run import finals
from glora_search.run.runner import Run


@pytest.fixture
def starts(tiny_recipe, tmp_path, monkeypatch):
    """``starts(seed)``: LoRA as it begins in finals of this seed, of a run whose seed is 0."""

    def make(seed):
        data = copy.deepcopy(tiny_recipe)
        data["finals"] = {"teacher": 0, "methods": ["lora"], "training": {"use_cpu": True, "seed": seed}}
        run = Run.create(Recipe.model_validate(data), tmp_path / str(seed))
        settings = run.context.recipe.finals
        monkeypatch.setattr(finals, "_best_subnets", lambda run, count: [])
        contest = finals._contest(run.context, run.folder, settings)
        model = contest._fresh(contest.uniform[0])
        return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}

    return make


def test_finals_of_another_seed_begin_with_another_lora_and_another_head(starts):
    one, again, other = starts(0), starts(0), starts(1)
    drawn = [name for name in one if "lora_A" in name or name.endswith("classifier.modules_to_save.default.weight")]
    assert any("classifier" in name for name in drawn)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in drawn)
