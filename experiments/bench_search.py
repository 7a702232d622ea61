"""What the search engine costs: overhead a trial, workers, storages, and evaluation beside the bare model.

    python experiments/bench_search.py                                # all parts; a few minutes
    python experiments/bench_search.py --only overhead
    python experiments/bench_search.py --only storages --postgresql URL

Each part writes a csv file to experiments/results/bench_search/, with the versions and the machine beside it.

overhead    1,000 trials of 448 genes with the default journal, by hundreds, beside the plain ways of using Optuna
            (ask, one suggest a gene, tell; fewer trials, since they take so long)
workers     trials a second of 1 and 4 processes whose evaluator waits 0.25 s
storages    a trial of 40 genes and one of 448: how long its records take, and how many a second 4 workers get through
            that evaluate nothing
evaluation  a subnet's evaluation, folding included, beside the bare model's forward over the same tokens: MiniLM and
            the quickstart's validation rows, and as many as a larger validation split has (taken from its train rows)
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from glora_search.files.text import write_json
from glora_search.run.making import environment
from glora_search.search import Evaluation, open_storage, search
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import SpaceLayer

RESULTS = Path(__file__).parent / "results" / "bench_search"
KINDS = {"A_B": ["lora", "vector", "constant", "none"]}


def make_space(genes: int) -> BoundSpace:
    """A space of so many genes: a kind and a rank for each of the linear layers of a Llama-like model."""
    names = {"q": (512, 512), "k": (512, 128), "v": (512, 128), "o": (512, 512), "gate": (512, 1024), "up": (512, 1024)}
    names |= {"down": (1024, 512)}
    shapes = [(f"layers.{block}.{name}_proj", *shape) for block in range(99) for name, shape in names.items()]
    return BoundSpace([SpaceLayer(*shape, False, KINDS, [2, 4, 8]) for shape in shapes[: genes // 2]])


class Landscape:
    """A made-up loss: each gene has an effect of its own; nothing is to be learned from it but the engine's cost."""

    def __init__(self, space: BoundSpace, wait: float = 0.0) -> None:
        effects = np.random.default_rng(0).gamma(0.5, 1.0, (len(space.genes), 8))
        self.space, self.effects, self.wait = space, effects, wait

    def __call__(self, genome: dict[str, Any]) -> Evaluation:
        time.sleep(self.wait)
        genes = self.space.genes
        chosen = [gene.choices.index(genome[gene.name]) for gene in genes]
        loss = float(self.effects[np.arange(len(genes)), chosen].sum())
        return Evaluation(metric=1 / (1 + loss), loss=loss)


def budget_of(space: BoundSpace) -> int:
    """A tenth of the largest subnet."""
    return space.params(space.largest) // 10


