"""What a run folder holds so far, as the tables that the charts are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from glora_search.files.text import read_json
from glora_search.run.folder import RunFolder
from glora_search.run.stages import STAGES
from glora_search.search.results import GENE, genome_of, ranked, trials_frame
from glora_search.space.bound import BoundSpace
from glora_search.vocabulary import LayerPaths


@dataclass(frozen=True)
class RunData:
    """A run at any stage. What is not there yet is empty.

    Attributes:
        folder: the run folder.
        metrics: as in metrics.json, as far as the stages that are done tell.
        score: what the search goes by: ``metric`` or ``loss``.
        trials: the trials that were scored on all rows, in their order, as `search.results.trials_frame` has them; of
            a search that is still going on, those of the run folder's journal. ``score`` is what the search goes by,
            so that lower is better; ``rank`` is a trial's place, 0 is the best.
        layers: layer -> paths of the best subnet so far.
        history: what the supernet's training logged, one row an entry.
        finals: what the race has left; empty without one.
        seconds: command -> how long its stage took, for the stages that are done.
        files: name -> text of what was asked and where it ran.
    """

    folder: Path
    metrics: dict[str, Any]
    score: str
    trials: pd.DataFrame
    layers: dict[str, LayerPaths]
    history: pd.DataFrame
    finals: dict[str, Any]
    seconds: dict[str, float]
    files: dict[str, str]

    @property
    def genes(self) -> pd.DataFrame:
        """The trials' genomes: one row a trial, one column a gene, its choice as text."""
        genes = self.trials.filter(regex=f"^{GENE}")
        return genes.rename(columns=lambda name: name.removeprefix(GENE)).astype(str)


def read_run(run: RunFolder) -> RunData:
    """Read a run folder; neither model nor data are loaded."""
    metrics, score = run.metrics(), run.recipe["search"].get("score", "loss")
    trials = ranked(_trials(run), score, str(metrics.get("direction", "maximize")))
    history = run.path / "supernet" / "history.json"
    return RunData(
        folder=run.path,
        metrics=metrics,
        score=score,
        trials=trials,
        layers=_layers(run, trials),
        history=pd.DataFrame(read_json(history) if history.is_file() else []),
        finals=run.done("finals") or {},
        seconds={command: seconds for command, seconds in run.seconds().items() if command != STAGES["test"].command},
        files={
            name: path.read_text(encoding="utf-8")
            for name in ("recipe.yaml", "space.yaml", "environment.json")
            if (path := run.path / name).is_file()
        },
    )


def is_lower_better(metrics: dict[str, Any]) -> bool:
    """Whether a lower value of the task's metric is better."""
    return bool(metrics.get("direction") == "minimize")


def by_peft(entry: dict[str, Any]) -> str:
    """What is said beside a baseline's name: LoRA is peft's own, the other uniform methods are subnets."""
    method = str(entry.get("method", "lora")).lower()
    return " (peft)" if method.startswith("lora") and "vectors" not in method else ""


def _trials(run: RunFolder) -> pd.DataFrame:
    if run.done("search") is not None and run.trials().is_file():
        return pd.read_csv(run.trials())
    study = run.study()
    return pd.DataFrame() if study is None else trials_frame(study)


def _layers(run: RunFolder, trials: pd.DataFrame) -> dict[str, LayerPaths]:
    config, found = run.path / "supernet" / "adapter_config.json", run.done("search")
    if not config.is_file() or (found is None and trials.empty):
        return {}
    space = BoundSpace.from_dict(read_json(config)["space"])
    if found is not None:
        return space.layer_paths(found["best"]["genome"])
    return space.layer_paths(genome_of(trials.iloc[int(trials["rank"].argmin())]))
