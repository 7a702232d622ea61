"""The page of the study, from its csv: every table, picture and figure of docs/evidence.md, and the two claims."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from csv_rows import read_rows
from study_figures import forest, lines
from study_found import read_genomes
from study_plan import Study
from study_results import DEVELOPED, PLANNED_NEW, Comparison, Results
from study_statistics import FEWEST, TIE, difference, interval
from study_tables import by_method, by_set, coverage, curves, found, inside, winners

TEMPLATE = Path(__file__).parent / "study" / "evidence.md"
FAVOURED = (
    "Searched subnets race on the validation rows that they were searched on, which favours them\n"
    "([Finals](race.md#a-searched-subnets-lead-is-partly-selection))."
)
EARLIER = "lowest-loss.csv"
"""Rows of ours whose winner is the finalist with the lowest loss, as in versions before 0.1.8."""
REPLACED = "replaced.csv"
"""Earlier rows of runs that were repeated with a later version, each with why."""
REGRESSION = "stsb"
WAITING = "not enough rows yet"
Target = tuple[str, str, str]
"""What is wanted, whether it is ``missed``, `WAITING`, ``met``, or only ``measured``, and the figures."""


def targets(results: Results) -> Iterator[Target]:
    """What the study has to show, and whether it does."""
    product = {rows: results.ours(rows, "lora") for rows in (500, 2000)}
    for rows, wanted in ((500, 1.0), (2000, 0.5)):
        text = f"at {rows:,} rows, {wanted:g} or more points above the tuned LoRA on the mean, its interval above 0"
        yield _judged(text, product[rows], lambda one, wanted=wanted: (one.mean >= wanted and one.low > 0, str(one)))
    own = product[500]
    text = "a cost of at most 1.2 tuned LoRAs"
    said = f"{own.cost:.2f}; at least {own.cost_stopped:.2f}, if the LoRA's trainings ended as early as those of a race"
    yield _judged(text, own, lambda one: (own.cost <= 1.2, said))
    for rows, other in product.items():
        text = f"at {rows:,} rows, on no set below the tuned LoRA by more than {TIE} points"
        yield _judged(text, other, lambda one: (one.worst[1] >= -TIE, f"{one.worst[0]} {one.worst[1]:+.2f}"))
    lower = 1 - own.pairs.groupby("data")["loss"].mean()
    low, high = interval(lower.to_numpy())
    said = f"{lower.mean():.0%} below" + (f" [{low:.0%}, {high:.0%}]" if len(lower) >= FEWEST else "")
    text = "at 500 rows, a test loss at least 15% below the tuned LoRA's"
    yield _judged(text, own, lambda one: (lower.mean() >= 0.15, said))
    text = f"within {TIE} points of the LoRA of the size that is best on validation, at half of its parameters"
    other = results.any_size(500)
    size = f"at {other.size:.0%} of its parameters" if other.found is not None else ""
    yield _judged(text, other, lambda one: (one.mean >= -TIE and other.size <= 0.5, f"{one}, {size}"))
    text = "the structure: above both LoRA with the teacher and the race with random structures, the interval above 0"
    yield _judged(text, results.structure(), lambda one: (one.low > 0, str(one)))
    text = "the paper's method placed, with a fifth of its epochs and 300 of its 1,050 subnets"
    yield _judged(text, results.ours(500, "paper"), lambda one: (None, f"ours - paper: {one}"))


def _judged(text: str, own: Comparison, judge: Any) -> Target:
    if own.found is None:
        return text, WAITING, ""
    good, said = judge(own.found)
    if own.missing:
        return text, WAITING, f"so far {said}, with {len(own.pairs)} of {own.planned} pairs"
    return text, {True: "met", False: "missed", None: "measured"}[good], said


def sentence(own: Comparison, what: str) -> str:
    """What a comparison says; nothing where there is no pair."""
    one = own.found
    if one is None:
        return ""
    pairs = own.pairs
    p = f"Wilcoxon's p is {one.p:.2g}. " if math.isfinite(one.p) else ""
    missing = f" Pairs so far: {len(pairs)} of {own.planned}." if own.missing else ""
    return (
        f"**Ours - {what}: {one} points**, the mean of {count(one.sets, 'set')} with {count(one.seeds, 'seed')}: "
        f"{count(one.wins, 'win')}, {count(one.ties, 'tie')}, {count(one.losses, 'loss', 'losses')}; the lowest is "
        f"{one.worst[0]} with {one.worst[1]:+.2f}. {p}"
        f"Ours costs {pairs['trainings'].mean():.1f} LoRA trainings, the other {pairs['other_trainings'].mean():.1f}, "
        f"or at most {pairs['other_stopped'].mean():.1f} if its trainings ended as early as those of a race.{missing}"
    )


def count(number: int | str, one: str, many: str | None = None) -> str:
    """A number and what it counts."""
    return f"{number} {one if str(number) == '1' else many or one + 's'}"


def write_report(study: Study, folder: Path, page: Path) -> None:
    """Write the page and its pictures, and print it and the claims."""
    rows = read_rows(folder / "study.csv")
    results = {encoder: Results(study, rows, encoder) for encoder in study.encoders}
    first, *others = results.values()
    values = {"targets": _targets(first), "limits": _limits(list(results.values())), "there": coverage(results)}
    values |= _at(first, 500) | _at(first, 2000) | _parts(first)
    earlier = read_rows(folder / EARLIER)
    before = Results(study, with_earlier(rows, earlier), first.encoder)
    replaced = {
        (row["data"], row["seed"], row["why"]): Results(study, with_earlier(rows, [row]), first.encoder)
        for row in read_rows(folder / REPLACED)
    }
    values["robust"] = _robust(first, before, earlier, replaced)
    values["encoders"] = _paragraphs(
        sentence(own.ours(500, "lora"), f"the tuned LoRA, on {own.encoder} at 500 rows") for own in others
    )
    values["winners"] = winners(first.at(500, "ours"))
    wanted = (first.encoder, "500", str(first.budget), "ours")
    genomes = read_genomes(folder / "genomes.jsonl")
    own = [line for line in genomes if tuple(line[name] for name in ("encoder", "rows", "budget", "method")) == wanted]
    values |= {f"found_{name}": text for name, text in found(own).items()}
    values["inside"] = inside([line for line in own if line.get("finalists")])
    if values["inside"]:
        values["inside"] += f"\n\n{FAVOURED}"
    page.parent.mkdir(parents=True, exist_ok=True)
    product = first.ours(500, "lora")
    values |= _pictures(first, product, page)
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    text, empty = without_empty(template.safe_substitute(values))
    text = string.Template(text).substitute(status=_status(study, results, product, len(rows), empty))
    page.write_text(text, encoding="utf-8")
    print(text)
    print(product.claim("product"))
    print(first.structure().claim("structure"))


def without_empty(page: str) -> tuple[str, list[str]]:
    """A page without the sections that have no text, and what those were called."""
    kept: list[str] = []
    empty: list[str] = []
    inner: list[str] = []  # empty ones in the section that is next, from the end
    for part in reversed(re.split(r"(?m)^(?=##+ )", page)):
        heading, _, body = part.partition("\n")
        outer = not heading.startswith("### ")
        if body.strip() or not heading.startswith("##") or (outer and kept and kept[-1].startswith("### ")):
            kept.append(part)
            if outer:
                empty, inner = empty + inner, []
        elif outer:
            empty, inner = [*empty, heading.lstrip("# ")], []
        else:
            inner.append(heading.lstrip("# "))
    return re.sub(r"\n{3,}", "\n\n", "".join(reversed(kept))), empty[::-1]


def _paragraphs(parts: Any) -> str:
    return "\n\n".join(part for part in parts if part)


def _status(study: Study, results: dict[str, Results], product: Comparison, trainings: int, empty: list[str]) -> str:
    """What is there, and what is not."""
    cells = study.cells()
    done = sum(cell in results[cell.encoder].done for cell in cells)
    one = product.found
    said = f"**{done} of the {len(cells)} planned cells are finished**, from {count(f'{trainings:,}', 'training')}. "
    if one is not None:
        said += f"At 500 rows, ours and the tuned LoRA can be compared on {count(one.sets, 'set')} with "
        said += f"{count(one.seeds, 'seed')}, in {len(product.pairs)} of {count(product.planned, 'planned pair')}. "
    missing = f"No rows yet for these sections: {'; '.join(empty)}. " if empty else ""
    return (said + missing).strip()


def _targets(results: Results) -> str:
    """A line for each target, the missed ones first."""
    order = ("missed", WAITING, "met", "measured")
    wanted = sorted(targets(results), key=lambda target: order.index(target[1]))
    return "\n".join(f"- **{verdict}**: {text}" + (f" ({said})" if said else "") for text, verdict, said in wanted)


def _at(results: Results, rows: int) -> dict[str, str]:
    """What is said of a number of train rows."""
    picked, against = results.picked(rows), results.against_picked(rows)
    own = results.ours(rows, "lora")
    said = [sentence(own, "the tuned LoRA")]
    new = [name for name in dict.fromkeys(own.pairs["data"]) if name not in DEVELOPED]
    if new and len(new) < own.pairs["data"].nunique():
        said.append(
            sentence(
                own.on(new), f"the tuned LoRA, on the sets that the method was not developed on ({', '.join(new)})"
            )
        )
    if against.found is not None:
        fewest, most = picked["choices"].min(), picked["choices"].max()
        of = str(most) if fewest == most else f"{fewest} to {most}"
        said.append(sentence(against, f"the best of {of} tuned baselines on validation"))
    return {
        f"product_{rows}": _paragraphs(said),
        f"sets_{rows}": by_set(results.at(rows, "ours"), results.at(rows, "lora"), picked),
        f"methods_{rows}": by_method(results.chosen[results.chosen["rows"] == rows], results.budget),
    }


def with_earlier(rows: list[dict[str, str]], earlier: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of the csv, with earlier ones of the same cells in their places."""

    def cell(row: dict[str, str]) -> tuple[str, ...]:
        return tuple(row[name] for name in ("encoder", "data", "rows", "seed", "budget", "method"))

    replaced = {cell(row) for row in earlier}
    return [*(row for row in rows if cell(row) not in replaced), *earlier]


