"""Packing: short rows share a sequence, and do not see each other.

Positions begin anew with each row. Where a model is given no attention mask and keeps no cache, transformers makes a
mask of them that keeps the rows apart (``transformers.masking_utils``).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from glora_search.scoring import IGNORED, on_device


def packed(rows: Dataset, size: int) -> Dataset:
    """Sequences of up to ``size`` tokens that hold all rows, each whole.

    Args:
        rows: with ``input_ids`` and ``labels``; the first label of each is -100, so that no row predicts another.

    Returns:
        Columns ``input_ids``, ``position_ids`` and ``labels``.
    """
    ids, labels = rows["input_ids"][:], rows["labels"][:]
    packs = best_fit([len(own) for own in ids], size)
    return Dataset.from_dict(
        {
            "input_ids": [[*chain(*(ids[row] for row in pack))] for pack in packs],
            "position_ids": [[*chain(*(range(len(ids[row])) for row in pack))] for pack in packs],
            "labels": [[*chain(*(labels[row] for row in pack))] for pack in packs],
        }
    )


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which rows share a sequence: the longest first, each where it leaves the least room.

    Source: best-fit decreasing, as TRL's ``bfd``; Ding et al. (arXiv 2404.10830).
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # tokens that are left, and in which sequence
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fitting = bisect_left(room, (lengths[row], 0))
        if fitting < len(room):
            left, pack = room.pop(fitting)
        else:
            left, pack = size, len(packs)
            packs.append([])
        packs[pack].append(row)
        insort(room, (left - lengths[row], pack))
    return packs


class PackedRows:
    """Collates packed rows, padded at the end; others are the inner collator's.

    Args:
        collator: of rows that are not packed.
        padding: the token that a batch is padded with.
    """

    def __init__(self, collator: Any, padding: int) -> None:
        self.collator = collator
        self.fill = {"input_ids": padding, "position_ids": 0, "labels": IGNORED}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch."""
        if "position_ids" not in rows[0]:
            return dict(self.collator(rows))
        batch = {
            name: pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=value)
            for name, value in self.fill.items()
        }
        return {**batch, "use_cache": False}


@torch.no_grad()
def leak(model: PreTrainedModel, rows: list[dict[str, Any]], collator: Any) -> float:
    """By how much the logits of packed rows differ from those of the same rows alone, as a part of the largest.

    Args:
        rows: packed.
        collator: makes a batch of them, as `PackedRows` does.
    """
    batch = collator(rows)
    given = on_device({name: batch[name] for name in ("input_ids", "position_ids", "use_cache")}, model.device)
    largest = difference = 0.0
    for row, logits in zip(rows, model(**given).logits, strict=True):
        starts = [number for number, position in enumerate(row["position_ids"]) if position == 0]
        for start, end in pairwise([*starts, len(row["input_ids"])]):
            alone: Tensor = model(torch.tensor([row["input_ids"][start:end]], device=model.device)).logits[0]
            largest = max(largest, float(alone.abs().max()))
            difference = max(difference, float((alone - logits[start:end]).abs().max()))
    return difference / largest
