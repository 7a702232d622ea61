"""The figures of the study that README and docs/race.md quote are those of docs/evidence.md, rounded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAD = r" points\*\*, the mean of .*? Ours costs (\S+) LoRA trainings, the other ([\d.]+)"
PRODUCT = r"\*\*Ours - the tuned LoRA: (\S+) \[(\S+), (\S+)\]" + LEAD
UNSEEN = r"on the sets that the method was not developed on \(.*?\): (\S+) \[(\S+), (\S+)\]" + LEAD
SMALLER = r"with at most 9,216 parameters and LoRA with 41,472: (\S+) \[(\S+), (\S+)\]" + LEAD
TAUGHT = r"\*\*Ours - LoRA with the supernet as teacher: (\S+) \[(\S+), (\S+)\]" + LEAD
RANDOM = r"\*\*Ours - the race with random structures: (\S+) \[(\S+), (\S+)\]" + LEAD
CLASSIFIED = r"Without stsb, the only regression, it is (\S+) \[(\S+), (\S+)\]"
UNTAUGHT = r"To the best uniform method without a teacher in the same runs, it is (\S+) \[(\S+), (\S+)\]"
EARLIER = r"Ours costs \S+ LoRA trainings, the other \S+, or at most (\S+) if its trainings ended"
LOSS = r"a test loss at least 15% below the tuned LoRA's \(so far (\d+)% below"
ENDED = (
    r"With the earlier row of stsb, seed 0 \(its trainings ended early\), it was (\S+) \[(\S+), (\S+)\], "
    r"and (\S+) \[(\S+), (\S+)\] on the 5 sets"
)


def found(pattern: str) -> list[str]:
    match = re.search(pattern, (ROOT / "docs" / "evidence.md").read_text())
    assert match is not None, pattern
    return list(match.groups())


def size(figure: str) -> str:
    """How a difference is quoted: without its sign, which the words have."""
    return f"<{abs(float(figure))}>"


def interval(low: str, high: str) -> str:
    """How an interval is quoted: with signs where it includes 0."""
    return f"<{low}> to <{high}>" if float(low) < 0 else f"{size(low)} to {size(high)}"


def lead(pattern: str) -> tuple[str, str, str, str]:
    """The mean difference, its interval, and the costs of both."""
    mean, low, high, cost, other = found(pattern)
    return size(mean), interval(low, high), cost, other


def quoted() -> dict[tuple[str, str], str]:
    """What a page has to say: page and subject -> the words; figures in ``<>`` are rounded to a tenth there."""
    mean, between, cost, other = lead(PRODUCT)
    unseen, smaller, taught, random = lead(UNSEEN), lead(SMALLER), lead(TAUGHT), lead(RANDOM)
    classified = found(CLASSIFIED)
    untaught = found(UNTAUGHT)
    ended = found(ENDED)
    before, planned = (f"{size(each[0])} ({interval(*each[1:])})" for each in (ended[:3], ended[3:]))
    without = f"{size(classified[0])} ({interval(*classified[1:])})"
    between_classified = interval(*classified[1:])
    loss = f"{found(LOSS)[0]}% lower"
    readme = {
        "the first page": f"the final adapter is {size(classified[0])} points better than a tuned LoRA (95% interval "
        f"{between_classified};",
        "classification": f"accuracy is {size(classified[0])} points higher (95% interval {between_classified}) than",
        "all sets": f"Over all thirteen sets, it is {mean} points too ({between}), with a test loss {loss}",
        "before the latest change": f"With the run before, the mean is {before}",
        "undeveloped sets": f"it is {unseen[0]} points higher ({unseen[1]})",
        "sets planned as new": f"as a fifth, as it was, {planned}",
        "the cost": f"A run costs {cost} LoRA trainings; tuning the LoRA costs {other}, but at most "
        f"{found(EARLIER)[0]} if",
        "a taught LoRA": f"ours is {taught[0]} points above a LoRA that learns from the supernet ({taught[1]})",
        "random subnets": f"{random[0]} points below the race with random subnets in place of searched ones "
        f"({random[1]})",
    }
    race = {
        "the lead": f"The score is {mean} points higher than the tuned LoRA's**, with a 95% interval of {between}",
        "the loss": f"The test loss is {loss}",
        "undeveloped sets": f"the method was not developed on, the mean is {unseen[0]} ({unseen[1]})",
        "before the latest change": f"With the second run, the mean of all sets is {before}; without STS-B, it is "
        f"{without}",
        "sets planned as new": f"with its second run, the mean of these five is {planned}",
        "the cost": f"A run costs {cost} LoRA trainings",
        "fewer parameters": f"Within 9,216 parameters, ours is {smaller[0]} points above the LoRA tuned at 41,472**",
        "fewer parameters, the interval": f"with an interval of {smaller[1]}, at {smaller[2]} LoRA trainings",
        "a taught LoRA": f"(ours is {taught[0]} points above it, with a 95% interval of {taught[1]}) and costs "
        f"{taught[3]} trainings, ours {taught[2]}",
        "random subnets": f"(ours is {random[0]} points below it, {random[1]};",
        "untaught methods": f"{size(untaught[0])} points above the best method without a teacher in the same runs "
        f"({interval(*untaught[1:])})",
    }
    pages = {"README.md": readme, "docs/race.md": race}
    return {(page, about): said for page, those in pages.items() for about, said in those.items()}


@pytest.mark.parametrize(
    ("page", "said"), [pytest.param(key[0], said, id=" ".join(key)) for key, said in quoted().items()]
)
def test_a_page_quotes_the_evidence(page, said):
    text = " ".join((ROOT / page).read_text().split())
    words, exact = re.split(r"<[^>]+>", said), re.findall(r"<([^>]+)>", said)
    figure = [r"([+-]\d+\.\d)" if value[0] in "+-" else r"\+?(\d+\.\d)" for value in exact]
    pattern = "".join(map(str.__add__, map(re.escape, words), [*figure, ""]))
    match = re.search(pattern, text)
    assert match is not None, pattern
    assert [float(value) for value in match.groups()] == pytest.approx([*map(float, exact)], abs=0.0501)