def _robust(
    results: Results, before: Results, earlier: list[dict[str, str]], replaced: Mapping[tuple[str, str, str], Results]
) -> str:
    """The product claim seen in other ways.

    Args:
        before: the same with earlier rows in place of those of the same cells.
        earlier: these rows.
        replaced: data, seed, and why -> the same with that earlier row.
    """
    own = results.ours(500, "lora")
    one = own.found
    if one is None or one.sets < 2:
        return ""
    said = [f"the hierarchical bootstrap's interval is [{one.resampled[0]:+.2f}, {one.resampled[1]:+.2f}]"]
    said.append(f"without any one set, the mean is {one.without[0]:+.2f} to {one.without[1]:+.2f}")
    rest = own.pairs[own.pairs["data"] != REGRESSION]
    if len(rest) < len(own.pairs) and (other := difference(rest)) is not None:
        said.append(f"without {REGRESSION}, the only regression, it is {other}")
    if (other := results.ours(500, "lora", by="validation").found) is not None:
        said.append(f"with LoRA's rate chosen by its validation score, not its loss, it is {other}")
    if (other := results.own_race(500).found) is not None:
        said.append(f"to the best uniform method without a teacher in the same runs, it is {other}")
    if (other := difference(own.pairs.replace({"data": {"trec-fine": "trec"}}))) is not None and other.sets < one.sets:
        said.append(f"with both TRECs, which have the same questions, as one set, it is {other}")
    known = {(row["data"], int(row["seed"])) for row in earlier}
    again = {(data, int(seed)) for data, seed, _ in replaced}
    once = own.pairs[[pair not in again for pair in _keys(own.pairs)]]
    same, new = (once[[(pair in known) == wanted for pair in _keys(once)]] for wanted in (True, False))
    old = before.ours(500, "lora").pairs
    old = old[[pair in set(_keys(same)) for pair in _keys(old)]]
    if len(same):
        said.append(
            f"on the {count(len(same), 'pair')} known before a subnet needed a margin to win, without those repeated "
            f"for other reasons, it is {difference(same)}; with the lowest loss as the winner, it was {difference(old)}"
        )
    if known and len(new):
        said.append(f"on the {count(len(new), 'pair')} made since, it is {difference(new)}")
    for (data, seed, why), with_row in replaced.items():
        pairs = with_row.ours(500, "lora").pairs
        if (other := difference(pairs)) is None or str(other) == str(one):
            continue
        fresh = difference(pairs[pairs["data"].isin(PLANNED_NEW)])
        also = f", and {fresh} on the {fresh.sets} sets that were planned as new to the method" if fresh else ""
        said.append(f"with the earlier row of {data}, seed {seed} ({why}), it was {other}{also}")
    return "\n".join(f"- {text[0].upper()}{text[1:]}." for text in said)


