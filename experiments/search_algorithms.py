"""Compare search algorithms on one trained supernet: what each finds at what cost.

    python experiments/search_algorithms.py --data FOLDER [--minutes 5] [--jobs 2]

FOLDER has SST-2 as train.csv and validation.csv (columns text, label). MiniLM's supernet is trained once on 2,000 rows;
each algorithm then searches it with several seeds under two budgets. Every evaluation is kept by the genome's key, so
the command can be stopped at any time and started again, and a search that is repeated costs nothing. Cost is counted
in full passes over the validation rows; a partial evaluation counts by its share of rows.

Without --data the table and the picture are made anew from the committed curves.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "search_algorithms"
BUDGETS = (20_000, 60_000)
SEEDS = range(5)
ROWS = 48
ALGORITHMS: dict[str, dict[str, Any]] = {
    # name: sampler, trials, further arguments of search()
    "evolution (default)": {"sampler": "evolution", "trials": 400},
    "paper": {"sampler": "paper", "trials": 1000},
    "nsga2": {"sampler": "nsga2", "trials": 200, "objective": "front"},
    "tpe": {"sampler": "tpe", "trials": 200},
    "random": {"sampler": "random", "trials": 200},
    "evolution, no learning": {"sampler": "evolution", "trials": 200, "options": {"pool": 1}},
    "evolution, racing": {"sampler": "evolution", "trials": 300, "racing": True},
}
RECIPE = {
    "name": "search-algorithms",
    "seed": 0,
    "task": {"type": "text-classification", "model": "minilm", "max_length": 16},
    "space": "glora-ranks",
    "supernet": {
        "training": {
            "num_train_epochs": 10,
            "learning_rate": 3.0e-3,
            "per_device_train_batch_size": 16,
            "use_cpu": True,
        }
    },
    "search": {"trials": 10, "max_params": max(BUDGETS)},
}


class OutOfTime(BaseException):
    """Ends a search that goes on in the next call."""


class Cached:
    """The supernet's evaluator; what it has found is kept in a file by the genome's key."""

    def __init__(self, run: Any, path: Path, until: float) -> None:
        from glora_search.search import SubnetEvaluator

        task = run.context.task
        rows = np.random.default_rng(0).permutation(len(task.validation))[:ROWS]
        supernet = run.context.load("supernet")
        self.evaluator = SubnetEvaluator(supernet, task.validation.select(rows), task, batch_size=12)
        self.codec, self.path, self.until = run.context.space.codec, path, until
        self.known: dict[str, list[list[float]]] = {}
        for file in path.parent.glob("evaluations-*.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                for line in file.read_text().splitlines():
                    with contextlib.suppress(ValueError):  # cut off by a kill
                        key, legs = json.loads(line)
                        self.known[key] = legs

    def legs(self, genome: dict[str, Any]) -> Iterator[Any]:
        """After each part of the rows, see `SubnetEvaluator.legs`."""
        from glora_search.search import Evaluation
        from glora_search.space.codes import key_of

        key = key_of(self.codec.encode(genome))
        if key not in self.known:
            if time.monotonic() > self.until:
                raise OutOfTime
            found = [[e.metric, e.loss, e.share] for e in self.evaluator.legs(genome)]
            self.known[key] = found
            with self.path.open("a") as file:
                file.write(json.dumps([key, found]) + "\n")
        for metric, loss, share in self.known[key]:
            yield Evaluation(metric, loss, share)

    def __call__(self, genome: dict[str, Any]) -> Any:
        """The evaluation on all rows."""
        return list(self.legs(genome))[-1]


def search_one(evaluate: Cached, run: Any, name: str, budget: int, seed: int) -> list[tuple[float, float]]:
    """``(cost, best loss so far)`` after each trial."""
    from optuna.trial import TrialState

    from glora_search.search import search

    study = search(run.context.space, evaluate, max_params=budget, score="loss", seed=seed, **ALGORITHMS[name])
    cost, best, curve = 0.0, float("inf"), []
    for trial in study.trials:
        cost += 1.0 if trial.state == TrialState.COMPLETE else trial.user_attrs.get("partial", 1.0)
        if trial.state == TrialState.COMPLETE:
            best = min(best, trial.values[0])
        curve.append((round(cost, 3), round(best, 6)))
    return curve


def work(data: str, folder: str, job: int, jobs: int, minutes: float) -> None:
    """One process: its share of the searches."""
    import torch

    from glora_search.run.runner import Run

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    run = Run(Path(folder))
    evaluate = Cached(run, Path(folder) / f"evaluations-{job}.jsonl", time.monotonic() + 60 * minutes)
    ablations = [name for name in ALGORITHMS if ", " in name]
    tasks = [
        (name, budget, seed)
        for names in ([name for name in ALGORITHMS if name not in ablations], ablations)
        for seed in SEEDS
        for budget in BUDGETS
        for name in names
    ]
    for name, budget, seed in tasks:
        path = Path(folder) / "curves" / f"{name.replace(', ', '-').replace(' ', '-').strip('()')}-{budget}-{seed}.json"
        claim = path.with_suffix(".part")
        if path.exists():
            continue
        try:  # another process of this call may be at it
            path.parent.mkdir(parents=True, exist_ok=True)
            claim.open("x").close()
        except FileExistsError:
            continue
        try:
            curve = search_one(evaluate, run, name, budget, seed)
        except OutOfTime:
            return
        finally:
            claim.unlink()
        path.write_text(json.dumps({"algorithm": name, "budget": budget, "seed": seed, "curve": curve}))
        print(f"{name}, {budget:,}, seed {seed}: {curve[-1][1]:.4f} after {curve[-1][0]:.0f} passes", flush=True)


def collect(folder: Path) -> None:
    """Write the finished searches of a run folder to curves.csv: each improvement, and the end."""
    rows = []
    for path in sorted((folder / "curves").glob("*.json")):
        found = json.loads(path.read_text())
        best = float("inf")
        for number, (passes, loss) in enumerate(found["curve"]):
            if loss < best or number == len(found["curve"]) - 1:
                rows.append([found["budget"], found["algorithm"], found["seed"], passes, loss])
            best = min(best, loss)
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["budget", "algorithm", "seed", "passes", "best_validation_loss"], *rows])


def read_curves() -> dict[int, dict[str, list[np.ndarray]]]:
    """Budget -> algorithm -> for each seed ``[improvements, (passes, best loss)]``."""
    found: dict[int, dict[str, dict[str, list[list[float]]]]] = {}
    with (RESULTS / "curves.csv").open() as file:
        for row in csv.DictReader(file):
            seeds = found.setdefault(int(row["budget"]), {}).setdefault(row["algorithm"], {})
            seeds.setdefault(row["seed"], []).append([float(row["passes"]), float(row["best_validation_loss"])])
    return {b: {n: [np.array(c) for c in seeds.values()] for n, seeds in by.items()} for b, by in found.items()}


def at(curve: np.ndarray, passes: np.ndarray) -> np.ndarray:
    """The best loss after so many passes."""
    place = np.searchsorted(curve[:, 0], passes, side="right") - 1
    return np.where(place >= 0, curve[np.maximum(place, 0), 1], np.nan)


def report() -> None:
    """Write summary.csv and curves.svg from curves.csv."""
    curves = read_curves()
    rows = []
    for budget, by_name in sorted(curves.items()):
        goal = np.mean([curve[-1, 1] for curve in by_name["paper"]]) if "paper" in by_name else np.nan
        for name in (name for name in ALGORITHMS if name in by_name):
            seeds = by_name[name]
            row: dict[str, Any] = {"budget": budget, "algorithm": name, "seeds": len(seeds)}
            for passes in (50, 100, 200, 400, 1000):
                ended = passes > max(curve[-1, 0] for curve in seeds) + 1
                losses = [float(at(curve, np.array([passes]))[0]) for curve in seeds]
                row[f"loss_at_{passes}"] = "" if ended else round(float(np.mean(losses)), 4)
                row[f"sd_at_{passes}"] = (
                    "" if ended else round(float(np.std(losses, ddof=1 if len(losses) > 1 else 0)), 4)
                )
            reached = [curve[curve[:, 1] <= goal, 0] for curve in seeds]
            row["seeds_that_reach_the_papers_end"] = sum(len(found) > 0 for found in reached)
            passes_to = [found[0] for found in reached if len(found)]
            row["median_passes_to_it"] = round(float(np.median(passes_to))) if len(passes_to) == len(seeds) else ""
            rows.append(row)
            print(row)
    with (RESULTS / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (RESULTS / "curves.svg").write_text(draw(curves))


COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#999999", "#e69f00", "#56b4e9")


def draw(curves: dict[int, dict[str, list[np.ndarray]]]) -> str:
    """One panel a budget: the mean over the seeds, and a band from the best to the worst."""
    width, height, left, top = 440, 320, 60, 40
    parts = []
    for panel, (budget, by_name) in enumerate(sorted(curves.items())):
        grid = np.unique(np.round(np.geomspace(10, 1000, 120)))
        lines = {name: np.array([at(c, grid) for c in by_name[name]]) for name in ALGORITHMS if name in by_name}
        for name, seeds in lines.items():
            seeds[:, grid > max(curve[-1, 0] for curve in by_name[name]) + 1] = np.nan
        low, high = (f([f(v[~np.isnan(v)]) for v in lines.values()]) for f in (min, max))
        x0 = panel * (width + left + 20) + left

        def x(passes: float, x0: float = x0) -> float:
            return x0 + width * (np.log10(passes) - 1) / 2

        def y(loss: float, low: float = low, high: float = high) -> float:
            return top + height * (high - loss) / (high - low)

        parts.append(f'<text x="{x0}" y="{top - 14}">at most {budget:,} parameters</text>')
        parts.append(f'<rect x="{x0}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        for passes in (10, 20, 50, 100, 200, 500, 1000):
            parts.append(f'<text x="{x(passes):.0f}" y="{top + height + 18}" text-anchor="middle">{passes}</text>')
        for loss in np.linspace(low, high, 5):
            parts.append(f'<text x="{x0 - 6}" y="{y(loss) + 4:.0f}" text-anchor="end">{loss:.3f}</text>')
        for name, seeds in lines.items():
            colour = COLOURS[list(ALGORITHMS).index(name)]
            shown = ~np.isnan(seeds).any(0)
            steps = grid[shown]
            upper, lower, mean = (f(seeds[:, shown]) for f in (_max, _min, _mean))
            band = [*zip(steps, upper, strict=True), *reversed(list(zip(steps, lower, strict=True)))]
            outline = " ".join(f"{x(p):.1f},{y(v):.1f}" for p, v in band)
            line = " ".join(f"{x(p):.1f},{y(v):.1f}" for p, v in zip(steps, mean, strict=True))
            parts.append(f'<polygon points="{outline}" fill="{colour}" opacity="0.15"/>')
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for number, name in enumerate(ALGORITHMS):
        x1, y1 = left + number % 4 * 230, top + height + 50 + number // 4 * 20
        parts.append(f'<rect x="{x1}" y="{y1 - 9}" width="20" height="4" fill="{COLOURS[number]}"/>')
        parts.append(f'<text x="{x1 + 26}" y="{y1}">{name}</text>')
    label = "passes over the validation rows; best loss so far, mean and range over the seeds"
    parts.append(f'<text x="{left}" y="{top + height + 34}">{label}</text>')
    total = (len(curves) * (width + left + 20) + 20, top + height + 90)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total[0]}" height="{total[1]}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _max(seeds: np.ndarray) -> np.ndarray:
    return seeds.max(0)


def _min(seeds: np.ndarray) -> np.ndarray:
    return seeds.min(0)


def _mean(seeds: np.ndarray) -> np.ndarray:
    return seeds.mean(0)


def main() -> None:
    """Run what is not done yet, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with SST-2 as csv files")
    parser.add_argument("--run-dir", default="runs/search-algorithms")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; start again to go on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if arguments.data:
        from glora_search.recipe.schema import Recipe
        from glora_search.run.runner import Run

        files = {split: str(Path(arguments.data) / f"{split}.csv") for split in ("train", "validation")}
        data = {"source": "csv", **files, "max_train_rows": 2000}
        run = Run.create(Recipe.model_validate({**RECIPE, "data": data}), arguments.run_dir)
        run.do("supernet")
        context = multiprocessing.get_context("spawn")
        shares = [
            (arguments.data, str(run.folder), job, arguments.jobs, arguments.minutes) for job in range(arguments.jobs)
        ]
        for left in (run.folder / "curves").glob("*.part"):  # by a kill
            left.unlink()
        processes = [context.Process(target=work, args=share) for share in shares]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        collect(run.folder)
    if (RESULTS / "curves.csv").exists():
        report()


if __name__ == "__main__":
    main()
