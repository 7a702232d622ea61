"""A task of EleutherAI's lm-evaluation-harness, which is asked for only where a recipe names one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from datasets import Dataset

from glora_search.errors import UserError, invalid
from glora_search.metrics.base import Metric, Score
from glora_search.scoring import base_of
from glora_search.tasks.language_model import LanguageModel


class HarnessTask(Metric):
    """The first figure that the harness has of one of its tasks.

    Args:
        task: see `Metric`.
        harness_task: its name.
        num_fewshot: examples in the prompt; None is the task's own number.
        include_path: a folder with further tasks.
    """

    own_rows = True

    def __init__(
        self,
        task: LanguageModel,
        *,
        harness_task: str,
        num_fewshot: int | None = None,
        include_path: str | None = None,
    ) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            allowed = "another metric, or this one with the package lm_eval: pip install 'glora-search[lm-eval]'"
            raise invalid("task.metrics", "lm-eval", allowed)
        super().__init__(task)
        self.name, self.harness_task, self.num_fewshot = harness_task, harness_task, num_fewshot
        self.include_path = include_path

    def check(self, rows: Dataset, split: str) -> list[str]:
        """Refuse a name that the harness does not know."""
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise invalid(f"{self.key}.include_path", self.include_path, "a folder with tasks of lm-eval")
        if self.harness_task not in self._known().all_tasks:
            raise invalid(f"{self.key}.tasks", self.harness_task, "names of lm-eval's tasks: lm-eval ls tasks")
        return []

    def score(self, model: Any, rows: Dataset) -> Score:
        """See `Metric`; the rows are the harness's own."""
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        plain = base_of(model)
        wrapped = HFLM(pretrained=plain, tokenizer=self.task.tokenizer, batch_size=self.task.recipe.search.batch_size)
        found = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=[self.harness_task],
            task_manager=self._known(),
            num_fewshot=self.num_fewshot,
            limit=self.max_rows,
            bootstrap_iters=0,
            log_samples=False,
        )
        figures = found["results"][self.harness_task]
        first = next((key for key, value in figures.items() if _is_figure(key, value)), None)
        if first is None:
            raise UserError(f"{self.key}: lm-eval has no figure of {self.harness_task}, but {', '.join(figures)}")
        higher = found.get("higher_is_better", {}).get(self.harness_task, {}).get(first.partition(",")[0], True)
        self.direction = "minimize" if higher is False else "maximize"
        return Score(float(figures[first]))

    def _known(self) -> Any:
        """The harness's tasks, and those of the folder."""
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=self.include_path)


def _is_figure(key: str, value: object) -> bool:
    return "," in key and "_stderr" not in key and isinstance(value, (int, float))
