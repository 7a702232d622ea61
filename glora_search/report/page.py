"""The page: what a run has so far, and for what is not there yet, the command that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from glora_search.files.text import write_text
from glora_search.finals.finalists import TUNED
from glora_search.report import charts
from glora_search.report.data import RunData, by_peft, is_lower_better, read_run
from glora_search.report.importance import MIN_TRIALS, gene_importance
from glora_search.run.folder import RunFolder
from glora_search.run.measures import Measure, measures
from glora_search.run.stages import STAGES
from glora_search.vocabulary import PATHS

MIN_AGREEMENT = 0.1
"""Below it, gene importance is not drawn."""
BUDGET_COLUMNS = (
    *("budget", "final", "adapter parameters", "validation", "test", "baseline validation", "baseline test"),
    "LoRA trainings",
)
FINALIST_COLUMNS = ("finalist", "adapter parameters", "steps", "best step", "validation", "validation loss")
CONFIG = {"responsive": True, "displayModeBar": False}


@dataclass(frozen=True)
class Chart:
    """A chart: its element's name, what it shows in a few words, and the figure."""

    name: str
    label: str
    figure: go.Figure

    @property
    def html(self) -> Markup:
        """The element and the script that draws in it; plotly escapes what the script holds."""
        return Markup(self.figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG, div_id=self.name))


