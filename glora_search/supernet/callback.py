"""All subnets of a supernet in somebody else's Trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from glora_search.errors import invalid
from glora_search.supernet.probes import probe_subnets
from glora_search.supernet.sampling import Sampling
from glora_search.supernet.trainer import check_unused_allowed


class SamplingCallback(TrainerCallback):
    """Trains another subnet at each step, in any trainer that calls back as ``transformers.Trainer`` does.

    It is for trainers that bring a loss of their own, such as TRL's ``SFTTrainer``; `SupernetTrainer` does the same and
    more: learning rates by kind of path, several subnets a step, and evaluations of several probes. Here, an evaluation
    scores the largest of these probes.

    Args:
        sampling: step -> the subnet that it trains, such as `SizeSampling`.

    Raises:
        UserError: in training: a step has several subnets, as with `SandwichSampling`, or
            ``ddp_find_unused_parameters`` is off, though every step leaves parameters without a gradient.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.evaluated = next(iter(probe_subnets(sampling.space, max_params=sampling.max_params).values()))
        self._hook: RemovableHandle | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        """Check what a supernet needs."""
        check_unused_allowed(args)
        self._hook = model.register_forward_hook(_with_gradient)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Leave the model as it was."""
        if self._hook is not None:
            self._hook.remove()

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        """Activate the step's subnet."""
        genomes = self.sampling(state.global_step)
        if len(genomes) != 1:
            name = type(self.sampling).__name__
            raise invalid("sampling", name, "a strategy of one subnet a step; SupernetTrainer trains several")
        model.activate(genomes[0])

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        """Activate what evaluations score, so that those of different steps compare."""
        model.activate(self.evaluated)


def _with_gradient(module: nn.Module, args: Any, output: Any) -> None:
    """Let the step of a subnet that has nothing to learn, in a model without a head, pass without any gradient."""
    for name in ("loss", "logits") if module.training and torch.is_grad_enabled() else ():
        value = output.get(name) if isinstance(output, dict) else None
        if isinstance(value, torch.Tensor) and not value.requires_grad:
            output[name] = value + torch.zeros((), dtype=value.dtype, device=value.device, requires_grad=True)
