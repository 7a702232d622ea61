"""What a run folder holds so far, as the tables that the charts are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd

from glora_search.errors import UserError
from glora_search.files.text import read_json
from glora_search.run.stages import COMMANDS, STAGES
from glora_search.run.status import open_journal
from glora_search.search.results import trials_frame
from glora_search.search.trials import STUDY_NAME
from glora_search.space.bound import BoundSpace
from glora_search.vocabulary import LayerPaths

if TYPE_CHECKING:
    from glora_search.run.pipeline import Run

GENE = "params_"
"""How the columns of genes begin in a table of trials."""


@dataclass(frozen=True)
class RunData:
    """A run at any stage. What is not there yet is empty.

    Attributes:
        folder: the run folder.
        metrics: as in metrics.json, as far as the stages that are done tell.
        score: what the search goes by: ``metric`` or ``loss``.
        trials: the trials that were scored on all rows, in their order, as `search.report.trials_frame` has them; of
            a search that is still going on, those of the run folder's journal. ``score`` is what the search goes by,
            so that lower is better; ``rank`` is a trial's place, 0 is the best.
        layers: layer -> paths of the best subnet so far.
        history: what the supernet's training logged, one row an entry.
        seconds: command -> how long its stage took, for the stages that are done.
        files: name -> text of what was asked and where it ran.
    """

    folder: Path
    metrics: dict[str, Any]
    score: str
    trials: pd.DataFrame
    layers: dict[str, LayerPaths]
    history: pd.DataFrame
    seconds: dict[str, float]
    files: dict[str, str]

    @property
    def genes(self) -> pd.DataFrame:
        """The trials' genomes: one row a trial, one column a gene, its choice as text."""
        genes = self.trials.filter(regex=f"^{GENE}")
        return genes.rename(columns=lambda name: name.removeprefix(GENE)).astype(str)


def read_run(run: Run) -> RunData:
    """Read a run folder; neither model nor data are loaded."""
    metrics = run.done("test") or _metrics_so_far(run)
    score = run.recipe.search.score
    trials = _ranked(_trials(run), score, is_lower_better(metrics))
    history = run.folder / "supernet" / "history.json"
    return RunData(
        folder=run.folder,
        metrics=metrics,
        score=score,
        trials=trials,
        layers=_layers(run, trials),
        history=pd.DataFrame(read_json(history) if history.is_file() else []),
        seconds={COMMANDS[stage]: done["seconds"] for stage in STAGES[:-1] if (done := run.done(stage)) is not None},
        files={
            name: path.read_text(encoding="utf-8")
            for name in ("recipe.yaml", "space.yaml", "environment.json")
            if (path := run.folder / name).is_file()
        },
    )


def is_lower_better(metrics: dict[str, Any]) -> bool:
    """Whether a lower value of the task's metric is better."""
    return bool(metrics.get("direction") == "minimize")


def _metrics_so_far(run: Run) -> dict[str, Any]:
    """What metrics.json will say, without the test split's part."""
    supernet = run.done("supernet") or {}
    metrics: dict[str, Any] = {
        "name": run.recipe.name,
        "metric": supernet.get("metric", "metric"),
        "direction": supernet.get("direction", "maximize"),
        "budget": run.recipe.search.max_params,
        "baselines": (run.done("baselines") or {"list": []})["list"],
    }
    found = run.done("search")
    if found is not None:
        exported = run.done("best") or {}
        steps = run.recipe.search.calibration_steps
        best = {**found["best"], **{key: exported[key] for key in ("validation",) if key in exported}}
        metrics["search"] = {"calibration_steps": steps, "best": best}
    if run.done("retrained") is not None:
        source, figures = run.final()
        metrics["final"] = {"source": {"best": "inherited"}.get(source, source), **figures}
    merged = run.done("merged")
    if merged is not None:
        metrics["merged"] = merged
    return metrics


def _trials(run: Run) -> pd.DataFrame:
    table = run.folder / "search" / "trials.csv"
    if run.done("search") is not None and table.is_file():
        return pd.read_csv(table)
    try:
        study = optuna.load_study(study_name=STUDY_NAME, storage=open_journal(run.folder))
    except (UserError, KeyError):  # no journal, or no study in it yet
        return pd.DataFrame()
    return trials_frame(study)


def _ranked(trials: pd.DataFrame, score: str, lower: bool) -> pd.DataFrame:
    """The trials with a value, each with its rank: by the score, then the loss, then the earlier one."""
    if trials.empty:
        return trials
    scored = trials[trials["state"] == "COMPLETE"].reset_index(drop=True)
    if scored.empty:
        return scored
    loss = scored["user_attrs_loss"]
    values = loss if score == "loss" else scored["value"] * (1 if lower else -1)
    rank = np.empty(len(scored), dtype=int)
    rank[np.lexsort((scored["number"], loss, values))] = np.arange(len(scored))
    return pd.concat([scored, pd.DataFrame({"score": values, "rank": rank})], axis="columns")


def _layers(run: Run, trials: pd.DataFrame) -> dict[str, LayerPaths]:
    config, found = run.folder / "supernet" / "adapter_config.json", run.done("search")
    if not config.is_file() or (found is None and trials.empty):
        return {}
    space = BoundSpace.from_dict(read_json(config)["space"])
    if found is not None:
        return space.layer_paths(found["best"]["genome"])
    best = trials.iloc[int(trials["rank"].argmin())]
    return space.layer_paths({gene.name: _plain(best[f"{GENE}{gene.name}"]) for gene in space.genes})


def _plain(choice: Any) -> Any:
    """A choice as the genome has it: a kind, or a rank that pandas made a number of numpy's."""
    return choice if isinstance(choice, str) else int(choice)
