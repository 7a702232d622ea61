"""The measures by which a run's models are told apart, as ``metrics.json`` has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """A metric of a run.

    Attributes:
        name: what tables call it.
        direction: whether a higher or a lower value is better.
        named: whether the recipe names it; else it is the task's, which the search knows.
        splits: those on which it was scored; one that has rows of its own counts as test.
    """

    name: str
    direction: str
    named: bool
    splits: tuple[str, ...] = ("validation", "test")

    def of(self, entry: Mapping[str, Any], split: str) -> float | None:
        """A model's value; None where there is none."""
        values = entry.get("metrics", {}).get(self.name, {}) if self.named else entry
        found = values.get(split)
        return None if found is None else float(found)

    @property
    def columns(self) -> list[str]:
        """Of a table with several measures."""
        return [self.name] if self.splits == ("test",) else [f"{self.name}, {split}" for split in self.splits]


def measures(metrics: Mapping[str, Any]) -> list[Measure]:
    """The chosen metric first, which is the first that the recipe names, and last the task's.

    Args:
        metrics: as in ``metrics.json``, also of a run that is not finished.
    """
    named = [
        Measure(one["name"], one["direction"], named=True, splits=tuple(one["rows"]) or ("test",))
        for one in metrics.get("metrics", ())
    ]
    own = Measure(str(metrics.get("metric", "metric")), str(metrics.get("direction") or "maximize"), named=False)
    return [*named, own]
