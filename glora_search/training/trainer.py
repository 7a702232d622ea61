"""A Trainer with a learning rate for each kind of path, whose evaluations have the loss that the search has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from glora_search.errors import invalid
from glora_search.scoring import is_causal_lm, items_of, predicts_next
from glora_search.training.order import GroupedByLength
from glora_search.vocabulary import check_lr_factors


class PathTrainer(Trainer):
    """A `transformers.Trainer` with learning rates by kind of path, for adapters and supernets.

    The loss of an evaluation is the mean over all labels that count, as the search scores it: without label smoothing,
    and not finite where that of a batch is not. Trainer's own is a mean of the batches' means, where a row's one token
    weighs as much as another row's hundred.

    Args:
        lr_factors: ``lora``, ``vector``, ``constant``, ``head`` (all that is trained besides the paths), or a kind of
            one path, such as ``B.vector``, which comes before its kind -> what the learning rate is multiplied by.
        args, kwargs: as in `transformers.Trainer`.

    Raises:
        UserError: an unknown kind, a factor that is not positive, or an optimizer was given too.
    """

    def __init__(self, *args: Any, lr_factors: Mapping[str, float] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lr_factors = check_lr_factors(lr_factors or {})
        self._losses: list[Tensor] = []
        self._know(self.accelerator.unwrap_model(self.model))
        if self.optimizer is not None and self.lr_factors:
            allowed = "None with an optimizer of your own, whose groups have their learning rates"
            raise invalid("lr_factors", self.lr_factors, allowed)

    def call_model_init(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The model that ``train`` makes anew, with ``model_init``."""
        model = super().call_model_init(*args, **kwargs)
        self._know(model)
        return model

    def _know(self, model: nn.Module) -> None:
        """Look at the model that is trained from here on."""
        self._running = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
        self._shifted = predicts_next(model)
        if not is_causal_lm(model):
            # Trainer believes of every model with **kwargs that it divides its loss by num_items_in_batch. Classifiers
            # such as BERT, T5 and BLIP do not: their steps would grow with gradient accumulation and with the number of
            # processes.
            self.model_accepts_loss_kwargs = False

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The optimizer of the training arguments, each of its groups split by the factors."""
        made = self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)
        if made or not self.lr_factors:
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

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's sampler; one that groups rows by length has an order that a resumed training finds again."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        if type(sampler) is not LengthGroupedSampler:
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return GroupedByLength(sampler.batch_size, sampler.lengths, seed)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Trainer's loss while training, the model's own mean over a batch otherwise."""
        self._keep_statistics()
        if model.training or self.compute_loss_func is not None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
        return (loss, outputs) if return_outputs else loss

    def _keep_statistics(self) -> None:
        """Normalise with the base model's running statistics, as scoring does: no adapter could save others."""
        for module in self._running:
            module.eval()

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trainer's step; the sum of the losses and the number of items are kept, over all processes."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        truth = inputs.get("labels")
        if loss is not None and isinstance(truth, Tensor):
            items = items_of(truth, shifted=self._shifted).to(loss.device)
            sums = torch.where(items > 0, loss.float() * items, 0.0)  # where no label counts, the loss is NaN
            self._losses.append(self.gather_function(torch.stack([sums, items], dim=1)).sum(0))
        return loss, logits, labels

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Trainer's loop, with the mean loss of an item."""
        self._losses = []
        found = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._losses:
            loss, items = torch.stack(self._losses).cpu().double().sum(0).tolist()
            found.metrics[f"{metric_key_prefix}_loss"] = loss / items if items else math.nan
        return found

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
