"""A Trainer that gives the parameters of each kind of path a learning rate of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from glora_search.training.answers import predicts_next
from glora_search.vocabulary import check_lr_factors


class PathTrainer(Trainer):
    """A `transformers.Trainer` with learning rates by kind of path, for adapters and supernets.

    Args:
        lr_factors: ``lora``, ``vector``, ``constant``, ``head`` (all that is trained besides the paths), or a kind of
            one path, such as ``B.vector``, which comes before its kind -> what the learning rate is multiplied by.
        args, kwargs: as in `transformers.Trainer`.

    Raises:
        UserError: an unknown kind, or a factor that is not positive.
    """

    def __init__(self, *args: Any, lr_factors: Mapping[str, float] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lr_factors = check_lr_factors(lr_factors or {})
        if not predicts_next(self.accelerator.unwrap_model(self.model)):
            # Trainer believes of every model with **kwargs that it divides its loss by num_items_in_batch. Classifiers
            # such as BERT, and T5, do not: their steps would grow with gradient accumulation and with the number of
            # processes.
            self.model_accepts_loss_kwargs = False

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The optimizer of the training arguments, each of its groups split by the factors."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)
        if given or not self.lr_factors:
            return optimizer
        model = self.accelerator.unwrap_model(self.model)
        factors = {
            id(parameter): self._factor(*path_and_kind(name, parameter)) for name, parameter in model.named_parameters()
        }
        groups = []
        for group in optimizer.param_groups:
            for factor in sorted({factors[id(parameter)] for parameter in group["params"]}):
                parameters = [parameter for parameter in group["params"] if factors[id(parameter)] == factor]
                groups.append({**group, "params": parameters, "lr": group["lr"] * factor})
        optimizer.param_groups[:] = groups
        return optimizer

    def _factor(self, path: str, kind: str) -> float:
        return self.lr_factors.get(f"{path}.{kind}", self.lr_factors.get(kind, 1.0))

    def _mean(self, distances: Tensor, items: Tensor | int | None) -> Tensor:
        """The mean over the items of the optimizer step, divided as Trainer divides the plain loss."""
        if items is None:
            return distances.mean()
        if not self.model_accepts_loss_kwargs:  # counted for compute_loss_func, after which Trainer does not divide
            return distances.mean() / self.current_gradient_accumulation_steps
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return distances.sum() / items * processes


def path_and_kind(name: str, parameter: nn.Parameter) -> tuple[str, str]:
    """The path and the kind that a parameter of this name belongs to; the kind is ``head`` for everything else.

    A tensor that several kinds share (nested sharing) counts as its largest kind.
    """
    tensor = name.rpartition(".")[2]
    for prefix in (".supernet_", ".glora_"):
        if prefix in name:
            path = name.partition(prefix)[2][0]
            if "_" in tensor:
                return path, tensor.partition("_")[0]
            return path, "lora" if tensor in ("Xd", "Xu") else "constant" if parameter.numel() == 1 else "vector"
    return ("B", "lora") if ".lora_" in name else ("", "head")  # peft's own LoRA is a low-rank B
