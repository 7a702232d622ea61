"""One order of results, everywhere."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from glora_search.ranking import is_finite, rank_key

numbers = st.floats(allow_nan=True, allow_infinity=True) | st.none()


def best(results, direction):
    return min(results, key=lambda pair: rank_key(*pair, direction=direction))


def test_the_better_metric_wins_and_ties_go_to_the_lower_loss():
    assert best([(0.5, 0.1), (0.6, 0.9), (0.6, 0.8)], "maximize") == (0.6, 0.8)
    assert best([(0.5, 0.2), (0.6, 0.1), (0.5, 0.1)], "minimize") == (0.5, 0.1)


@given(st.lists(st.tuples(numbers, numbers), min_size=1), st.sampled_from(["maximize", "minimize"]))
def test_what_is_not_finite_never_beats_what_is(results, direction):
    finite = [pair for pair in results if None not in pair and all(map(math.isfinite, pair))]
    found = best(results, direction)
    assert not finite or found in finite


def test_a_metric_whose_loss_is_not_finite_is_no_result():
    assert is_finite(0.5, 1.0)
    assert not any(is_finite(*pair) for pair in [(0.5, math.nan), (math.inf, 0.0), (None, None), (0.5, None)])
