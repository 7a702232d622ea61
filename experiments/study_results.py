"""What the study's csv says: what was chosen on validation, and ours against other methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from study_cells import UNFIT, is_done, losses_of
from study_plan import BASELINES, RUNS, Cell, Study
from study_statistics import COST, LOSS, PAIR, Difference, best_of, difference, paired, tuned

from glora_search.finals.rungs import SHARES
from glora_search.run.cost import SUPERNET_STEP

STRUCTURELESS = ("taught", "random")
"""What has the teacher or the race, and no searched structure."""
DEVELOPED = ("bbc-headlines", "sst2", "trec", "trec-fine", "tweet-emotion", "mpqa", "clinc150", "snips", "stsb")
"""The sets on which something of the method was chosen, see docs/race-history.md; both TRECs have equal questions."""
PLANNED_NEW = ("stsb", "wordnet", "election-tweets", "newsgroups", "reuters")
"""The sets that were planned as new to the method."""
NUMBERS = (
    "baseline_test",
    "rows",
    "seed",
    "budget",
    "rate",
    "params",
    "validation",
    LOSS,
    "test",
    "test_loss",
    "trainings",
    "seconds",
    "epochs",
    "best_epoch",
)


@dataclass(frozen=True)
class Comparison:
    """Ours against another method, or the best of several on validation.

    Attributes:
        pairs: of `study_statistics.paired`.
        planned: pairs of the plan, so many.
    """

    pairs: pd.DataFrame
    planned: int

    @property
    def found(self) -> Difference | None:
        """The mean of the pairs; None where there is none."""
        return difference(self.pairs)

    @property
    def missing(self) -> int:
        """Pairs of the plan that are not there."""
        return max(0, self.planned - len(self.pairs))

    @property
    def cost(self) -> float:
        """Of ours, in those of the other, by LoRA trainings."""
        return float(self.pairs["trainings"].mean() / self.pairs["other_trainings"].mean())

    @property
    def size(self) -> float:
        """The parameters of ours, in those of the other."""
        return float((self.pairs["params"] / self.pairs["other_params"]).mean())

    @property
    def cost_stopped(self) -> float:
        """The same, if the trainings of the other had also ended early."""
        return float(self.pairs["trainings"].mean() / self.pairs["other_stopped"].mean())

    def on(self, sets: Sequence[str]) -> Comparison:
        """The same on some of the sets."""
        own = self.pairs[self.pairs["data"].isin(sets)]
        return Comparison(own, len(own))

    def claim(self, name: str) -> str:
        """The line that the report ends with."""
        one = self.found
        if one is None:
            return f"{name} claim: not enough rows yet"
        cost = f"{self.pairs['trainings'].mean():.1f} LoRA trainings"
        return f"{name} claim: {one} points over {one.sets} sets x {one.seeds} seeds at cost {cost}"


class Results:
    """The finished cells of one encoder, at its primary budget unless a method says otherwise.

    Args:
        study: its settings.
        rows: of the csv.
        encoder: a key of the study's encoders.

    Attributes:
        chosen: of `study_statistics.tuned`, with what a method has cost alone. A cell that is not finished has no row:
            a LoRA with half of its rates would be no tuned LoRA.
        by_score: the same, where rates are chosen by the validation metric in place of the loss.
    """

    def __init__(self, study: Study, rows: Sequence[dict[str, str]], encoder: str) -> None:
        self.study, self.encoder, self.budget = study, encoder, study.primary_budget[encoder]
        self.cells: dict[Cell, list[dict[str, str]]] = {}
        for row in rows:
            if row["encoder"] == encoder:
                sizes = (int(row[name]) for name in ("rows", "seed", "budget"))
                self.cells.setdefault(Cell(encoder, row["data"], *sizes, row["method"]), []).append(row)
        self.done = {cell: own for cell, own in self.cells.items() if is_done(cell, own, study)}
        frame = pd.DataFrame([row for own in self.done.values() for row in own], columns=list(_columns(rows)))
        frame = frame.assign(**{name: [float(text or "nan") for text in frame[name]] for name in NUMBERS})
        frame = frame.astype(dict.fromkeys(("rows", "seed", "budget"), int)).assign(stopped=_stopped)
        self.chosen, self.by_score = (self._with_cost(tuned(frame, by=by)) for by in (LOSS, "validation"))

    def _with_cost(self, chosen: pd.DataFrame) -> pd.DataFrame:
        """The teacher of `taught` is an estimate; the unit of the paper's method is a training of the tuned LoRA."""
        chosen = chosen.copy()
        lora = chosen[(chosen["method"] == "lora") & (chosen["budget"] == self.budget)].set_index(PAIR)
        units = (lora["seconds"] / lora["trainings"]).reindex(pd.MultiIndex.from_frame(chosen[PAIR])).to_numpy()
        for name in ("trainings", "stopped"):
            chosen[name] = chosen[name].fillna(chosen["seconds"] / units)
        settings = self.study
        supernet = chosen["rows"].map(lambda n: SUPERNET_STEP * settings.supernet_epochs[n] / settings.epochs[n])
        share = np.where(chosen["method"] == "taught", supernet / chosen["trainings"], 0.0).astype(float)
        return chosen.assign(**{name: chosen[name] * (1 + share) for name in COST})

    def at(self, rows: int, method: str | None = None, *, by: str = LOSS) -> pd.DataFrame:
        """What was chosen at the primary budget, or of methods of one size, with so many train rows."""
        chosen = self.chosen if by == LOSS else self.by_score
        own = chosen[(chosen["rows"] == rows) & chosen["budget"].isin([self.budget, 0])]
        return own if method is None else own[own["method"] == method]

    def ours(self, rows: int, other: str, *, by: str = LOSS) -> Comparison:
        """Ours against a method.

        Args:
            by: what the rate of the other is chosen by, see `study_statistics.tuned`.
        """
        pairs = paired(self.at(rows, "ours"), self.at(rows, other, by=by))
        return Comparison(pairs, len(self._planned(rows, "ours") & self._planned(rows, other)))

    def smaller(self, rows: int) -> dict[int, Comparison]:
        """Budget below the primary one -> ours within it against the tuned LoRA at the primary one."""
        own = self.chosen[(self.chosen["rows"] == rows) & (self.chosen["method"] == "ours")]
        lora, wanted = self.at(rows, "lora"), self._planned(rows, "lora")
        found = {}
        for budget in sorted(set(own["budget"])):
            if budget < self.budget:
                planned = self._planned(rows, "ours", budget) & wanted
                found[budget] = Comparison(paired(own[own["budget"] == budget], lora), len(planned))
        return found

    def any_size(self, rows: int, *, whole: bool = True) -> Comparison:
        """Ours at the primary budget against LoRA at the budget that is best on validation.

        Args:
            whole: once all budgets are there; else, those pairs that have several.
        """
        sizes: dict[tuple[str, int], list[Cell]] = {}
        for cell in self.study.cells():
            if (cell.encoder, cell.rows, cell.method) == (self.encoder, rows, "lora"):
                sizes.setdefault((cell.data, cell.seed), []).append(cell)
        several = {pair: cells for pair, cells in sizes.items() if len(cells) > 1}
        done = {pair: sum(cell in self.done for cell in cells) for pair, cells in several.items()}
        there = [pair for pair, cells in several.items() if done[pair] >= (len(cells) if whole else 2)]
        best = best_of(self.chosen[self.chosen["rows"] == rows], ["lora"], "lora of any size")
        known = best[[pair in there for pair in zip(best["data"], best["seed"], strict=True)]] if there else best[:0]
        return Comparison(paired(self.at(rows, "ours"), known), len(several.keys() & self._planned(rows, "ours")))

    def own_race(self, rows: int) -> Comparison:
        """Ours against the best uniform method without a teacher of its own race."""
        ours = self.at(rows, "ours").dropna(subset="baseline_test")
        pairs = ours[PAIR].assign(points=100 * (ours["test"] - ours["baseline_test"]))
        return Comparison(pairs, len(self._planned(rows, "ours")))

    def picked(self, rows: int) -> pd.DataFrame:
        """In each pair with LoRA and another baseline, the one that is best on validation."""
        found = best_of(self.at(rows), BASELINES, "baseline")
        return found[found["choices"] > 1].merge(self.at(rows, "lora")[PAIR], on=PAIR)

    def against_picked(self, rows: int) -> Comparison:
        """Ours against the best baseline on validation; how many there are differs from pair to pair."""
        planned = [self._planned(rows, method) for method in BASELINES if method != "lora"]
        wanted = self._planned(rows, "ours") & self._planned(rows, "lora") & set().union(*planned)
        return Comparison(paired(self.at(rows, "ours"), self.picked(rows)), len(wanted))

    def structure(self) -> Comparison:
        """Ours against the better on validation of what has no searched structure, at 500 rows."""
        better = best_of(self.at(500), STRUCTURELESS, "structureless")
        wanted = set.intersection(*(self._planned(500, method) for method in ("ours", *STRUCTURELESS)))
        whole = better[better["choices"] == len(STRUCTURELESS)]
        return Comparison(paired(self.at(500, "ours"), whole), len(wanted))

    def _planned(self, rows: int, method: str, budget: int | None = None) -> set[tuple[str, int]]:
        """The sets and seeds of a method in the plan, at the primary budget unless another is given."""
        wanted, sizes = (self.encoder, rows, method), (self.budget if budget is None else budget, 0)
        cells = [cell for cell in self.study.cells() if (cell.encoder, cell.rows, cell.method) == wanted]
        return {(cell.data, cell.seed) for cell in cells if cell.budget in sizes}

    def diverged(self) -> list[str]:
        """Finished cells all of whose trainings diverged; those whose method does not fit are none."""
        known = set(self.chosen[_KEY].itertuples(index=False, name=None))
        unfit = {cell for cell, own in self.done.items() if any(row["winner"] == UNFIT for row in own)}
        return [cell.name for cell in self.done if _key(cell) not in known and cell not in unfit]

    def on_border(self) -> list[str]:
        """Finished cells whose best rate is still the lowest or the highest that was tried."""
        found = []
        for row in self.chosen.to_dict("records"):
            cell = Cell(*(row[name] for name in Cell.__dataclass_fields__))
            tried = losses_of(cell, self.done[cell], self.study.epochs[cell.rows])
            if cell.method not in RUNS and len(tried) > 1 and row["rate"] in (min(tried), max(tried)):
                found.append(cell.name)
        return found


def _stopped(rows: pd.DataFrame) -> pd.Series:
    """What trainings would have cost with the rule of finals: after the first rung, at twice the best step.

    One that has diverged ends with the first rung; runs have ended early already.
    """
    early = (2 * rows["best_epoch"].fillna(0) / rows["epochs"]).clip(SHARES[0], 1)
    return rows["trainings"] * early.where(~rows["method"].isin(RUNS), 1.0)


_KEY = list(Cell.__dataclass_fields__)


def _key(cell: Cell) -> tuple[Any, ...]:
    return tuple(getattr(cell, name) for name in _KEY)


def _columns(rows: Sequence[dict[str, str]]) -> Sequence[str]:
    return list(rows[0]) if rows else [*_KEY, "metric", "winner", *(name for name in NUMBERS if name not in _KEY)]
