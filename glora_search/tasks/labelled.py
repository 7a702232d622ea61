"""Batches for which a causal language model makes the logits of labelled tokens alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glora_search.scoring import IGNORED


class LabelledTokens:
    """Collates rows, and asks the model for no more logits than its labels need.

    A model keeps the logits of ``logits_to_keep``, positions that all rows share: those before a token that is learned
    in any row. The labels are cut to the same positions, so that loss and metric shift them as they always do; one
    more position, at the end, is what that shift drops.

    Args:
        collator: makes a batch with ``labels`` ``[rows, tokens]``.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collator(rows)
        labels: Tensor = batch["labels"]
        kept = (labels[:, 1:] != IGNORED).any(0).nonzero().view(-1)
        if len(kept) + 1 >= labels.shape[1] or _is_split():
            return batch
        end = torch.full((1,), labels.shape[1] - 1)
        none = torch.full_like(labels[:, :1], IGNORED)
        return {
            **batch,
            "labels": torch.cat([none, labels[:, kept + 1]], dim=1),
            "logits_to_keep": torch.cat([kept, end]),
        }


def _is_split() -> bool:
    """Whether a Trainer would split a batch among devices (``nn.DataParallel``), and the positions with the rows."""
    return torch.cuda.device_count() > 1 and not torch.distributed.is_initialized()
