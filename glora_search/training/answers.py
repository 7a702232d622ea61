"""What a model says, as something that another model can learn from: distributions, decisions or numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glora_search.errors import invalid
from glora_search.scoring import IGNORED, Batch, base_of, outputs, predicts_next

Kind = Literal["class", "decisions", "numbers", "tokens", "next tokens"]
TOP = 16
"""Of a token's distribution, so many of the likeliest classes are kept; the rest is one further class."""
TINY = 1e-9
BY_PROBLEM: dict[str | None, Kind] = {"regression": "numbers", "multi_label_classification": "decisions"}
"""A model's ``problem_type`` -> how its logits are read where labels are of floating point."""


@torch.inference_mode()
def check_teachable(model: nn.Module, batch: Batch) -> None:
    """Give a model a batch, and refuse logits that no student can learn from; see `Answers.of`."""
    for _, output in outputs(model, [batch]):
        Answers.of(model, output.logits, batch["labels"])


@dataclass(frozen=True)
class Answers:
    """How a model's logits are read. An item is a row; of tokens, it is one whose label counts.

    Attributes:
        kind: a ``class`` for each row; ``decisions``, one for each of several labels; ``numbers``; classes for
            ``tokens``, or for the ``next tokens``, as causal language models have them.
    """

    kind: Kind

    @classmethod
    def of(cls, model: nn.Module, logits: Tensor, labels: Tensor) -> Answers:
        """How this model's logits are read.

        Args:
            logits: ``[rows, ...]``.
            labels: ``[rows, ...]``.

        Raises:
            UserError: nothing can be learned from logits and labels of these shapes.
        """
        kind: Kind
        if labels.is_floating_point():
            several = labels.ndim == 2 and labels.shape[1] > 1
            kind = BY_PROBLEM.get(_problem(model), "decisions" if several else "numbers")
            fits = logits.numel() == labels.numel()
        elif labels.ndim == 1:
            kind, fits = "class", logits.ndim == 2 and logits.shape[1] > 1
        else:
            kind, fits = "next tokens" if predicts_next(model) else "tokens", logits.ndim == 3
        if not fits or len(logits) != len(labels):
            shapes = f"logits {tuple(logits.shape)} for labels {tuple(labels.shape)}"
            keys = "finals.teacher, supernet.sampling_options.distill"
            raise invalid(keys, shapes, "0, and false: these logits cannot be learned from")
        return cls(kind)

    @property
    def by_token(self) -> bool:
        """Whether a row has many items."""
        return "tokens" in self.kind

    def items(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[items, k]`` in float32, and labels ``[items, ...]``."""
        if not self.by_token:
            return logits.float().reshape(len(logits), -1), labels
        counted = self.counted(labels)
        return logits[:, : counted.shape[1]][counted].float(), self.labels_of(labels)

    def counted(self, labels: Tensor) -> Tensor:
        """Which places of rows of tokens are items: those whose logits are for a label that counts."""
        return self._beside(labels) != IGNORED

    def labels_of(self, labels: Tensor) -> Tensor:
        """The labels of items."""
        if not self.by_token:
            return labels
        return self._beside(labels)[self.counted(labels)]

    def _beside(self, labels: Tensor) -> Tensor:
        """The labels of rows of tokens, each at the place whose logits are for it."""
        return labels[:, 1:] if self.kind == "next tokens" else labels

    def said(self, logits: Tensor) -> Tensor:
        """What items say: probabilities ``[items, k]``, or numbers."""
        if self.kind == "numbers":
            return logits
        return logits.sigmoid() if self.kind == "decisions" else logits.softmax(-1)

    def logits_of(self, said: Tensor) -> Tensor:
        """Logits that say this."""
        if self.kind == "numbers":
            return said
        return said.clamp(TINY, 1 - TINY).logit() if self.kind == "decisions" else said.clamp_min(TINY).log()

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each item, ``[items]``."""
        if self.kind == "numbers":
            return (logits - labels.reshape(logits.shape).float()).square().mean(-1)
        if self.kind == "decisions":
            return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(-1)
        return F.cross_entropy(logits, labels, reduction="none")

    def distances(self, logits: Tensor, taught: Tensor, classes: Tensor | None = None) -> Tensor:
        """How far items are from their teacher: the divergence of distributions, or the squared error of numbers.

        Args:
            logits: ``[items, k]``.
            taught: ``[items, k]``, or ``[items, top]`` for these classes.
            classes: ``[items, top]``; what is left of the distributions is compared as one further class.

        Returns:
            ``[items]``.
        """
        if self.kind == "numbers":
            return (logits - taught).square().mean(-1)
        if self.kind == "decisions":
            both = torch.stack([taught, 1 - taught], dim=-1)
            own = torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)
            return F.kl_div(own, both, reduction="none").sum(-1).mean(-1)
        own = F.log_softmax(logits, dim=-1)
        if classes is not None:
            own = own.gather(-1, classes)
            rest = (1 - own.exp().sum(-1, keepdim=True)).clamp_min(TINY).log()
            own, taught = torch.cat([own, rest], -1), torch.cat([taught, (1 - taught.sum(-1, keepdim=True))], -1)
        return F.kl_div(own, taught.clamp_min(0), reduction="none").sum(-1)


def _problem(model: Any) -> str | None:
    """What a model's config says of its labels."""
    return getattr(getattr(base_of(model), "config", None), "problem_type", None)