def _keys(pairs: Any) -> list[tuple[str, int]]:
    return list(zip(pairs["data"], pairs["seed"], strict=True))


def _parts(results: Results) -> dict[str, str]:
    """What is said of the parts of the method, and of other methods."""
    better = "the better on validation of LoRA with the supernet as teacher and the race with random structures"
    others = {"taught": "LoRA with the supernet as teacher", "random": "the race with random structures"}
    others |= {"untaught": "the same without its teacher", "paper": "the paper's method", "full": "full fine-tuning"}
    said = (sentence(results.ours(500, method), what) for method, what in others.items())
    smaller = (
        sentence(one, f"the tuned LoRA, ours with at most {budget:,} parameters and LoRA with {results.budget:,}")
        for budget, one in results.smaller(500).items()
    )
    any_size = results.any_size(500)
    what = f"the tuned LoRA of the best size on validation, ours with at most {results.budget:,} parameters"
    larger = sentence(any_size, what)
    if not larger:
        any_size = results.any_size(500, whole=False)
        larger = sentence(any_size, what.replace("best size", "best of the sizes finished so far"))
    if larger:
        larger += f" On the mean, ours has {any_size.size:.0%} of its parameters."
    return {
        "structure": sentence(results.structure(), better),
        "against": _paragraphs(said),
        "smaller": _paragraphs([larger, *smaller]),
    }


