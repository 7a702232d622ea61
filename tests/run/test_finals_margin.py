"""A searched subnet that leads by too little, in a whole run."""

from __future__ import annotations

import shutil

import pytest
from peft import LoraConfig, PeftConfig

from glora_search import Recipe, Run
from glora_search.run.evaluate import passed_over

pytestmark = pytest.mark.slow


@pytest.fixture
def led(raced, tmp_path):
    """``led(margin)``: a run whose LoRA learns nothing, so that the subnet with its inherited weights is far ahead."""

    def run(margin):
        ignored = shutil.ignore_patterns("finals", "merged", "metrics.json")
        folder = shutil.copytree(raced[0].folder, tmp_path / "run", ignore=ignored)
        recipe = Recipe.load(folder / "recipe.yaml")
        recipe.finals.margin, recipe.finals.teacher, recipe.finals.rates = margin, 0, [1e-9]
        recipe.finals.methods = ["lora"]
        found = Run.create(recipe, folder)
        return found, found.all_stages()

    return run


def test_a_subnet_that_is_passed_over_is_noted_and_the_method_is_merged(led):
    run, metrics = led(1e6)
    done = run.view.result("finals")
    assert done["winner"].startswith("LoRA")
    assert metrics["final"]["source"] == done["winner"] == done["finalists"][0]["name"]
    assert isinstance(PeftConfig.from_pretrained(run.folder / "finals"), LoraConfig)
    passed = done["passed_over"]
    by_name = {row["name"]: row["validation_loss"] for row in done["finalists"]}
    assert passed["lead"] == pytest.approx(by_name[done["winner"]] - by_name[passed["name"]], abs=1e-5)
    assert passed["standard_error"] > 0
    (note,) = passed_over(done)
    assert note in metrics["notes"]
    assert passed["name"] in note
    assert "finals.margin" in note
    (note,) = passed_over({**done, "passed_over": {**passed, "standard_error": None}})  # of a single row
    assert "unknown" in note


@pytest.mark.parametrize("margin", [0, 1e-6])
def test_a_subnet_that_leads_by_more_than_the_margin_wins(led, margin):
    run, metrics = led(margin)
    done = run.view.result("finals")
    assert done["winner"].startswith("subnet")
    assert "passed_over" not in done
    assert metrics["final"]["source"] == done["winner"]
