"""A language model or an image model by its accuracy: base model, LoRA with a tuned rate, HiRA, and a run with finals.

    python experiments/prepare_smollm2.py
    python experiments/prepare_arc_easy.py FOLDER
    python experiments/case_study.py --part all
    python experiments/case_study.py --part report
    python experiments/case_study.py --recipe smollm2-emotion       # the second one, by generated text
    python experiments/case_study.py --recipe mnist-dinov2          # images; prepare_mnist.py makes model and images

The recipe says everything that the methods share: rows, budget, and the training of its finals. LoRA and
HiRA are that training alone, evaluated as often; the best checkpoint on validation is the result. LoRA's rate is that
with the lowest validation loss; while it is the highest or lowest that was tried, a further one is tried. Test rows are
scored once a method and seed, after this choice.

Every finished training and every test is one line of a csv, appended at once; what is there is not done again, and a
run goes on where a kill left it. Start the same command until nothing is left.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pandas as pd
import torch
import transformers
from csv_rows import append_rows, read_rows
from peft import get_peft_model
from study_cells import next_rate
from study_training import KeepBest
from transformers import set_seed

from glora_search import Recipe, Run, SearchSpace
from glora_search.adapters.load import load_adapter
from glora_search.errors import invalid
from glora_search.finals.contest import own_factors
from glora_search.finals.finalists import Finalist
from glora_search.finals.rungs import whole
from glora_search.finals.training import finalist_args
from glora_search.metrics import Panel
from glora_search.metrics.base import CHANCE, CONSTANT
from glora_search.scoring import Batches, evaluate
from glora_search.tasks import make_task
from glora_search.training.loop import steps_for, train, training_arguments
from glora_search.training.uniform import uniform_methods

RESULTS = Path(__file__).parent / "results" / "case_study"
"""A folder for each recipe."""
RUNS = Path("runs/case_study")
RATES = {"lora": (0.5, 1.0, 2.0), "hira": (1.0,)}
"""Method -> learning rates, as factors of that of the recipe's finals."""
EXTENSIONS = 2
"""LoRA's best rate must not be the highest or lowest that was tried: so many further ones, at most, see to that."""
SIZED = ("lora", "hira", "ours")
"""The methods with an adapter."""
SHOWN = {
    CHANCE: CHANCE,
    CONSTANT: CONSTANT,
    "base": "base model",
    "lora": "LoRA, tuned",
    "hira": "HiRA",
    "ours": "a run with finals",
}
"""Method -> what the table calls it."""
COLUMNS = {
    "tests": ("method", "seed", "rate", "validation", "test", "note", "seconds", "threads"),
    "trainings": ("method", "seed", "rate", "winner", "params", "validation_loss", "adapter", "seconds", "threads"),
}
"""Table -> its columns."""