def _limits(results: list[Results]) -> str:
    """What an expert would ask of the cells."""
    diverged = [name for own in results for name in own.diverged()]
    border = [name for own in results for name in own.on_border()]
    return "\n".join(
        f"- {text}: {', '.join(names) or 'none'}."
        for text, names in (
            ("Cells all of whose trainings diverged; they are missing in the means", diverged),
            ("Cells whose best rate is on the border of the range after all extensions", border),
        )
    )


def _pictures(results: Results, product: Comparison, page: Path) -> dict[str, str]:
    """Write those that have rows; the links to them."""
    links = {"picture_sets": "", "picture_curves": ""}
    one = product.found
    if one is not None:
        mean = (one.mean, one.low, one.high) if one.sets > 1 else None
        page.with_name("evidence-sets.svg").write_text(forest(product.pairs, mean), encoding="utf-8")
        links["picture_sets"] = "![Ours minus the tuned LoRA, on each data set](evidence-sets.svg)"
    drawn, over = curves(results.chosen[results.chosen["rows"] == 500])
    if drawn:
        page.with_name("evidence-curves.svg").write_text(lines(drawn), encoding="utf-8")
        links["picture_curves"] = "\n\n".join(
            [
                "![Test score against adapter parameters](evidence-curves.svg)",
                f"The means are over {over} pairs of a set and a seed, which have every budget.",
            ]
        )
    return links
