"""Run folders at any stage, made up without a model: a real search whose evaluator is a formula."""

from __future__ import annotations

import json

import pytest

from glora_search.files.text import write_json
from glora_search.recipe.schema import Recipe
from glora_search.run.making import make
from glora_search.run.runner import Run
from glora_search.run.stages import STAGES
from glora_search.search import Evaluation, search
from glora_search.search.results import summary, trials_frame
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import SpaceLayer

KINDS = {"A_B": ["lora", "vector", "constant", "none"], "C": ["vector", "none"], "D_E": ["vector", "none"]}
WORTH = {"lora": 0.3, "vector": 0.2, "constant": 0.1, "none": 0.0}


def make_space(blocks):
    names = [f"model.layers.{block}.{name}" for block in range(blocks) for name in ("attn.q_proj", "mlp.up_proj")]
    return BoundSpace([SpaceLayer(name, 8, 8, True, KINDS, [1, 2]) for name in names])


def evaluate(genome):
    """A loss that depends on the first layer's A and B alone, and a metric in steps."""
    loss = 0.8 - WORTH[genome["model.layers.0.attn.q_proj.A_B"]]
    loss += 0.001 * (sum(len(str(choice)) * index for index, choice in enumerate(genome.values())) % 7)
    return Evaluation(metric=round(1 - loss, 2), loss=loss)


def log(steps, probes):
    entries = [{"loss": 2 / (1 + step / 50), "learning_rate": 1e-3, "step": step} for step in range(10, steps, 10)]
    for step in range(20, steps, 20):
        curves = {f"eval_{probe}_loss": 1.5 / (1 + step / 80) + 0.1 * n for n, probe in enumerate(probes)}
        entries.append({**curves, "eval_loss": 1.0, "step": step})
    return sorted(entries, key=lambda entry: entry["step"])


@pytest.fixture
def chart_ids():
    """The elements of all charts."""
    return {"front", "best-loss", "best-metric", "importance-paths", "importance-layers", "supernet"}


@pytest.fixture
def evil():
    """Text that would do harm as markup."""
    return "</script><script>injected=1</script><img src=x onerror=injected=1>"


@pytest.fixture
def make_run(tmp_path):
    """``make_run(until="test", **options)``: a run folder whose stages up to this one are done.

    Args:
        until: a stage, ``searching`` (the journal of a search that goes on) or None.
        score: what the search goes by.
        trials, blocks: size of the search and of the model.
        probes: names of the probes that the supernet's training evaluated.
        name, label: the metrics' name and a baseline's name.
    """

    def build(
        until="test",
        *,
        score="loss",
        trials=60,
        blocks=3,
        probes=("size_1/1", "LoRA"),
        name="made-up",
        label="lora r=1",
    ):
        recipe = Recipe.model_validate(
            {
                "name": "made-up",
                "task": {"model": "none"},
                "data": {"source": "csv", "train": "none.csv"},
                "space": "glora",
                "search": {"trials": trials, "max_params": 2000, "score": score, "sampler": "random"},
                "baselines": ["lora"],
            }
        )
        folder = tmp_path / "run"
        make(folder, recipe)
        write_json(folder / "environment.json", {"python": "3.0", "command": ["glora-search", name]})
        run = Run(folder)
        names = list(STAGES)
        done = [] if until is None else ["supernet"] if until == "searching" else names[: names.index(until) + 1]
        space = make_space(blocks)
        figures = {"params": 300, "validation": 0.9, "validation_loss": 0.1, "seconds": 1.5}
        if "supernet" in done:
            write_json(folder / "supernet" / "adapter_config.json", {"space": space.to_dict()})
            write_json(folder / "supernet" / "history.json", log(200, probes))
            write_json(folder / "supernet" / "stage.json", {"metric": "accuracy", "seconds": 61.0})
        if "search" in done or until == "searching":
            study = search(
                space,
                evaluate,
                sampler="random",
                trials=trials,
                max_params=2000,
                score=score,
                storage=folder / "search" / "journal.log",
            )
            if "search" in done:
                trials_frame(study).to_csv(folder / "search" / "trials.csv", index=False)
                write_json(folder / "search" / "stage.json", {**summary(study), "seconds": 5.0})
        if "best" in done:
            write_json(folder / "best" / "stage.json", {**figures, "validation": 0.8})
        if "retrained" in done:
            write_json(folder / "retrained" / "stage.json", figures)
        if "merged" in done:
            write_json(folder / "merged" / "stage.json", {"source": "retrained", "validation": 0.9, "seconds": 1.0})
        baseline = {"name": label, "method": "lora", "params": 320, "validation": 0.85}
        if "baselines" in done:
            write_json(folder / "baselines" / "stage.json", {"list": [baseline], "skipped": [], "seconds": 200.0})
        if "test" in done:
            best = run.view.result("search")["best"]
            metrics = {
                "name": name,
                "metric": "accuracy",
                "budget": 2000,
                "rows": {"train": 64, "validation": 24, "test": 24},
                "baselines": [{**baseline, "test": 0.84}],
                "notes": [],
                "search": {"best": {"validation": best["validation"], "params": best["params"], "test": 0.7}},
                "final": {"source": "retrained", "params": 300, "validation": 0.9, "test": 0.88},
                "merged": {"validation": 0.9, "test": 0.88},
                "seconds": {},
            }
            write_json(folder / "metrics.json", metrics)
        return run

    return build


@pytest.fixture
def change_metrics():
    """``change_metrics(run, **keys)``: write other values into a run's metrics.json."""

    def change(run, **keys):
        path = run.folder / "metrics.json"
        write_json(path, {**json.loads(path.read_text()), **keys})

    return change