@dataclass(frozen=True)
class Study:
    """The results, and where what is not finished lies.

    Attributes:
        name: of the recipe.
        results: the folder of the csv files.
        runs: of adapters and run folders.
        overrides: of the recipe, as in ``--set``, to try the script on a few rows.
    """

    name: str
    results: Path
    runs: Path
    overrides: list[str]

    def recipe(self, seed: int) -> Recipe:
        """The recipe with a seed, which draws train and validation rows."""
        return Recipe.load(self.name, [*self.overrides, f"seed={seed}"])

    def rows(self, table: str, method: str, seed: int) -> list[dict[str, str]]:
        """What is finished."""
        key = (method, str(seed))
        return [row for row in read_rows(self.results / f"{table}.csv") if (row["method"], row["seed"]) == key]

    def says_something(self) -> bool:
        """Whether the base model has a head of its own: one that is drawn at random says nothing yet."""
        task: Any = make_task(self.recipe(0))
        task.model()
        return not task.draws

    def scored(self, method: str) -> bool:
        """Whether a method is tested with any seed."""
        return any(row["method"] == method for row in read_rows(self.results / "tests.csv"))

    @contextmanager
    def finishing(self, table: str, method: str, seed: int, rate: float | str = "") -> Iterator[dict[str, Any]]:
        """Append what the block puts into the row, with the time that it takes."""
        print(f"{time.strftime('%H:%M')} {table}: {method}, seed {seed} {rate}", flush=True)
        started, row = time.perf_counter(), {"method": method, "seed": seed, "rate": rate}
        yield row
        row = {"seconds": round(time.perf_counter() - started, 1), "threads": torch.get_num_threads(), **row}
        append_rows(self.results / f"{table}.csv", [row], COLUMNS[table])

    def train(self, method: str, seed: int) -> None:
        """Train a method at each of its rates."""
        task: Any = None
        while (rate := self.next_rate(method, seed)) is not None:
            task = task or make_task(self.recipe(seed))
            with self.finishing("trainings", method, seed, rate) as row:
                row |= train_alone(task, method, rate, self.runs / f"{method}-{rate:g}-{seed}")

    def next_rate(self, method: str, seed: int) -> float | None:
        """The learning rate that a method is to be trained at next; None where it is tuned."""
        done = {float(row["rate"]): float(row["validation_loss"]) for row in self.rows("trainings", method, seed)}
        return next_rate(done, RATES[method], EXTENSIONS)

    def run(self, seed: int) -> None:
        """A run of the recipe, up to its finals."""
        if self.rows("trainings", "ours", seed):
            return
        with self.finishing("trainings", "ours", seed) as row:
            run = Run.create(self.recipe(seed), self.runs / f"ours-{seed}")
            for stage in ("supernet", "search", "finals"):
                run.do(stage)
            found = run.view.result("finals")
            row |= {name: found[name] for name in ("winner", "params", "validation_loss")}
            row["adapter"] = str(run.folder / "finals")
            row["seconds"] = sum(run.view.seconds().values())  # also of the calls before a kill

    def test(self, method: str, seed: int) -> None:
        """Score the chosen training of a method, or the base model, on validation and test.

        Raises:
            UserError: another training was tested before a better one was there.
        """
        trained = self.rows("trainings", method, seed)
        best = min(trained, key=lambda row: float(row["validation_loss"]), default={})
        if tested := self.rows("tests", method, seed):
            if tested[0]["rate"] != best.get("rate", ""):
                allowed = f"rate {best['rate']}, whose validation loss is lower: remove the row, and test again"
                raise invalid(f"{self.results / 'tests.csv'}: {method}, seed {seed}", tested[0]["rate"], allowed)
            return
        with self.finishing("tests", method, seed, best.get("rate", "")) as row:
            task = make_task(self.recipe(seed))
            model = load_adapter(task.model(), Path(best["adapter"])) if best else task.model()
            row |= scores_of(task, model)

    def references(self, seed: int) -> None:
        """What looks at no question."""
        if self.rows("tests", CONSTANT, seed):
            return
        task = make_task(self.recipe(seed))
        panel = panel_of(task)
        if panel.metrics:
            found = {name: next(iter(own.values())) for name, own in panel.references().items()}
        else:
            own = {split: task.best_constant(rows) for split, rows in splits_of(task).items()}
            found = {CONSTANT: {split: one.metric for split, one in own.items() if one is not None}}
        for name, values in found.items():
            with self.finishing("tests", name, seed) as row:
                row |= values


