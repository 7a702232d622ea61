"""Successive halving: who goes on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glora_search.finals.rungs import PARTS, SHARES, race_cost, survivors, whole

losses = st.dictionaries(st.text(min_size=1), st.floats(allow_nan=True), min_size=1)


@given(losses)
def test_the_better_half_goes_on_and_what_has_diverged_is_dropped_first(found):
    alive = survivors(found, half := math.ceil(len(found) / 2))
    assert len(alive) == half
    finite = [name for name in found if math.isfinite(found[name])]
    dropped = set(found) - set(alive)
    if dropped & set(finite):
        assert max(found[name] for name in alive) <= min(found[name] for name in dropped & set(finite))
    assert set(finite) <= set(alive) or set(alive) <= set(finite)


@given(losses, st.data())
def test_who_is_never_dropped_goes_on_with_the_best_in_the_places_of_others(found, data):
    kept = data.draw(st.lists(st.sampled_from(sorted(found)), unique=True))
    places = data.draw(st.integers(1, len(found)))
    alive, free = survivors(found, places, kept), survivors(found, places)
    assert set(kept) <= set(alive)
    assert free[0] == alive[0] or found[alive[0]] == found[free[0]]
    assert len(alive) == max(places, len({*kept, free[0]}))


@pytest.mark.parametrize(("steps", "expected"), [(1, 16), (16, 16), (17, 32), (625, 640)])
def test_a_whole_training_ends_with_an_evaluation_and_so_does_every_rung(steps, expected):
    assert whole(steps) == expected
    assert all((share * whole(steps)) % (whole(steps) // PARTS) == 0 for share in SHARES)


def test_the_cost_of_a_race_is_counted_in_whole_trainings():
    assert race_cost(1) == 1
    assert race_cost(8) == pytest.approx(8 / 4 + 4 / 4 + 2 / 2)
    assert race_cost(8, never_dropped=4) == pytest.approx(8 / 4 + 5 / 4 + 5 / 2)
    assert race_cost(8, joining=2) == race_cost(8) + 2 / 4
    assert race_cost(0) == 0
