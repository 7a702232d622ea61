"""Racing: what is stopped, what never is, and how it is marked."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.trial import TrialState

from glora_search.errors import UserError
from glora_search.search import Evaluation, best_trial, search
from glora_search.search.racing import Race
from glora_search.search.trials import KEY


class Racer:
    """An evaluator in three legs, whose first figures are near the last one."""

    def __init__(self, space, spread):
        self.space, self.spread, self.legs_run, self.closed = space, spread, 0, 0

    def loss(self, genome):
        return abs(self.space.params(genome) - 60) / 10

    def legs(self, genome):
        indexes = [gene.choices.index(genome[gene.name]) for gene in self.space.genes]
        rng = np.random.default_rng(sum(indexes) + self.space.params(genome))
        try:
            for share in (0.25, 0.5, 1.0):
                self.legs_run += 1
                noise = 0.0 if share == 1 else self.spread * rng.normal()
                yield Evaluation(0.5, self.loss(genome) + noise, share)
        finally:
            self.closed += 1

    def __call__(self, genome):
        return list(self.legs(genome))[-1]


def run(space, racer, **options):
    return search(space, racer, trials=120, max_params=90, score="loss", racing=True, sampler="random", **options)


def test_hopeless_candidates_stop_early_and_are_marked_partial(space):
    racer = Racer(space, spread=0.05)
    study = run(space, racer)
    partial = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert len(partial) > 20
    assert all(trial.user_attrs["partial"] < 1 for trial in partial)
    assert all(trial.intermediate_values for trial in partial)
    assert racer.legs_run < 3 * 120
    assert racer.closed == 120


def test_what_is_among_the_best_was_scored_on_all_rows(space):
    racer = Racer(space, spread=0.05)
    study = run(space, racer)
    whole = {trial.user_attrs[KEY] for trial in study.trials if trial.state == TrialState.COMPLETE}
    elite = sorted(study.trials, key=lambda trial: racer.loss(trial.params))[:10]
    assert {trial.user_attrs[KEY] for trial in elite} <= whole
    assert best_trial(study).value == min(racer.loss(trial.params) for trial in study.trials)


def test_first_figures_that_say_nothing_stop_nothing_of_the_best(space):
    study = run(space, Racer(space, spread=20.0))
    partial = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert len(partial) < 20


def test_nothing_is_stopped_before_the_warm_up(space):
    study = search(
        space, Racer(space, spread=0.0), trials=Race().warm_up, max_params=90, score="loss", racing=True
    )  # fmt: skip
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)


def test_an_evaluator_without_legs_cannot_race(space):
    with pytest.raises(UserError, match=r"search\.racing: got True; allowed: false with an evaluator that has no legs"):
        search(space, Racer(space, 0.0).__call__, trials=3, racing=True)


@pytest.mark.parametrize(("argument", "value"), [("n_elite", 0), ("margin", -1), ("margin", "wide"), ("warm_up", True)])
def test_a_race_of_wrong_numbers_is_refused(argument, value):
    with pytest.raises(UserError, match=f"^{argument}: got {value!r}; allowed: a"):
        Race(**{argument: value})


def test_a_figure_that_is_not_finite_fails_the_trial_in_any_leg(space):
    class Broken(Racer):
        def legs(self, genome):
            yield Evaluation(0.5, 1.0, 0.25)
            yield Evaluation(0.5, float("nan"), 0.5)
            pytest.fail("went on")

    study = search(space, Broken(space, 0.0), trials=3, score="loss", racing=True)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 3


def test_a_continued_race_is_the_same_as_one_that_never_stopped(space, tmp_path):
    class Stopped(Racer):
        def legs(self, genome):
            if self.closed == 70:
                raise KeyboardInterrupt
            return super().legs(genome)

    whole = run(space, Racer(space, spread=0.05))
    with pytest.raises(KeyboardInterrupt):
        run(space, Stopped(space, spread=0.05), storage=tmp_path / "j.log")
    study = run(space, Racer(space, spread=0.05), storage=tmp_path / "j.log")
    assert [(t.state, t.params) for t in study.trials] == [(t.state, t.params) for t in whole.trials]
