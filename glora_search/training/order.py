"""The order of train rows, the same after a kill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class GroupedByLength(LengthGroupedSampler):
    """Rows of similar length together, in an order that the seed and the epoch say.

    Transformers' own order comes from the state of the global generator, which is another one where a training goes on
    in the middle of an epoch: some rows of the epoch then come twice, and others not at all.

    Args:
        batch_size: rows of an optimizer step in a process.
        lengths: of the rows.
        seed: the order of an epoch is a function of it.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths))
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader at the beginning of an epoch, also of one that is gone on with."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(super().__iter__())
