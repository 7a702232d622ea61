"""Training a supernet: transformers' Trainer, with subnets drawn for every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from glora_search.errors import invalid
from glora_search.space.layers import Genome
from glora_search.supernet.probes import probe_subnets
from glora_search.supernet.sampling import Sampling, SizeSampling
from glora_search.training.answers import Answers
from glora_search.training.trainer import PathTrainer


class SupernetTrainer(PathTrainer):
    """A `transformers.Trainer` that trains sampled subnets; the head trains in all of them.

    The subnets are a function of the optimizer's step: all micro-batches of a gradient accumulation, all ranks and
    the recomputed forwards of gradient checkpointing see the same ones. Where a step has several, its loss is their
    mean.

    An evaluation scores every probe. ``eval_<probe>_loss`` is one curve a probe, and ``eval_loss`` is their mean: what
    ``metric_for_best_model`` and early stopping look at. The same holds for what ``compute_metrics`` returns; of what
    is no number, there is no mean.

    Args:
        sampling: step -> genomes; the default is `SizeSampling` with the training arguments' seed.
        probes: name -> the subnets that are evaluated; the default is `probe_subnets`. ``predict`` returns the
            predictions of the first.
        args, kwargs: as in `transformers.Trainer` and `PathTrainer`; the model is a ``PeftModel`` made with a
            `SupernetConfig`.

    Raises:
        UserError: ``ddp_find_unused_parameters`` is off, though every step leaves parameters without a gradient.
    """

    def __init__(
        self,
        *args: Any,
        sampling: Sampling | None = None,
        probes: Mapping[str, Genome] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_unused_allowed(self.args)
        self.sampling = sampling or SizeSampling(self._supernet.space, seed=self.args.seed)
        self.probes = dict(probes or probe_subnets(self._supernet.space))
        self._share = 1.0
        self._taught: Tensor | None = None

    def _know(self, model: nn.Module) -> None:
        super()._know(model)
        self._supernet: Any = model

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward for each of the step's subnets; only the gradients of one are alive at a time."""
        genomes = self.sampling(self.state.global_step)
        self._share = 1 / len(genomes)
        losses = []
        try:
            for genome in genomes:
                self._supernet.activate(genome)
                losses.append(super().training_step(model, inputs, num_items_in_batch=num_items_in_batch))
        finally:  # a step that was too large for the memory may be taken again, with fewer rows
            self._taught = None
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The subnet's part of the step's loss while training, the plain loss otherwise.

        With ``sampling.distill`` it is, of all subnets but the first, the distance to what the first one says, see
        `Answers.distances`.
        """
        labels: Any = inputs.get("labels")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            if self.sampling.distill:
                answers = Answers.of(self._supernet, outputs["logits"], labels)
                logits, _ = answers.items(outputs["logits"], labels)
                if self._taught is None:
                    self._taught = answers.said(logits.detach())
                else:
                    loss = self._mean(answers.distances(logits, self._taught), num_items_in_batch)
            loss = loss * self._share
            if not loss.requires_grad:  # the subnet without any path, of a model without a head, has nothing to learn
                loss = loss.detach().requires_grad_()
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate always the same subnets, so that the figures of different steps compare."""
        found: dict[str, EvalLoopOutput] = {}
        fold = bool(self._supernet.folding_fits())
        for name, genome in self.probes.items():
            with self._supernet.scored(genome, fold):
                found[name] = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        first = next(iter(found.values()))
        metrics: dict[str, Any] = {}
        for key in first.metrics:
            values = {name: output.metrics[key] for name, output in found.items()}
            if all(isinstance(value, (int, float, np.number)) for value in values.values()):
                metrics[key] = sum(values.values()) / len(values)
            measured = key.removeprefix(f"{metric_key_prefix}_")
            if measured != "model_preparation_time":
                metrics |= {f"{metric_key_prefix}_{name}_{measured}": value for name, value in values.items()}
        return first._replace(metrics=metrics)


def check_unused_allowed(args: TrainingArguments) -> None:
    """Refuse a distributed training in which every parameter must have a gradient in every step."""
    if args.ddp_find_unused_parameters is False:
        raise invalid("ddp_find_unused_parameters", False, "True: a subnet leaves the other subnets' weights out")
