"""The last stage: the test split, read once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from glora_search.finals.finalists import TAUGHT
from glora_search.progress import track
from glora_search.ranking import is_finite, rank_key
from glora_search.recipe.arguments import TRAINING_DEFAULTS
from glora_search.recipe.schema import Recipe
from glora_search.run.baselines import baseline_diverged
from glora_search.run.context import Context
from glora_search.run.cost import spent
from glora_search.run.folder import RunFolder, source_name
from glora_search.run.references import base_model, constants, no_better
from glora_search.run.retrain import retraining_diverged
from glora_search.run.scored_rows import rows_that_tell_little
from glora_search.run.scores import Scores
from glora_search.run.search import short_search
from glora_search.scoring import Batches, Evaluation, evaluate
from glora_search.search.trials import EXHAUSTED
from glora_search.tasks import Task

FEW_ROWS = 0.01
"""A larger share of rows that are cut or left out is noted."""
HIGH = 4
"""A supernet may need so many times the learning rate of the finals: docs/race.md."""


def evaluate_on_test(run: Context, folder: Path) -> dict[str, Any]:
    """Read the test split, this once, and score what was made; leaves ``metrics.json``."""
    started = time.perf_counter()
    view, task, recipe = run.view, run.task, run.recipe
    merged, found, best = view.result("merged"), view.result("search"), view.result("best")
    baselines = view.done("baselines") or {"list": [], "skipped": []}
    raced = view.done("finals") or {}
    tuned = raced.get("baseline")
    compared = {f"baselines/{entry['method']}": entry for entry in baselines["list"]}
    diverged = {name for name, entry in compared.items() if entry.get("diverged")}
    if tuned is not None:
        compared["finals/baseline"] = tuned
    source = merged["source"]
    figures = view.result(source)
    batches = Batches(task.test_split(), task.collator, recipe.search.batch_size)
    measured = Scores(run)

    adapters = [*(name for name in compared if name not in diverged), *dict.fromkeys(["best", source])]
    scored: dict[str, Evaluation] = {}
    with track("evaluate", len(adapters) + 2) as bar:
        for name in adapters:
            model = run.load(name)
            scored[name] = evaluate(model, batches, task)
            if name != "best" or name == source:
                measured.score(model, name, final=name == source)
            del model  # before the next one is loaded
            bar.advance()
        try:
            plain = run.placed(task.load_merged(str(run.folder / "merged")))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise view.merged_cannot_be_used(error) from error
        scored["merged"] = evaluate(plain, batches, task)
        measured.score(plain, "merged")
        samples = measured.samples(plain)
        del plain
        bar.advance()
        references = [*base_model(run, batches, measured), *constants(task, batches.dataset, measured)]
        bar.advance()
    scores: dict[str, float | None] = dict.fromkeys(diverged)
    scores |= {name: evaluation.metric for name, evaluation in scored.items()}
    also = {name: evaluation.also for name, evaluation in scored.items() if evaluation.also}
    steps, cost = recipe.search.calibration_steps, spent(view)
    metrics = {
        "name": recipe.name,
        "metric": task.metric,
        "direction": task.direction,
        **measured.facts(),
        "budget": recipe.search.max_params,
        "rows": {"train": len(task.train_rows), "validation": len(task.validation), "test": len(batches.dataset)},
        "references": references,
        "baselines": [{**entry, "test": scores[name], **measured.of(name)} for name, entry in compared.items()],
        "search": {
            **{key: found[key] for key in ("trials", "evaluated", "seconds_per_evaluation")},
            **({"calibration_steps": steps} if steps else {}),
            "best": {
                "validation": best["validation"],
                **{key: found["best"][key] for key in ("params", "origin")},
                "test": scores["best"],
                **measured.of("best"),
            },
        },
        "final": {
            "source": source_name(source, figures),
            "params": figures["params"],
            "validation": figures["validation"],
            "test": scores[source],
            **measured.of(source),
        },
        "merged": {
            "max_abs_logit_difference": merged["max_abs_logit_difference"],
            "validation": merged["validation"],
            "test": scores["merged"],
            **measured.of("merged"),
        },
        **({"samples": samples} if samples else {}),
        **({"also": also} if also else {}),
        **({} if cost is None else {"lora_trainings": round(cost, 2)}),
    }
    if fit := task.row_notes():
        metrics["fit"] = fit
    metrics["notes"] = [
        *baselines["skipped"],
        *no_baseline(run, tuned),
        *(baseline_diverged(run, compared[name]["method"]) for name in sorted(diverged)),
        *([retraining_diverged(run)] if (view.done("retrained") or {}).get("diverged") else []),
        *no_better(metrics),
        *measured.notes,
        *([] if EXHAUSTED in found else short_search(recipe, run.space, found["trials"])),
        *larger_subnets(run),
        *poor_teacher(raced, recipe),
        *rate_at_the_end(raced),
        *passed_over(raced),
        *notes(view, task, references),
        *rows_that_tell_little(task, batches.dataset),
        *task.row_notes(FEW_ROWS),
        *further_figures(also),
    ]
    measured.write_cards({name: compared[name] for name in compared if name not in diverged} | {source: figures})
    return {**metrics, "seconds": {**view.seconds(), "evaluate": round(time.perf_counter() - started, 1)}}


def no_baseline(run: Context, tuned: Mapping[str, Any] | None) -> list[str]:
    """Whether the finals had nothing to compare with."""
    if run.recipe.finals is None or tuned is not None:
        return []
    methods, budget = ", ".join(run.recipe.finals.methods), run.recipe.search.max_params
    if _of_methods(run.view.done("finals") or {}):
        why = f"every one of finals.methods has diverged. Lower {run.rate_to_lower('finals')}"
    elif budget is None:
        why = f"the model has no layer for any of finals.methods, {methods}"
    else:
        why = f"none of finals.methods, {methods}, fits the model and the budget of {budget:,}"
    return [f"the finals have no baseline: {why}"]


def _of_methods(finals: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The finalists that are no subnets, best first."""
    return [row for row in finals.get("finalists", ()) if not row["method"].startswith("subnet")]


