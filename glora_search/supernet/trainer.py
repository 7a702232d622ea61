"""Training a supernet: transformers' Trainer, with subnets drawn for every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from glora_search.errors import invalid
from glora_search.space.layers import Genome
from glora_search.supernet.probes import probe_subnets
from glora_search.supernet.sampling import Sampling, SizeSampling
from glora_search.training.trainer import PathTrainer


class SupernetTrainer(PathTrainer):
    """A `transformers.Trainer` that trains sampled subnets; the head trains in all of them.

    The subnets are a function of the optimizer's step: all micro-batches of a gradient accumulation, all ranks and
    the recomputed forwards of gradient checkpointing see the same ones. Where a step has several, its loss is their
    mean.

    An evaluation scores every probe. ``eval_<probe>_loss`` is one curve a probe, and ``eval_loss`` is their mean: what
    ``metric_for_best_model`` and early stopping look at. The same holds for what ``compute_metrics`` returns.

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
        if self.args.ddp_find_unused_parameters is False:
            raise invalid("ddp_find_unused_parameters", False, "True: a subnet leaves the other subnets' weights out")
        self._supernet = self.accelerator.unwrap_model(self.model)
        self.sampling = sampling or SizeSampling(self._supernet.space, seed=self.args.seed)
        self.probes = dict(probes or probe_subnets(self._supernet.space))
        self._share = 1.0
        self._teacher: Tensor | None = None

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward for each of the step's subnets; only the gradients of one are alive at a time."""
        genomes = self.sampling(self.state.global_step)
        self._share = 1 / len(genomes)
        self._teacher = None
        losses = []
        for genome in genomes:
            self._supernet.activate(genome)
            losses.append(super().training_step(model, inputs, num_items_in_batch=num_items_in_batch))
        self._teacher = None
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The subnet's part of the step's loss while training, the plain loss otherwise."""
        labels = inputs.get("labels")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            if self.sampling.distill and self._teacher is not None:
                loss = divergence_from_teacher(outputs.logits, self._teacher, labels)
                if num_items_in_batch is not None and (self.model_accepts_loss_kwargs or self.compute_loss_func):
                    loss = loss / self.current_gradient_accumulation_steps  # the Trainer takes it as scaled already
            elif self.sampling.distill:
                self._teacher = outputs.logits.detach()
            loss = loss * self._share
            if not loss.requires_grad:  # the subnet without any path, of a model without a head, has nothing to learn
                loss = loss.detach().requires_grad_()
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate always the same subnets, so that the figures of different steps compare."""
        found: dict[str, EvalLoopOutput] = {}
        fold = bool(self._supernet.folding_fits()) if self.probes else True
        for name, genome in self.probes.items():
            with self._supernet.scored(genome, fold):
                found[name] = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        first = next(iter(found.values()))
        metrics: dict[str, float] = {}
        for key in first.metrics:
            values = {name: output.metrics[key] for name, output in found.items()}
            metrics[key] = sum(values.values()) / len(values)
            measured = key.removeprefix(f"{metric_key_prefix}_")
            if measured != "model_preparation_time":
                metrics |= {f"{metric_key_prefix}_{name}_{measured}": value for name, value in values.items()}
        return first._replace(metrics=metrics)


def divergence_from_teacher(logits: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
    """The mean Kullback-Leibler divergence of a subnet's outputs from the teacher's.

    Where labels are no classes, it is what the teacher's answers cost as labels: squared errors of numbers, or the
    cross-entropy of each output's own yes or no.

    Args:
        logits, teacher: ``[..., classes]``.
        labels: where there is one for each row of outputs, rows labelled -100 (padding) do not count.
    """
    if labels is not None and labels.is_floating_point():
        if labels.shape == logits.shape:
            return F.binary_cross_entropy_with_logits(logits.float(), teacher.float().sigmoid())
        return F.mse_loss(logits.float(), teacher.float())
    own, other = (F.log_softmax(values.float(), dim=-1) for values in (logits, teacher))
    divergence = F.kl_div(own, other, reduction="none", log_target=True).sum(-1)
    if labels is not None and labels.shape == divergence.shape:
        divergence = divergence[labels != -100]
    return divergence.mean()
