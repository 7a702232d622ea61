"""A training up to its first step: what its arguments, data and model do not allow is found out without training."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from huggingface_hub import whoami
from transformers import Trainer, TrainerCallback

from glora_search.errors import invalid

ROWS = 2
"""The validation rows that a rehearsal evaluates."""


class _Ready(Exception):  # noqa: N818 - no error: all is set up for the first step
    pass


class _StopBeforeTheFirstStep(TrainerCallback):
    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        raise _Ready


def rehearsal(trainer_cls: type[Trainer]) -> type[Trainer]:
    """A Trainer of this class whose ``train`` sets up all that a training needs, and trains nothing.

    transformers' own code makes the data loaders, the optimizer, the scheduler and the wrapped model, up to the point
    where callbacks would begin to report. Then the model is given a train batch, without gradients, and a few
    validation rows are evaluated where the arguments evaluate.
    """

    class Rehearsal(trainer_cls):  # type: ignore[valid-type, misc]
        def init_hf_repo(self, token: str | None = None, **kwargs: Any) -> None:
            """A repository is made by a training; here the hub is only asked who would make it."""
            whoami(token or self.args.hub_token)

        def train(self, *args: Any, **kwargs: Any) -> None:
            self.callback_handler.callbacks.insert(0, _StopBeforeTheFirstStep())
            with contextlib.suppress(_Ready):
                super().train(*args, **kwargs)
            self._try_a_batch()
            if self.args.eval_strategy != "no" or self.args.eval_on_start:
                self._try_an_evaluation()

        @torch.no_grad()
        def _try_a_batch(self) -> None:
            batch = next(iter(self.callback_handler.train_dataloader))
            self.model.train()
            with self.compute_loss_context_manager():
                self.compute_loss(self.model_wrapped, self._prepare_inputs(batch))

        def _try_an_evaluation(self) -> None:
            rows = self.eval_dataset.select(range(min(ROWS, len(self.eval_dataset))))
            found = self.evaluation_loop(self.get_eval_dataloader(rows), "rehearsal", metric_key_prefix="eval")
            best = self.args.metric_for_best_model
            names = [name.removeprefix("eval_") for name in found.metrics if name != "eval_model_preparation_time"]
            if best is not None and best.removeprefix("eval_") not in names:
                raise invalid("metric_for_best_model", best, names)

    return Rehearsal
