"""Training a supernet: transformers' Trainer, with a subnet drawn for every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer

from glora_search.space import Genome
from glora_search.supernet.sampling import Sampling, SizeSampling


class SupernetTrainer(Trainer):
    """A `transformers.Trainer` that trains one sampled subnet a step; the head trains in all of them.

    The subnet is a function of the optimizer's step: all micro-batches of a gradient accumulation, all ranks and
    the recomputed forwards of gradient checkpointing see the same one.

    Args:
        sampling: step -> genome; the default is `SizeSampling` with the training arguments' seed.
        eval_genome: the subnet that is evaluated; the default is the largest one.
        args, kwargs: as in `transformers.Trainer`; the model is a ``PeftModel`` made with a `SupernetConfig`.
    """

    def __init__(
        self, *args: Any, sampling: Sampling | None = None, eval_genome: Genome | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._supernet = self.accelerator.unwrap_model(self.model)
        self.sampling = sampling or SizeSampling(self._supernet.space, seed=self.args.seed)
        self.eval_genome = eval_genome or self._supernet.space.largest

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One forward and backward of the step's subnet."""
        self._supernet.activate(self.sampling(self.state.global_step))
        return super().training_step(model, inputs, num_items_in_batch=num_items_in_batch)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate always the same subnet, so that the figures of different steps compare."""
        self._supernet.activate(self.eval_genome)
        return super().evaluation_loop(*args, **kwargs)
