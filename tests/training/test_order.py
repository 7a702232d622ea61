"""Train rows grouped by length: every epoch has all of them, in an order of its own."""

from __future__ import annotations

import numpy as np

from glora_search.training.order import GroupedByLength

LENGTHS = np.random.default_rng(0).integers(1, 100, size=600).tolist()


def test_an_epoch_has_each_row_once_in_an_order_of_seed_and_epoch():
    found = {}
    for seed in (3, 50):
        sampler = GroupedByLength(8, LENGTHS, seed)
        for epoch in (0, 1, 2):
            sampler.set_epoch(epoch)
            found[seed, epoch] = list(sampler)
            assert sorted(found[seed, epoch]) == list(range(len(LENGTHS)))
    assert len(set(map(tuple, found.values()))) == len(found)
    again = GroupedByLength(8, LENGTHS, 3)
    again.set_epoch(2)
    assert list(again) == found[3, 2]


def test_rows_of_a_batch_are_of_similar_length():
    def spread(order):
        return np.mean([np.ptp([LENGTHS[row] for row in order[start : start + 8]]) for start in range(0, 600, 8)])

    assert spread(list(GroupedByLength(8, LENGTHS, 0))) < spread(range(600)) / 3