def larger_subnets(run: Context) -> list[str]:
    """Whether larger subnets were used than the supernet was trained for, which earlier versions did not note."""
    trained, used = run.view.result("supernet").get("max_params"), run.recipe.supernet_max_params
    if trained is None or (used is not None and used <= trained):
        return []
    size = "of all sizes" if used is None else f"up to {used:,}"
    return [f"the supernet was trained for subnets of up to {trained:,} parameters, but used for subnets {size}"]


def poor_teacher(finals: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Whether the supernet was trained too little to teach."""
    teacher = finals.get("teacher")
    if teacher is None or recipe.finals is None:
        return []
    rate, lora = (
        float({**TRAINING_DEFAULTS, **section.training}["learning_rate"])
        for section in (recipe.supernet, recipe.finals)
    )
    higher = f"a higher supernet.training.learning_rate than {rate:g}, or " if rate < HIGH * lora else ""
    remedy = f"The supernet may need {higher}more epochs"
    if teacher.get("by") == "finalists":  # an earlier version did not note it
        count = teacher["members"]
        who = f"the mean of {count} finalists" if count > 1 else "the best finalist"
        return [f"the supernet predicts too badly to teach, so {who} without a teacher taught instead. {remedy}"]
    if teacher.get("taught", True):
        return []
    own, *best = (
        f"{row['validation_loss']:.4f}" if is_finite(row["validation_loss"]) else "not a number"
        for row in (teacher, *_of_methods(finals)[:1])  # as nobody taught, all of them raced alone
    )
    compared = f", and that of the best method alone is {best[0]}" if best else ""
    losses = f"its validation loss is {own}{compared}"
    return [f"the supernet is a poor teacher: {losses}; so the subnets raced without it. {remedy}"]


def rate_at_the_end(finals: Mapping[str, Any]) -> list[str]:
    """Whether a method's best learning rate is the highest or the lowest that was raced."""
    raced: dict[str, list[Mapping[str, Any]]] = {}
    for row in finals.get("finalists", ()):  # best first
        if not row["name"].endswith(TAUGHT) and "rate" in row:  # an earlier version did not note it
            raced.setdefault(row["method"], []).append(row)
    found = []
    for method, rows in raced.items():
        rates = sorted(row["rate"] for row in rows)
        best = next((row["rate"] for row in rows if is_finite(row["validation_loss"])), None)
        if len(rates) > 1 and best in (rates[0], rates[-1]):
            end, further = ("highest", "higher") if best == rates[-1] else ("lowest", "lower")
            found.append(
                f"the best learning rate of {method} is the {end} one tried, x{best:g}: {further} ones in "
                "finals.rates may be better"
            )
    return found


def passed_over(finals: Mapping[str, Any]) -> list[str]:
    """Whether a subnet has the lowest validation loss, by no more than the margin."""
    if "passed_over" not in finals:
        return []
    passed, winner = finals["passed_over"], finals["winner"]
    error = "unknown" if passed["standard_error"] is None else f"{passed['standard_error']:.4f}"
    return [
        f"{passed['name']} has the lowest validation loss, but leads {winner} by {passed['lead']:.4f} only (standard "
        f"error {error}), and was searched for on the same rows; so {winner} wins (finals.margin)"
    ]


def notes(view: RunFolder, task: Task, references: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the figures alone would not tell.

    Args:
        references: see `constants`.
    """
    found = view.result("best")
    said = []
    constant = next((one.get("validation") for one in references if one["name"] == task.constant), None)
    if constant is not None:
        ours, trivial = (rank_key(one, direction=task.direction) for one in (found["validation"], constant))
        if ours >= trivial:
            said.append(
                f"the search found nothing better than the {task.constant} ({constant:.4f} on validation): the "
                "supernet needs more epochs or another learning rate"
            )
    if found["params"] == 0:
        trained = "the head alone was trained" if task.outputs else "nothing was trained"
        said.append(f"the best subnet has no adapter parameters at all: {trained}")
    again, final = view.done("retrained"), view.final()
    if again is not None and not again.get("diverged") and final is not None and final[0] == "best":
        equal = again["validation"] == found["validation"]
        score = f"loss {again['validation_loss']:.4f}" if equal else f"{again['validation']:.4f}"
        said.append(f"retraining was worse on validation ({score}); the inherited weights are kept")
    return said


def further_figures(also: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What a task reports beside its metric, a line for each model."""
    return [
        f"{name} on test: {', '.join(f'{figure} {value:.4f}' for figure, value in figures.items())}"
        for name, figures in also.items()
    ]