@dataclass(frozen=True)
class Section:
    """A heading, its charts, and what to see in them; without charts, why there are none and what makes them."""

    title: str
    text: str
    charts: tuple[Chart, ...] = ()
    command: str = ""


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` from what a run folder holds, at any stage.

    Returns:
        The page's path.

    Raises:
        UserError: it is not a run folder.
    """
    run = RunFolder(folder)
    path = run.path / "report.html"
    write_text(path, render(read_run(run), budget_rows(run)))
    return path


def render(data: RunData, budgets: Sequence[tuple[str, ...]] = ()) -> str:
    """The page; whatever comes from the run is escaped.

    Args:
        budgets: see `budget_rows`.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html").render(
        name=data.metrics["name"],
        plotly=Markup(get_plotlyjs()),
        result=result_rows(data.metrics),
        result_columns=result_columns(data.metrics),
        samples=data.metrics.get("samples", []),
        budgets=budgets,
        budget_columns=BUDGET_COLUMNS,
        result_notes=_result_notes(data),
        finalists=finalist_rows(data),
        finalist_columns=(*FINALIST_COLUMNS, *(measure.name for measure in _answers(data))),
        race=_race(data),
        front=_front(data),
        progress=_progress(data),
        importance=_importance(data),
        supernet=_supernet(data),
        paths=PATHS,
        heat_map=_heat_map(data),
        heat_map_command=_next_command(data, "search"),
        files=data.files,
    )


def result_columns(metrics: dict[str, Any]) -> tuple[str, ...]:
    """The head of the final table; the chosen metric is the first one."""
    found = measures(metrics)
    shown = found[0].splits if len(found) == 1 else tuple(name for measure in found for name in measure.columns)
    return ("model", "adapter parameters", *shown)


def result_rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """The final table, see `result_columns`; of an unfinished run, what there is."""
    models = [(entry["name"], entry) for entry in metrics.get("references", ())]
    models += [(f"baseline: {entry['name']}{by_peft(entry)}", entry) for entry in metrics["baselines"]]
    if "search" in metrics:
        steps = metrics["search"].get("calibration_steps")
        trained = f" and {steps} steps" if steps else ""
        models.append((f"best subnet, inherited weights{trained}", metrics["search"]["best"]))
    if "final" in metrics:
        source = metrics["final"]["source"]
        label = "final subnet" if source in ("inherited", "retrained") else "final"
        models.append((f"{label} ({source})", metrics["final"]))
    if "merged" in metrics:
        models.append(("final, merged into the base model", {"params": "0 more", **metrics["merged"]}))
    places = [(measure, split) for measure in measures(metrics) for split in measure.splits]
    return [
        (name, _number(entry.get("params")), *(_score(entry, *place) for place in places)) for name, entry in models
    ]


def budget_rows(run: RunFolder) -> list[tuple[str, ...]]:
    """The trained adapters of a run with several budgets, one row a budget, see `BUDGET_COLUMNS`.

    Returns:
        One row a budget; none where the recipe has one, or none is done. The largest one's cost is that of the supernet
        too, which all share.
    """
    smaller = run.by_budget()
    runs = [*smaller.items(), (run.budget, run)]
    done = [(budget, None if one is None else one.done("test")) for budget, one in runs]
    rows: list[tuple[str, ...]] = []
    if not smaller or not any(metrics for _, metrics in done):
        return rows
    for budget, metrics in done:
        if metrics is None:
            rows.append((_number(budget), "not done yet", *["-"] * (len(BUDGET_COLUMNS) - 2)))
            continue
        final: dict[str, Any] = metrics["final"]
        ends = [one for one in metrics["baselines"] if not one.get("diverged")] or metrics["baselines"]
        baseline: dict[str, Any] = ends[-1] if ends else {}  # the tuned one, where there are finals
        chosen = measures(metrics)[0]
        scores = [_score(entry, chosen, split) for entry in (final, baseline) for split in ("validation", "test")]
        cost = metrics.get("lora_trainings")
        shown = "-" if cost is None else f"{cost:.1f}"
        rows.append((_number(metrics["budget"]), str(final["source"]), _number(final["params"]), *scores, shown))
    return rows


def finalist_rows(data: RunData) -> list[tuple[str, ...]]:
    """How the race ended, see `FINALIST_COLUMNS`, and what its teacher is worth; none without a race.

    The recipe's own metric is that of the winner and of the baseline; no other finalist is asked.
    """
    figures, chosen = data.metrics, _answers(data)
    asked = {one["name"].removesuffix(TUNED): one for one in figures["baselines"]}
    if "final" in figures:
        asked[figures["final"]["source"]] = figures["final"]
    columns = ("params", "steps", "best_step", "validation", "validation_loss")
    rows = [
        (
            row["name"],
            *(_number(row[key]) for key in columns),
            *(_number(measure.of(asked.get(row["name"], {}), "validation")) for measure in chosen),
        )
        for row in data.finals.get("finalists", ())
    ]
    teacher = data.finals.get("teacher")
    if teacher is not None:
        who = {"supernet": "subnets of the supernet", "finalists": "finalists that were trained alone"}
        role = "the teacher" if teacher.get("taught", True) else "a teacher too poor for the race"
        name = f"{role}: {teacher['members']} {who[teacher.get('by', 'supernet')]}"
        worth = (_number(teacher[key]) for key in ("validation", "validation_loss"))
        rows.append((name, "-", "-", "-", *worth, *("-" for _ in chosen)))
    return rows


def _answers(data: RunData) -> list[Measure]:
    """The recipe's own metric, if it has one that looks at validation rows."""
    return [one for one in measures(data.metrics)[:1] if one.named and "validation" in one.splits]


def _race(data: RunData) -> Section | None:
    curves = data.finals.get("curves")
    if not curves:
        return None
    text = (
        "The validation loss of each finalist. Half of them stop after a quarter of the steps, and half of the rest "
        "after a half. The winner has the thick line: the finalist with the lowest loss at any step, unless that is a "
        "searched subnet that leads by too little. Finalists with dashed lines have a teacher."
    )
    figure = charts.race_curves(data.finals["finalists"], curves)
    return Section("The race", text, (Chart("race", "Validation loss of each finalist", figure),))


def _score(entry: dict[str, Any], measure: Measure, split: str) -> str:
    return "diverged" if entry.get("diverged") else _number(measure.of(entry, split))


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return value if isinstance(value, str) else f"{value:,}"


def _result_notes(data: RunData) -> list[str]:
    metrics = data.metrics
    better = "lower" if is_lower_better(metrics) else "higher"
    budget = "no budget" if metrics["budget"] is None else f"at most {metrics['budget']:,} adapter parameters"
    notes = [f"Metric: {metrics['metric']}, {better} is better. Budget: {budget}."]
    for one in metrics.get("metrics", ()):
        rows = ", ".join(f"{count:,} {split}" for split, count in one["rows"].items()) or "its own"
        better = "lower" if one["direction"] == "minimize" else "higher"
        notes.append(f"Metric of answers: {one['name']}, {better} is better. Rows: {rows}.")
    if "rows" in metrics:
        rows = ", ".join(f"{count:,} {split}" for split, count in metrics["rows"].items())
        notes.append(f"Rows: {rows}. The test rows were read once, at the end.")
    times = [f"{command} {_duration(seconds)}" for command, seconds in data.seconds.items()]
    if times:
        notes.append(f"Done: {', '.join(times)}.")
    if "lora_trainings" in metrics:
        notes.append(f"Cost: as long as {metrics['lora_trainings']:.1f} LoRA trainings.")
    if "rows" not in metrics:
        run = RunFolder(data.folder)
        missing = [one.command for one in STAGES.values() if run.asks_for(one) and one.command not in data.seconds]
        notes.append(f"Not done yet: {', '.join(missing)}. The test column is filled by evaluate.")
    noted = metrics.get("notes", [])
    notes += [f"{note[:1].upper()}{note[1:]}." for note in metrics.get("fit", []) if note not in noted]
    return [*notes, *(f"Note: {note}." for note in noted)]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _next_command(data: RunData, stage: str) -> str:
    return RunFolder(data.folder).command(STAGES[stage].command)


def _front(data: RunData) -> Section:
    title = f"{data.metrics['metric']} against parameters".capitalize()
    if data.trials.empty and not data.metrics["baselines"]:
        return Section(title, "No subnet has been evaluated yet.", command=_next_command(data, "search"))
    up = "down" if is_lower_better(data.metrics) else "up"
    text = (
        f"Further left is smaller, further {up} is better. Each dot is a subnet that the search scored with the "
        "weights inherited from the supernet; the front joins the subnets that no other beats in both size and score. "
        "Squares are baselines, trained on their own. The diamond is the best subnet with its inherited weights, the "
        "star the final adapter. Validation scores are optimistic, because the model was selected on them."
    )
    return Section(title, text, (Chart("front", title, charts.metric_against_parameters(data)),))


def _progress(data: RunData) -> Section:
    title = "Best so far"
    if data.trials.empty:
        return Section(title, "No subnet has been evaluated yet.", command=_next_command(data, "search"))
    metric = str(data.metrics["metric"])
    drawn = [Chart("best-metric", f"Validation {metric} of each trial", charts.best_so_far(data, "value", metric))]
    text = f"The search optimises the validation {metric}. If the line still moves at the end, run more trials."
    if data.score == "loss":
        figure = charts.best_so_far(data, "user_attrs_loss", "loss")
        drawn.insert(0, Chart("best-loss", "Validation loss of each trial", figure))
        text = (
            "The search minimises the validation loss. If the line still falls at the end, run more trials. "
            f"Below is the {metric} of the same subnets; the one with the lowest loss need not have the best {metric}."
        )
    return Section(title, f"Each dot is a trial; the line is the best trial so far. {text}", tuple(drawn))


def _importance(data: RunData) -> Section:
    title = "What mattered"
    if len(data.trials) < MIN_TRIALS or data.genes.empty:
        text = f"Gene importance needs {MIN_TRIALS} evaluated subnets: there are {len(data.trials)}."
        return Section(title, text)
    shares, agreement = gene_importance(data.genes, data.trials["score"])
    if agreement < MIN_AGREEMENT:
        text = f"These {len(data.trials)} trials do not show which genes matter: fits to two halves of them disagree."
        return Section(title, text)
    count = shares["layer"].nunique()
    top = charts.TOP_LAYERS
    shown = "each layer" if count <= top else f"the {top} of {count} layers that explain most"
    score = data.score if data.score == "loss" else str(data.metrics["metric"])
    text = (
        f"How much of the variation in validation {score} is explained by the choices of each path and, below, by "
        f"those in {shown}. All shares add up to 100%. The score of each evaluated subnet is fitted as a sum of one "
        f"effect per choice; fits to two halves of the subnets correlate at {agreement:.2f}. This is a hint, not a "
        "proof: the search does not sample at random, and choices that spread together share the credit."
    )
    drawn = (
        Chart("importance-paths", "Share of each path", charts.path_importance(shares)),
        Chart("importance-layers", "Share of the layers", charts.layer_importance(shares)),
    )
    return Section(title, text, drawn)


def _supernet(data: RunData) -> Section:
    title = "Training of the supernet"
    if "loss" not in data.history:
        if STAGES["supernet"].command in data.seconds:
            return Section(title, "The training was shorter than supernet.training.logging_steps: no loss was logged.")
        return Section(title, "No training has been logged yet.", command=_next_command(data, "supernet"))
    text = "Training loss per optimizer step. Each step trains different subnets, so the thin line jumps. "
    if charts.probe_columns(data.history):
        text += (
            "The lines with markers are the validation losses of the probes: a few fixed subnets of different sizes "
            "and methods. If they still fall at the end, train for more epochs; if they rise, for fewer."
        )
    else:
        text += "Evaluation was off, so there are no probes: set supernet.training.eval_strategy=epoch in the recipe."
    return Section(title, text, (Chart("supernet", title, charts.supernet_curves(data.history)),))


@dataclass(frozen=True)
class Row:
    """A layer of the heat map: its name, whether a new block begins, and path -> (kind, what the cell says)."""

    layer: str
    begins: bool
    cells: dict[str, tuple[str, str]]


def _heat_map(data: RunData) -> list[Row]:
    rows: list[Row] = []
    names = charts.short_names(list(data.layers))
    block = None
    for layer, paths in data.layers.items():
        before, block = block, names[layer].partition(".")[0]
        words = {"lora": f"r {paths.r}", "constant": "const", "none": "·"}
        cells = {path: (kind, words.get(kind, kind)) for path, kind in paths.kinds.items()}
        rows.append(Row(names[layer], block != before, cells))
    return rows
