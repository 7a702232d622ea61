"""A run whose recipe has metrics of answers: tables, notes, cards and report."""

from __future__ import annotations

import copy
import shutil

import pytest
import yaml
from tiny_models import make, task, tiny  # noqa: F401

from glora_search.errors import UserError
from glora_search.files.text import read_json, write_json
from glora_search.metrics import GeneratedMetric
from glora_search.recipe.schema import Recipe
from glora_search.report import result_columns, result_rows, write_report
from glora_search.run.compare import compare
from glora_search.run.folder import RunFolder
from glora_search.run.prepare import check
from glora_search.run.references import no_better
from glora_search.run.runner import Run

METRICS = [
    {"type": "multiple-choice", "choices": ["the goal", "the chip"]},
    {"type": "exact-match", "max_new_tokens": 4},
]


@pytest.fixture
def asking(tiny, make, tmp_path):  # noqa: F811
    """A recipe, as data, of a causal model that is asked for one of two answers."""
    answers = {"sports": "the goal", "tech": "the chip"}
    rows = [{"text": text, "answer": answers[label]} for text, label in make.sentences(48)]
    training = {"max_steps": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 8, "use_cpu": True}
    return {
        "name": "asking",
        "task": {"type": "causal-lm", "model": str(tiny("llama")), "max_length": 24, "metrics": copy.deepcopy(METRICS)},
        "data": {
            "source": "json", "train": make.json(tmp_path / "rows.jsonl", rows), "response_column": "answer",
        },
        "space": "lora-ranks",
        "supernet": {"training": dict(training)},
        "search": {"sampler": "random", "trials": 2, "max_params": 1200, "batch_size": 8},
        "retrain": {"training": dict(training)},
        "baselines": ["lora"],
    }  # fmt: skip


@pytest.mark.slow
def test_from_a_recipe_with_metrics_to_tables_notes_cards_and_samples(asking, tmp_path):
    run = Run.create(Recipe.model_validate(asking), tmp_path / "run")
    metrics = run.all_stages()
    assert [one["name"] for one in metrics["metrics"]] == ["multiple_choice", "exact_match"]
    assert result_columns(metrics)[:4] == (
        "model", "adapter parameters", "multiple_choice, validation", "multiple_choice, test",
    )  # fmt: skip
    rows = {row[0]: row[2:] for row in result_rows(metrics)}
    names = ("base model", "best answer that ignores the prompt", "best constant answer", "chance")
    assert list(rows)[:4] == list(names)
    assert rows["chance"] == ("0.5000", "0.5000", "-", "-", "-", "-")
    scored = [cells for name, cells in rows.items() if name not in names[1:] and "inherited weights" not in name]
    assert len(scored) == 4
    assert all("-" not in cells for cells in scored)
    assert metrics["merged"]["metrics"] == metrics["final"]["metrics"]
    assert any(note.startswith("by multiple_choice on test") for note in metrics["notes"]) is bool(no_better(metrics))
    assert len(metrics["samples"]) == 5

    final = metrics["final"]["metrics"]["multiple_choice"]
    for folder in ("baselines/lora", run.view.result("merged")["source"]):
        assert "| test multiple_choice |" in (run.folder / folder / "README.md").read_text()
    page = write_report(run.folder).read_text()
    assert "Sample answers" in page
    assert "Metric of answers: exact_match, higher is better." in page
    assert page.count(metrics["samples"][0]["prompt"]) >= 1

    (row,), _ = compare([run.view])
    assert (row["metric"], row["validation"], row["test"]) == ("multiple_choice", final["validation"], final["test"])

    asking["task"]["metrics"] = []
    again = Run.create(Recipe.model_validate(asking), run.folder)
    assert again.view.done("merged") is not None
    assert again.view.done("test") is None
    plain = again.do("test")
    assert "metrics" not in plain
    assert plain["final"]["test"] == metrics["final"]["test"]
    assert len(plain["samples"]) == 5
    assert result_columns(plain) == ("model", "adapter parameters", "validation", "test")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ({"type": "exact-match", "pattern": "[0-9]"}, r"task\.metrics\.0\.pattern: got '\[0-9\]'"),
        ({"type": "multiple-choice", "choices": ["A", "B"]}, r"task\.metrics\.0\.choices: got"),
        ({"type": f"{__name__}.Broken"}, r"task\.metrics\.0: got 'Broken'; allowed: a metric that can be scored"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_first_stage(asking, metric, words):
    asking["task"]["metrics"] = [metric]
    with pytest.raises(UserError, match=words):
        check(Recipe.model_validate(asking))


def test_a_result_is_compared_with_all_that_is_known_by_the_chosen_metric_and_by_the_tasks():
    def entry(name, perplexity, choice):
        return {"name": name, "test": perplexity, "metrics": {"choice": {"test": choice}}}

    metrics = {
        "metric": "perplexity",
        "direction": "minimize",
        "metrics": [{"name": "choice", "direction": "maximize", "rows": {"test": 9}}],
        "references": [entry("base model", 3.0, 0.2), {"name": "chance", "metrics": {"choice": {"test": 0.25}}}],
        "baselines": [{**entry("lora", None, None), "diverged": True}, entry("lora r=2", 1.2, 0.3)],
        "final": {"source": "subnet 1", "test": 1.23, "metrics": {"choice": {"test": 0.25}}},
    }
    assert no_better(metrics) == [
        "by choice on test (0.2500), the final model is no better than chance (0.2500) and the baseline lora r=2 "
        "(0.3000)",
        "by perplexity on test (1.2300), the final model is no better than the baseline lora r=2 (1.2000)",
    ]
    metrics["final"] = {"source": "subnet 1", "test": 1.1, "metrics": {"choice": {"test": 0.5}}}
    assert no_better(metrics) == []
    metrics["final"]["source"] = "lora r=2"
    metrics["baselines"] = [{**entry("lora r=2, tuned", 1.1, 0.5)}]
    assert no_better(metrics) == ["the baseline won the finals: the final model is lora r=2, tuned"]
    metrics["final"]["source"] = "(IA)3"
    metrics["baselines"] = [{**entry("(IA)3", 1.1, 0.5)}]
    assert no_better(metrics) == ["the baseline won the finals: the final model is (IA)3"]


def test_runs_of_different_metrics_or_settings_are_said_not_to_compare(finished, tmp_path):

    other = shutil.copytree(finished, tmp_path / "other")
    metrics = read_json(other / "metrics.json")
    write_json(other / "metrics.json", {**metrics, "metric": "perplexity"})
    _, notes = compare([RunFolder(finished), RunFolder(other)])
    assert any("metric is 'accuracy' in" in note and note.endswith("their scores cannot be compared") for note in notes)
    write_json(other / "metrics.json", metrics)
    recipe = yaml.safe_load((other / "recipe.yaml").read_text())
    recipe["task"]["metrics"] = [{"type": "exact-match", "pattern": "x"}]
    (other / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    _, notes = compare([RunFolder(finished), RunFolder(other)])
    assert any("task.metrics.0: pattern is None in" in note for note in notes)


class Broken(GeneratedMetric):
    def worth(self, generated, expected):
        return expected["no such key"]