def overhead(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds a trial that are not the evaluation's."""
    space = make_space(448)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for sampler, trials in (("evolution", 1000), ("random", 300), ("nsga2", 300), ("paper", 200)):
            ends: list[tuple[float, float]] = []
            started = (time.perf_counter(), time.process_time())

            def note(study: Any, trial: Any, ends: list[tuple[float, float]] = ends) -> None:
                ends.append((time.perf_counter(), time.process_time()))

            search(
                space,
                Landscape(space),
                sampler=sampler,
                trials=trials,
                max_params=budget_of(space),
                storage=Path(folder) / f"{sampler}.log",
                on_trial=note,
            )
            ends = [started, *ends]
            for first in range(0, trials, 100):
                wall, cpu = ((ends[first + 100][clock] - ends[first][clock]) * 10 for clock in (0, 1))
                rows.append(_row(f"glora-search {sampler}", "journal", first + 1, first + 100, wall, cpu))
        plain: list[tuple[str, Any, int]] = [
            ("memory", None, 30),
            ("journal", optuna.storages.JournalStorage(
                optuna.storages.journal.JournalFileBackend(f"{folder}/plain.log")), 30),
            ("sqlite", f"sqlite:///{folder}/plain.db", 10),
        ]  # fmt: skip
        if arguments.postgresql:
            plain.append(("postgresql", open_storage(arguments.postgresql), 10))
        for name, storage, trials in plain:
            for sampler_name, sampler in (
                ("random", optuna.samplers.RandomSampler(seed=0)),
                ("nsga2", optuna.samplers.NSGAIISampler(seed=0)),
            ):
                study = optuna.create_study(storage=storage, sampler=sampler)
                landscape = Landscape(space)
                started = (time.perf_counter(), time.process_time())
                for _ in range(trials):
                    trial = study.ask()
                    genome = {gene.name: trial.suggest_categorical(gene.name, gene.choices) for gene in space.genes}
                    study.tell(trial, landscape(genome).loss)
                wall, cpu = (
                    (now - before) / trials * 1000
                    for now, before in zip((time.perf_counter(), time.process_time()), started, strict=True)
                )
                rows.append(_row(f"optuna {sampler_name}", name, 1, trials, wall, cpu))
    return rows


def _row(engine: str, storage: str, first: int, last: int, wall: float, cpu: float) -> dict[str, Any]:
    print(f"{engine}, {storage}, trials {first} to {last}: {wall:.1f} ms a trial", flush=True)
    return {
        "engine": engine, "storage": storage, "genes": 448, "first_trial": first, "last_trial": last,
        "ms_a_trial": round(wall, 2), "cpu_ms_a_trial": round(cpu, 2),
    }  # fmt: skip


def _worker(where: Any, name: str, genes: int, trials: int, wait: float, ready: Any) -> None:
    space = make_space(genes)
    storage = open_storage(where)
    ready.wait()
    search(
        space, Landscape(space, wait), sampler="random", trials=trials, max_params=budget_of(space), storage=storage,
        study_name=name,
    )  # fmt: skip


def _rate(where: Any, genes: int, workers: int, trials: int, wait: float) -> float:
    """Trials a second of several processes, from when all are there."""
    context, name = multiprocessing.get_context("fork"), f"bench-{time.time_ns()}"
    ready = context.Barrier(workers + 1)
    processes = [
        context.Process(target=_worker, args=(where, name, genes, trials, wait, ready)) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    ready.wait()
    started = time.perf_counter()
    for process in processes:
        process.join()
    return trials / (time.perf_counter() - started)


def workers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Trials a second with an evaluator that waits."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, where in _storages(arguments, Path(folder)).items():
            for count in (1, 4):
                rate = _rate(where, 40, count, 30 * count, 0.25)
                base = rows[-1]["trials_a_second"] if count > 1 else rate
                rows.append(
                    {"storage": name, "workers": count, "wait_seconds": 0.25, "genes": 40,
                     "trials_a_second": round(rate, 3), "times_one_worker": round(rate / base, 2)}
                )  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def _storages(arguments: argparse.Namespace, folder: Path) -> dict[str, str]:
    found = {"journal": str(folder / f"journal-{time.time_ns()}.log")}
    if arguments.postgresql:
        open_storage(arguments.postgresql)
        found["postgresql"] = arguments.postgresql
    if arguments.grpc:
        found["grpc proxy, postgresql"] = arguments.grpc
    return found


def storages(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What the records of a trial take, and how many a second a storage takes from 4 workers."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for genes, trials in ((40, 60), (448, 12)):
            for name, where in _storages(arguments, Path(folder)).items():
                alone, together = (_rate(where, genes, count, trials, 0.0) for count in (1, 4))
                rows.append(
                    {"storage": name, "genes": genes, "ms_a_trial_one_worker": round(1000 / alone, 1),
                     "trials_a_second_4_workers": round(together, 2)}
                )  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def evaluation(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of an evaluation and of the bare model's forward over the same batches, in turns."""
    import torch
    from peft import get_peft_model

    from glora_search import SearchSpace, SupernetConfig
    from glora_search.recipe.schema import Recipe
    from glora_search.tasks.text_classification import TextClassification

    task = TextClassification(Recipe.load("quickstart"))
    bare = task.model()
    rows: list[dict[str, Any]] = []
    for name in ("glora", "glora-ranks"):
        base = task.model()
        space = SearchSpace.load(name).bind(base)
        supernet = get_peft_model(base, SupernetConfig(space=space, task_type=task.task_type))
        with torch.no_grad():
            for key, parameter in supernet.named_parameters():
                if "supernet_" in key:
                    parameter.normal_(std=0.01)
        for data in (task.validation, task.train.select(range(1000))):
            rows.append({"space": name, **evaluation_beside_bare(supernet, bare, data, task, arguments.repeats)})
            print(rows[-1], flush=True)
    return rows


def evaluation_beside_bare(supernet: Any, bare: Any, data: Any, task: Any, repeats: int) -> dict[str, Any]:
    """Evaluate subnets of 60,000 parameters in turns with the bare model's forward."""
    import torch

    from glora_search.scoring import logits_of
    from glora_search.search import SubnetEvaluator

    evaluate = SubnetEvaluator(supernet, data, task)
    rng = np.random.default_rng(0)
    times: list[tuple[float, float]] = []
    for _ in range(repeats + 1):
        genome = supernet.space.resize(supernet.space.sample(rng), 60_000, rng)
        started = time.perf_counter()
        evaluate(genome)
        between = time.perf_counter()
        logits_of(bare, evaluate.batches)
        times.append((between - started, time.perf_counter() - between))
    own, plain = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return {
        "rows": len(data),
        "tokens": sum(batch["input_ids"].numel() for batch in evaluate.batches),
        "threads": torch.get_num_threads(),
        "evaluation_seconds": round(own, 4),
        "bare_seconds": round(plain, 4),
        "ratio": round(statistics.median(e / b for e, b in times[1:]), 4),
    }


def main() -> None:
    """Run the parts and write their csv files."""
    parts = {"overhead": overhead, "workers": workers, "storages": storages, "evaluation": evaluation}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=parts, nargs="+", default=list(parts))
    parser.add_argument("--postgresql", help="URL of an empty database")
    parser.add_argument("--grpc", help="grpc://host:port of optuna.storages.run_grpc_proxy_server before it")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in arguments.only:
        print(f"-- {name}", flush=True)
        rows = parts[name](arguments)
        RESULTS.mkdir(parents=True, exist_ok=True)
        with (RESULTS / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        load = round(os.getloadavg()[0], 2)
        write_json(RESULTS / f"{name}.json", {**environment(), "load_average_at_the_end": load})


if __name__ == "__main__":
    main()