def train_alone(task: Any, method: str, rate: float, folder: Path) -> dict[str, Any]:
    """Train a uniform method as the recipe's finals do; leaves the adapter of its best checkpoint."""
    recipe, base = task.recipe, task.model()
    space = SearchSpace.load(recipe.space).bind(base)
    (chosen,) = uniform_methods(space, recipe.search.max_params, [method])
    set_seed(recipe.seed)
    model = get_peft_model(base, chosen.config(task.task_type, task.modules_to_save))
    settings = {**recipe.finals.training, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"}
    args = training_arguments(settings, folder, recipe.seed)
    args = finalist_args(args, folder, rate=rate, steps=whole(steps_for(args, len(task.train))))
    kept = KeepBest(model)
    factors = own_factors(Finalist(chosen.name, chosen, chosen.params), recipe.lr_factors(recipe.finals))
    options = {"lr_factors": factors, "callbacks": [kept]}
    train(model, task, task.train, task.validation, args, description=f"{method} x{rate:g}", **options)
    if kept.best is None:
        return {"params": chosen.params, "validation_loss": math.inf}
    kept.restore()
    model.save_pretrained(folder)
    return {"params": chosen.params, "validation_loss": kept.best["eval_loss"], "adapter": str(folder)}


def scores_of(task: Any, model: Any) -> dict[str, Any]:
    """The recipe's metric, or the task's own one where it names none, on validation and test."""
    panel = panel_of(task)
    if panel.metrics:
        values, notes = panel.score(model)
        return {**next(iter(values.values())), "note": "; ".join(notes)}
    batches = {split: Batches(rows, task.collator, 64) for split, rows in splits_of(task).items()}
    return {split: evaluate(model, rows, task).metric for split, rows in batches.items()}


def splits_of(task: Any) -> dict[str, Any]:
    """The encoded rows that are scored."""
    return {"validation": task.validation, "test": task.test_split()}


def panel_of(task: Any) -> Panel:
    """The recipe's metric, on validation and test."""
    return Panel(task, {"validation": task.data.validation, "test": task.data.read_test()})


def report(results: Path) -> None:
    """Print the table of docs/language-models.md, and the differences to LoRA."""
    tests, trainings = (pd.read_csv(results / f"{table}.csv") for table in COLUMNS)
    found = tests.pivot(index="method", columns="seed", values="test").reindex(SHOWN).dropna(how="all")
    fixed = [name for name in found.index if name not in SIZED]
    found.loc[fixed] = found.loc[fixed].ffill(axis=1).bfill(axis=1)  # the test rows are those of all seeds
    print("| | parameters | " + " | ".join(f"seed {seed}" for seed in found) + " | mean |")
    print("| --- | --- | " + "--- | " * (len(found.columns) + 1))
    for method, values in found.iterrows():
        params = trainings.loc[trainings["method"] == method, "params"]
        cells = ["-" if math.isnan(value) else f"{value:.3f}" for value in [*values, values.mean()]]
        print(f"| {SHOWN[str(method)]} | {'-' if params.empty else f'{params.max():,}'} | {' | '.join(cells)} |")
    for method in ("base", "hira", "ours"):
        if {method, "lora"} <= set(found.index):
            gain = 100 * (found.loc[method] - found.loc["lora"]).dropna()
            error = f", standard error {gain.sem():.1f}" if len(gain) > 1 else ""
            print(f"\n{SHOWN[method]}: {gain.mean():+.1f} points beside LoRA{error}")
    for row in trainings[trainings["method"] == "ours"].itertuples():
        print(f"\nseed {row.seed}: {row.winner} won, {row.params:,} parameters")


def main() -> None:
    """Do what is left of a part, or print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["base", "lora", "hira", "ours", "all", "report"], default="all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", choices=["smollm2-arc", "smollm2-emotion", "mnist-dinov2"], default="smollm2-arc")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe, to try it")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    results = args.results / args.recipe
    study = Study(args.recipe, results, args.runs / args.recipe, args.set)
    if args.part == "report":
        report(results)
        return
    if args.part in ("base", "all") and not study.scored("base"):  # the test rows are the same for all seeds
        study.references(args.seeds[0])
        if study.says_something():
            study.test("base", args.seeds[0])
    for seed, method in itertools.product(args.seeds, SIZED):
        if args.part in (method, "all"):
            if method == "ours":
                study.run(seed)
            else:
                study.train(method, seed)
            study.test(method, seed)


if __name__ == "__main__":
    main()
