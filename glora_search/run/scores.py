"""What the recipe's metrics say of a run's models: `glora_search.metrics` on validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glora_search.adapters.card import write_card
from glora_search.metrics import Panel, sample_answers
from glora_search.run.context import Context


class Scores:
    """The values of all metrics that a recipe names, by model; nothing where it names none.

    Args:
        run: the test rows are read where there are metrics.

    Attributes:
        notes: on the rows, and on what models answer.
    """

    def __init__(self, run: Context) -> None:
        self.run = run
        splits = {"validation": run.task.data.validation}
        if run.recipe.task.metrics:
            splits["test"] = run.task.data.read_test()
        self.panel = Panel(run.task, splits)
        self.notes = self.panel.check()
        self._values: dict[str, dict[str, dict[str, float]]] = {}

    def score(self, model: Any, name: str, *, final: bool = False) -> None:
        """Score a model.

        Args:
            name: for `of`.
            final: whether notes say what its answers are like.
        """
        if self.panel.metrics:
            self._values[name], notes = self.panel.score(model)
            self.notes += [f"the final model {note}" for note in notes if final]

    def of(self, name: str) -> dict[str, Any]:
        """What ``metrics.json`` has of a model: metric -> split -> value."""
        return {"metrics": self._values[name]} if name in self._values else {}

    def facts(self) -> dict[str, Any]:
        """What ``metrics.json`` has of the metrics; the first is the chosen one."""
        return {"metrics": self.panel.facts()} if self.panel.metrics else {}

    def samples(self, model: Any) -> list[dict[str, str]]:
        """A few validation rows with what the model writes."""
        return sample_answers(self.run.task, model, self.run.task.data.validation)

    def write_cards(self, adapters: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the cards of adapters anew, with what the metrics say of them.

        Args:
            adapters: folder below the run folder -> figures of its stage.
        """
        for name, figures in adapters.items():
            own = {
                f"{split} {metric}": f"{value:.4f}"
                for metric, values in self._values.get(name, {}).items()
                for split, value in values.items()
            }
            if own:
                facts = {**self.run.facts(figures["params"], figures["validation"]), **own}
                write_card(self.run.folder / name, self.run.task.model_path, facts)
