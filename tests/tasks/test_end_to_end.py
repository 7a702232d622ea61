"""From recipe to merged model, on a tiny random model of every architecture."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import Trainer

from glora_search.adapters.load import load_adapter
from glora_search.files.text import read_json, write_json
from glora_search.recipe.schema import Recipe
from glora_search.report import write_report
from glora_search.run.runner import Run
from glora_search.scoring import evaluate

pytestmark = pytest.mark.slow


def pairs(folder, make, rows=16):
    """A csv file of pairs of texts and whether they are of one class."""
    found = make.sentences(2 * rows)
    rng = np.random.default_rng(0)
    order = rng.permutation(2 * rows)
    lines = [(found[a], found[b]) for a, b in zip(order[::2], order[1::2], strict=True)]
    frame = pd.DataFrame(
        [{"one": a, "other": b, "same": {True: "yes", False: "no"}[x == y]} for (a, x), (b, y) in lines]
    )
    frame.to_csv(folder / "pairs.csv", index=False)
    columns = {"text_column": "one", "text_pair_column": "other", "label_column": "same"}
    return {"source": "csv", "train": str(folder / "pairs.csv"), **columns}


def texts(folder, make):
    """A parquet file of texts and numbers as labels."""
    frame = pd.DataFrame([{"text": text, "label": int(label == "tech")} for text, label in make.sentences(24)])
    frame.to_parquet(folder / "train.parquet")
    return {"source": "parquet", "train": str(folder / "train.parquet")}


def stars(folder, make):
    """A csv file of texts and numbers."""
    rows = [
        {"text": text, "stars": 0.5 * n + 2 * (label == "tech")} for n, (text, label) in enumerate(make.sentences(32))
    ]
    pd.DataFrame(rows).to_csv(folder / "stars.csv", index=False)
    return {"source": "csv", "train": str(folder / "stars.csv"), "label_column": "stars"}


def topics(folder, make):
    """A csv file of texts and any number of labels."""
    rows = [
        {"text": text, "label": f"{label}|news" if n % 3 else ""} for n, (text, label) in enumerate(make.sentences(32))
    ]
    pd.DataFrame(rows).to_csv(folder / "topics.csv", index=False)
    return {"source": "csv", "train": str(folder / "topics.csv")}


def tagged(folder, make):
    """A saved data set of words and their tags."""
    rows = [
        {"words": text.split(), "tags": [f"B-{label}" if word not in make.filler else "O" for word in text.split()]}
        for text, label in make.sentences(16)
    ]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(folder / "tagged")
    return {"source": "saved", "folder": str(folder / "tagged"), "text_column": "words", "label_column": "tags"}


def instructions(folder, make):
    """A json file of instructions, some with an input, and the answers."""
    rows = [
        {"instruction": text, "input": ["", "a new team"][number % 3 == 0], "output": f"the {label} team"}
        for number, (text, label) in enumerate(make.sentences(16))
    ]
    return {"source": "json", "train": make.json(folder / "train.jsonl", rows), "response_column": "output"}


def plain(folder, make):
    """A folder of json files, as load_dataset takes it."""
    make.json(folder / "train.jsonl", [{"text": text} for text, _ in make.sentences(16)])
    make.json(folder / "test.jsonl", [{"text": text} for text, _ in make.sentences(8, seed=1)])
    return {"source": "hub", "name": str(folder), "test": "test"}


def images(folder, make):
    """Folders of images."""
    return {
        "source": "imagefolder",
        "train": make.images(folder / "a", 16),
        "test": make.images(folder / "b", 6, seed=1),
    }


PROMPTS = {"prompt": ["{instruction} of the {input} says", "{instruction} says"]}
CASES = {
    "bert, pairs": ("bert", "text-classification", pairs, {}),
    "roberta": ("roberta", "text-classification", texts, {}),
    "llama, classes": ("llama", "text-classification", texts, {}),
    "bert, numbers": ("bert", "text-regression", stars, {}),
    "roberta, several labels": ("roberta", "multi-label", topics, {}),
    "distilbert": ("distilbert", "token-classification", tagged, {}),
    "gpt2": ("gpt2", "causal-lm", plain, {}),
    "llama": ("llama", "causal-lm", instructions, PROMPTS),
    "qwen2": ("qwen2", "causal-lm", instructions, PROMPTS),
    "qwen3": ("qwen3", "causal-lm", instructions, PROMPTS),
    "t5": ("t5", "seq2seq-lm", instructions, PROMPTS),
    "vit": ("vit", "image-classification", images, {}),
}
METRICS = {
    "text-classification": "accuracy",
    "text-regression": "spearman",
    "multi-label": "micro_f1",
    "token-classification": "f1",
    "causal-lm": "perplexity",
    "seq2seq-lm": "perplexity",
    "image-classification": "accuracy",
}


ALSO = {"text-regression": {"pearson", "rmse"}, "multi-label": {"macro_f1"}}


def check_names(run, merged, batch):
    """Every adapter folder has the labels, and its card loads a model that knows them."""
    names = dict(enumerate(run.context.task.outputs))
    assert (merged.config.id2label, merged.config.problem_type) == (names, run.context.task.problem_type)
    for adapter in ("best", "retrained", "baselines/lora"):
        folder = run.folder / adapter
        found = {}
        exec((folder / "README.md").read_text().split("```python\n")[1].split("```")[0], found)
        plain = found["plain"].eval()
        assert (plain.config.id2label, plain.config.problem_type) == (names, run.context.task.problem_type)
        assert plain.config.label2id == {name: index for index, name in names.items()}
        noted = read_json(folder / "labels.json")
        assert (noted["labels"], noted["problem_type"]) == (list(names.values()), plain.config.problem_type)
        if adapter == run.view.result("merged")["source"]:
            with torch.no_grad():
                torch.testing.assert_close(merged(**batch).logits, plain(**batch).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("architecture", "task", "data", "options"), CASES.values(), ids=CASES.keys())
def test_a_recipe_becomes_a_merged_model_that_says_what_the_adapter_says(
    tiny, recipe, make, tmp_path, architecture, task, data, options
):
    made = Recipe.model_validate(recipe(tiny(architecture), data(tmp_path, make), type=task, **options))
    run = Run.create(made, tmp_path / "run")
    metrics = run.all_stages()

    assert metrics["metric"] == METRICS[task]
    assert metrics["merged"]["max_abs_logit_difference"] < 1e-4
    assert metrics["merged"]["test"] == pytest.approx(metrics["final"]["test"], rel=1e-4)
    assert metrics["baselines"][0]["params"] <= 1200
    assert 0 < metrics["final"]["params"] <= 1200
    better = min if task.endswith("-lm") else max
    stages = [run.view.result(name) for name in ("best", "retrained")]
    assert metrics["final"]["validation"] == better(stage["validation"] for stage in stages)
    if task.endswith("-lm"):
        for entry in stages:
            assert entry["validation"] == pytest.approx(np.exp(entry["validation_loss"]), rel=1e-4)

    merged = run.context.task.auto_class.from_pretrained(run.folder / "merged").eval()
    adapted = load_adapter(run.context.task.model(), run.folder / run.view.result("merged")["source"]).eval()
    assert type(merged) is type(adapted.get_base_model())
    assert set(dict(merged.named_parameters())) == set(dict(run.context.task.model().named_parameters()))
    for model in (merged, adapted):
        assert evaluate(model, run.context.validation, run.context.task).metric == pytest.approx(
            metrics["final"]["validation"], rel=1e-4
        )
    batch = run.context.validation[0]
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, adapted(**batch).logits, rtol=0, atol=1e-4)
    assert (
        run.folder / "merged" / ("preprocessor_config.json" if architecture == "vit" else "tokenizer.json")
    ).is_file()
    if run.context.task.outputs:
        check_names(run, merged, batch)
    for name, value in metrics.get("also", {}).get("merged", {}).items():
        assert f"{name} {value:.4f}" in write_report(run.folder).read_text()
    assert set(metrics.get("also", {}).get("best", {})) == ALSO.get(task, set())
    if architecture in ("llama", "qwen3", "t5"):  # no layer has a bias
        assert {gene.path for gene in run.context.space.genes} == {"A_B"}


def test_a_lower_perplexity_is_better_in_search_stopping_and_report(tiny, recipe, make, tmp_path, monkeypatch):
    data = recipe(tiny("llama"), plain(tmp_path, make), type="causal-lm")
    data["baselines"] = []
    data["supernet"] |= {"patience": 1}
    data["search"] |= {"score": "metric", "sampler": "evolution", "trials": 8}
    settings = []
    original = Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, *a, **k: (settings.append(k["args"]), original(self, *a, **k))[1]
    )
    run = Run.create(Recipe.model_validate(data), tmp_path / "run")
    metrics = run.all_stages()
    assert (settings[0].metric_for_best_model, settings[0].greater_is_better) == ("perplexity", False)
    trials = pd.read_csv(run.folder / "search" / "trials.csv")
    assert metrics["search"]["best"]["validation"] == pytest.approx(trials["value"].min())
    assert trials["value"].min() < trials["value"].max()
    assert metrics["direction"] == "minimize"
    assert "perplexity" in write_report(run.folder).read_text()
    for name in ("best", "retrained"):
        write_json(
            run.folder / name / "stage.json",
            {"validation": {"best": 3.0, "retrained": 4.0}[name], "validation_loss": 1, "seconds": 1},
        )
    assert run.view.final()[0] == "best"


def test_a_subnet_without_any_path_of_a_model_without_a_head_goes_all_the_way(tiny, recipe, make, tmp_path):
    data = recipe(tiny("llama"), plain(tmp_path, make), type="causal-lm")
    data["baselines"] = []
    data["search"] |= {"max_params": 0, "trials": 1}
    metrics = Run.create(Recipe.model_validate(data), tmp_path / "run").all_stages()
    assert metrics["final"]["params"] == 0
    assert any("nothing was trained" in note for note in metrics["notes"])
    assert metrics["merged"]["max_abs_logit_difference"] == 0
