"""The page of the study, from its csv: every table, picture and figure of docs/evidence.md, and the two claims."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from csv_rows import read_rows
from study_cells import UNFIT, losses_of
from study_figures import forest, lines
from study_found import read_genomes
from study_plan import BASELINES, Study
from study_statistics import PAIR, TIE, Difference, best_of, difference, paired, tuned
from study_tables import NOTHING, by_method, by_set, curves, found, winners

TEMPLATE = Path(__file__).parent / "study" / "evidence.md"
STRUCTURELESS = ("taught", "random")
FIGURES = ("validation_loss", "validation", "test", "test_loss", "trainings", "seconds", "params", "rate")


@dataclass(frozen=True)
class Comparison:
    """Ours against another method, or the best of several on validation.

    Attributes:
        pairs: of `study_statistics.paired`.
        found: their mean; None where there is no pair.
        missing: pairs of the plan that are not there.
    """

    pairs: pd.DataFrame
    found: Difference | None
    missing: int

    @property
    def cost(self) -> float:
        """Of ours, in those of the other."""
        return float(self.pairs["trainings"].mean() / self.pairs["other_trainings"].mean())

    def claim(self, name: str) -> str:
        """The line that the report ends with."""
        if self.found is None:
            return f"{name} claim: not enough rows yet"
        what = f"{self.found.sets} sets x {self.found.seeds} seeds"
        return (
            f"{name} claim: {self.found} points over {what} at cost {self.pairs['trainings'].mean():.1f} LoRA trainings"
        )


class Results:
    """What the csv says, of one encoder, at its primary budget unless a method says otherwise."""

    def __init__(self, study: Study, table: Path, encoder: str) -> None:
        self.study, self.encoder, self.budget = study, encoder, study.primary_budget[encoder]
        self.rows = read_rows(table)
        frame = pd.DataFrame(
            self.rows, columns=list(self.rows[0]) if self.rows else [*PAIR, "budget", "method", *FIGURES]
        )
        frame = frame[frame["encoder"] == encoder] if self.rows else frame
        numbers = {*FIGURES, "rows", "seed", "budget", "baseline_test"} & set(frame)
        self.chosen = tuned(frame.assign(**{name: pd.to_numeric(frame[name]) for name in numbers}))

    def at(self, rows: int, method: str | None = None) -> pd.DataFrame:
        """What was chosen at the primary budget, or of methods of one size, with so many train rows."""
        own = self.chosen[(self.chosen["rows"] == rows) & self.chosen["budget"].isin([self.budget, 0])]
        return own if method is None else own[own["method"] == method]

    def ours(self, rows: int, other: str, *, picked: Sequence[str] = (), needs: Sequence[str] = ()) -> Comparison:
        """Ours against a method, or against the one of several that is best on validation.

        Args:
            picked: those several.
            needs: those of them without which a pair does not count; without `picked`, the method itself.
        """
        own = self.at(rows)
        against = best_of(own, picked, other) if picked else own[own["method"] == other]
        needs = needs if picked else [other]
        for method in needs:
            against = against.merge(own.loc[own["method"] == method, PAIR], on=PAIR)
        pairs = paired(self.at(rows, "ours"), against)
        planned = set.intersection(*(self._planned(rows, method) for method in ("ours", *needs)))
        return Comparison(pairs, difference(pairs), len(planned - set(zip(pairs["data"], pairs["seed"], strict=True))))

    def structure(self) -> Comparison:
        """Ours against the better of what has no searched structure, at 500 rows."""
        return self.ours(500, "structure", picked=STRUCTURELESS, needs=STRUCTURELESS)

    def _planned(self, rows: int, method: str) -> set[tuple[str, int]]:
        wanted = (self.encoder, rows, method)
        cells = [cell for cell in self.study.cells() if (cell.encoder, cell.rows, cell.method) == wanted]
        return {(cell.data, cell.seed) for cell in cells if cell.budget in (self.budget, 0)}

    def without_result(self) -> list[str]:
        """Cells all of whose trainings diverged; those whose method does not fit are none."""
        unfit = {
            tuple(row[name] for name in (*PAIR, "budget", "method")) for row in self.rows if row["winner"] == UNFIT
        }
        known = set(self.chosen[[*PAIR, "budget", "method"]].astype(str).itertuples(index=False, name=None))
        cells = [cell for cell in self.study.cells() if cell.encoder == self.encoder and losses_of(cell, self.rows)]
        return [cell.name for cell in cells if tuple(cell.key.values()) not in known | unfit]


def targets(results: Results) -> Iterator[tuple[str, str]]:
    """What the study has to show, and whether it does; a status is missed, met, or not enough rows yet."""
    product = {rows: results.ours(rows, "lora") for rows in (500, 2000)}
    structure = results.structure()
    paper = results.ours(500, "paper")
    for rows, wanted in ((500, 1.0), (2000, 0.5)):
        text = f"at {rows:,} rows, at least {wanted:g} points above the tuned LoRA on the mean, its interval above 0"
        yield text, _status(product[rows], lambda one, wanted=wanted: (one.mean >= wanted and one.low > 0, str(one)))
    own = product[500]
    yield "a cost of at most 1.2 tuned LoRAs", _status(own, lambda one: (own.cost <= 1.2, f"{own.cost:.2f}"))
    text = f"on no set below the tuned LoRA by more than {TIE} points, at 500 rows"
    yield text, _status(own, lambda one: (one.worst[1] >= -TIE, f"{one.worst[0]} {one.worst[1]:+.2f}"))
    text = "a test loss at least 15 % below the tuned LoRA's, at 500 rows"
    lower = 1 - own.pairs.groupby("data")["loss"].mean().mean() if own.found else 0
    yield text, _status(own, lambda one: (lower >= 0.15, f"{lower:.0%} below"))
    text = "the structure: above both LoRA with the teacher and the race with random structures, the interval above 0"
    yield text, _status(structure, lambda one: (one.low > 0, str(one)))
    yield "the paper's method reproduced and placed", _status(paper, lambda one: (True, f"ours is {one} above it"))


def _status(own: Comparison, judge: Any) -> str:
    if own.found is None:
        return "not enough rows yet"
    good, said = judge(own.found)
    if own.missing:
        return f"not enough rows yet; so far {said}, {own.missing} pairs of the plan are missing"
    return f"{'met' if good else 'missed'}: {said}"


def sentence(own: Comparison, what: str, rows: int) -> str:
    """What a comparison says."""
    one = own.found
    if one is None:
        return f"Against {what} at {rows:,} rows: not enough rows yet."
    p = f", Wilcoxon p = {one.p:.3f}" if one.p == one.p else ""
    return (
        f"At {rows:,} training rows, ours is {one} points above {what} on the mean of {one.sets} sets with {one.seeds} "
        f"seeds{p}: {one.wins} wins, {one.ties} ties, {one.losses} losses, the lowest {one.worst[0]} with "
        f"{one.worst[1]:+.2f}. The cost is {own.pairs['trainings'].mean():.1f} LoRA trainings "
        f"({own.pairs['minutes'].mean():.0f} minutes), and {own.pairs['other_trainings'].mean():.1f} "
        f"({own.pairs['other_minutes'].mean():.0f}) of the other."
    )


def write_report(study: Study, folder: Path, page: Path) -> None:
    """Write the page and its pictures, and print it and the claims."""
    results = {encoder: Results(study, folder / "study.csv", encoder) for encoder in study.encoders}
    first, *others = results.values()
    product = first.ours(500, "lora")
    values = {"targets": _targets(first), "counted": f"{len(first.rows):,}"}
    values |= _at(first, 500) | _at(first, 2000) | _against(first)
    said = [f"{own.encoder}: {sentence(own.ours(500, 'lora'), 'the tuned LoRA', 500)}" for own in others]
    values["encoders"] = "\n\n".join(said) or NOTHING
    values["winners"] = winners(first.at(500, "ours"))
    wanted = (first.encoder, "500", str(first.budget), "ours")
    genomes = read_genomes(folder / "genomes.jsonl")
    own = [line for line in genomes if tuple(line[name] for name in ("encoder", "rows", "budget", "method")) == wanted]
    values |= {f"found_{name}": text for name, text in found(own).items()}
    values["diverged"] = ", ".join(first.without_result()) or "none"
    page.parent.mkdir(parents=True, exist_ok=True)
    values |= _pictures(first, product, page)
    text = string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)
    page.write_text(text, encoding="utf-8")
    print(text)
    print(product.claim("product"))
    print(first.structure().claim("structure"))


def _targets(results: Results) -> str:
    """A line for each target, the missed ones first."""
    order = ("missed", "not enough", "met")
    found = sorted(targets(results), key=lambda one: [one[1].startswith(start) for start in order].index(True))
    parts = [(text, *re.split("[:;] ", status, maxsplit=1)) for text, status in found]
    return "\n".join(f"- **{verdict}**: {text}" + f" ({' '.join(said)})" * bool(said) for text, verdict, *said in parts)


def _at(results: Results, rows: int) -> dict[str, str]:
    """What is said of a number of train rows."""
    lora = results.ours(rows, "lora")
    best = results.ours(rows, "baseline", picked=BASELINES, needs=["lora"])
    said = [sentence(lora, "the tuned LoRA", rows)]
    said.append(sentence(best, "the baseline that is best on validation", rows))
    picked = best_of(results.at(rows), BASELINES, "baseline")
    return {
        f"product_{rows}": "\n\n".join(said),
        f"sets_{rows}": by_set(results.at(rows, "ours"), results.at(rows, "lora"), picked),
        f"methods_{rows}": by_method(results.chosen[results.chosen["rows"] == rows], results.budget),
    }


def _against(results: Results) -> dict[str, str]:
    """What is said of the parts of the method, and of other methods."""
    better = "the better on validation of LoRA with the supernet as teacher and the race with random structures"
    others = {"taught": "LoRA with the supernet as teacher", "random": "the race with random structures"}
    others |= {"untaught": "the same without its teacher", "paper": "the paper's method", "full": "full fine-tuning"}
    said = [sentence(results.ours(500, method), what, 500) for method, what in others.items()]
    return {"structure": sentence(results.structure(), better, 500), "against": "\n\n".join(said)}


def _pictures(results: Results, product: Comparison, page: Path) -> dict[str, str]:
    """Write those that have rows; the links to them."""
    links = {"picture_sets": NOTHING, "picture_curves": NOTHING}
    if product.found is not None:
        one = product.found
        page.with_name("evidence-sets.svg").write_text(forest(product.pairs, (one.mean, one.low, one.high)))
        links["picture_sets"] = "![Ours above the tuned LoRA, on each data set](evidence-sets.svg)"
    drawn = curves(results.chosen[results.chosen["rows"] == 500])
    if drawn:
        page.with_name("evidence-curves.svg").write_text(lines(drawn))
        links["picture_curves"] = "![Test score against adapter parameters](evidence-curves.svg)"
    return links
