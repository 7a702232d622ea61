"""A race of made-up trainings: what is trained, who wins, and what is recorded."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.trial import TrialState

from glora_search.finals.finalists import (
    APART,
    Finalist,
    Subnet,
    distinct,
    further_rate,
    subnet_finalists,
    taught_twins,
    uniform_finalists,
)
from glora_search.finals.race import race
from glora_search.finals.rungs import Standing
from glora_search.training.uniform import Uniform, uniform_methods

STEPS = 16


def finalist(name):
    return Finalist(name, {} if name.startswith("subnet") else Uniform(name, 100, None), 100)


ENDS = {"subnet 1": 0.2, "subnet 2": 0.9, "LoRA": 0.8, "(IA)3": 0.5, "BitFit": 0.85, "HiRA": 0.95}
FIELD = [finalist(name) for name in ENDS]


class Trainings:
    """Losses that fall from 1 to a finalist's own end, and rise after a finalist's lowest step, so that it ends."""

    def __init__(self, ends, lowest=None):
        self.ends, self.lowest, self.reached, self.calls, self.over = ends, lowest or {}, {}, [], {}

    def __call__(self, some, step):
        found = {one.name: self.over.get(one.name) or self.train(one, step) for one in some}
        self.over = {name: standing for name, standing in found.items() if standing.over}
        return found

    def train(self, one, step):
        self.calls.append((one.name, step))
        self.reached[one.name] = max(step, self.reached.get(one.name, 0))
        best = min(step, self.lowest.get(one.name, step))
        loss = 1 - (1 - self.ends[one.name]) * best / STEPS
        return Standing(step, loss, 1 - loss, best, {step: loss})


@pytest.fixture
def study():
    return optuna.create_study(study_name="finals")


def test_the_best_wins_and_losers_are_dropped_early(study):
    trained = Trainings(ENDS)
    result = race(FIELD, trained, STEPS, study=study)
    assert result.last[0] == "subnet 1"
    assert trained.reached == {"subnet 1": 16, "subnet 2": 4, "LoRA": 8, "(IA)3": 16, "BitFit": 4, "HiRA": 4}
    assert result.steps == sum(trained.reached.values())


def test_who_is_kept_is_trained_to_the_end_whoever_wins():
    result = race(FIELD, Trainings(ENDS), STEPS, kept=lambda field, losses: ["HiRA"])
    assert result.last == ["subnet 1", "HiRA"]
    assert result.standings["HiRA"].step == STEPS


def test_who_joins_at_the_first_rung_races_for_the_places_of_the_others(study):
    late = [finalist("subnet 3"), finalist("subnet 4")]
    trained = Trainings({**ENDS, "subnet 3": 0.1, "subnet 4": 0.99})

    def joining(field, losses):
        assert {one.name for one in field} == losses.keys()
        return next((one for one in late if one.name not in losses), None)

    result = race(FIELD, trained, STEPS, joining=joining, study=study)
    assert trained.calls[len(FIELD) : len(FIELD) + 2] == [("subnet 3", 4), ("subnet 4", 4)]
    assert [one.name for one in result.field] == [*ENDS, "subnet 3", "subnet 4"]
    assert result.last == ["subnet 3", "subnet 1"]
    assert sorted(trained.reached.values()) == [4] * 5 + [8, 16, 16]
    assert len(study.trials) == 8


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        ({0.5: 3, 1: 2, 2: 1}, 4),
        ({0.5: 1, 1: 2, 2: 3}, 0.25),
        ({0.5: 3, 1: 1, 2: 2}, None),
        ({1: 1, 3: 0.5}, 9),
        ({0.01: 2, 0.1: 1}, 1),
        ({0.3: 2, 1: 1}, 3.33),
        ({0.5: 1, 1: math.inf, 2: math.inf}, 0.25),
        ({1: 1}, None),
    ],
)
def test_a_further_rate_lies_beyond_the_best_one_where_that_is_at_the_end(losses, rate):
    lora = Uniform("LoRA r=1", 100, None, rated=True)
    field = [Finalist("LoRA r=1", lora, 100, rate) for rate in losses]
    named = {one.name: losses[one.rate] for one in field}
    found = further_rate([*field, finalist("(IA)3"), finalist("subnet 1")], {**named, "(IA)3": 0, "subnet 1": 0})
    assert (found and found.rate) == rate
    assert found is None or (found.method, found.origin) == ("LoRA r=1", lora)


def test_a_training_whose_loss_has_not_come_down_in_its_second_half_ends_and_can_still_win():
    trained = Trainings({**ENDS, "subnet 1": 0.0}, lowest={"subnet 1": 4})
    result = race(FIELD, trained, STEPS)
    assert trained.reached["subnet 1"] == 8
    assert result.standings["subnet 1"].losses.keys() == {8}
    assert result.last[0] == "(IA)3"
    assert race(FIELD, Trainings(dict.fromkeys(ENDS, 0.9) | {"subnet 1": -9.0}, {"subnet 1": 2}), STEPS).last[0] == (
        "subnet 1"
    )


def test_where_all_have_ended_early_the_half_of_them_goes_on_all_the_same(study):
    trained = Trainings(ENDS, lowest=dict.fromkeys(ENDS, 1))
    result = race(FIELD, trained, STEPS, study=study)
    assert set(trained.reached.values()) == {4}
    assert result.last == ["subnet 1", "(IA)3"]
    assert len(study.trials) == len(FIELD)


def test_what_diverges_never_wins_and_is_not_trained_on():
    ends = {**ENDS, "subnet 1": math.nan}
    result = race(FIELD, Trainings(ends), STEPS)
    assert result.last[0] == "(IA)3"
    assert "subnet 1" not in result.last
    assert Standing(4, math.inf, math.nan, 0, {}).over


def test_a_race_of_nobody_has_no_winner():
    assert race([], Trainings({}), STEPS).last == []


def test_every_finalist_is_one_trial_also_where_the_race_was_interrupted(study):
    class Killed(Trainings):
        def train(self, one, step):
            if len(self.calls) == 8:
                raise KeyboardInterrupt
            return super().train(one, step)

    with pytest.raises(KeyboardInterrupt):
        race(FIELD, Killed(ENDS), STEPS, study=study)
    race(FIELD, Trainings(ENDS), STEPS, study=study)
    trials = {trial.user_attrs["name"]: trial for trial in study.trials}
    assert len(study.trials) == len(trials) == len(FIELD)
    assert trials["subnet 2"].state == TrialState.PRUNED
    assert trials["subnet 1"].state == TrialState.COMPLETE
    assert study.best_trial.user_attrs["name"] == "subnet 1"


def test_the_field_has_lora_at_each_rate_and_taught_twins_at_its_best_rate_and_the_next(bind):
    space = bind("glora-paper")
    methods = uniform_methods(space, None, ["lora", "ia3", "bitfit"])
    alone = uniform_finalists(methods, [0.5, 1.0, 2.0])
    assert [one.name for one in alone] == ["LoRA r=8 x0.5", "LoRA r=8", "LoRA r=8 x2", "(IA)3", "BitFit"]
    losses = {"LoRA r=8 x0.5": 0.5, "LoRA r=8": 0.6, "LoRA r=8 x2": 0.4, "(IA)3": 0.3, "BitFit": math.inf}
    twins = taught_twins(alone, losses)
    assert [one.name for one in twins] == ["(IA)3 + teacher", "LoRA r=8 x2 + teacher", "BitFit + teacher"]
    twins = taught_twins(alone, losses | {"LoRA r=8 x0.5": 0.2})
    names = ["LoRA r=8 x0.5 + teacher", "(IA)3 + teacher", "BitFit + teacher", "LoRA r=8 + teacher"]
    assert [one.name for one in twins] == names
    genome = {gene.name: gene.choices[0] for gene in space.genes}
    subnets = [Subnet(genome, 70, 0.1), Subnet(genome, 70, 0.3), Subnet(genome, 70, math.nan)]
    searched = subnet_finalists(subnets, 0.2, 2.0, taught=True)
    field = [*searched, *alone, *twins]
    names = ["subnet 1 x2 + teacher", "subnet 2 from scratch x2 + teacher", "subnet 3 from scratch x2 + teacher"]
    assert [one.name for one in searched] == names
    assert [one.inherits for one in searched] == [True, False, False]
    assert len({one.slug for one in field}) == len(field)
    assert [one.uniform for one in field] == 3 * [False] + 9 * [True]


@pytest.mark.parametrize(("rates", "further"), [([1, 2], 4), ([1, 1.0001], None), ([1e-5, 1e-3], 0.1)])
def test_a_learning_rate_that_has_raced_does_not_join_again(bind, rates, further):
    field = uniform_finalists(uniform_methods(bind("glora-paper"), None, ["lora"]), rates)
    joins = further_rate(field, {one.name: -one.rate for one in field})
    assert (joins and joins.rate) == further


@pytest.mark.parametrize("rate", [1e-12, 1.0, 1e9])
def test_any_learning_rate_is_a_parameter_of_a_trial(rate):
    study, one = optuna.create_study(), Finalist("subnet 1", {}, 10, rate)
    race([one], lambda some, step: {one.name: Standing(step, 1.0, 0.5, step, {})}, STEPS, study=study)
    assert study.trials[0].params["rate"] == rate


def test_subnets_that_compete_differ_in_a_quarter_of_the_layers(bind):
    space = bind("glora-paper")
    names = [layer.name for layer in space.layers]
    quarter = math.ceil(APART * len(names))
    assert quarter > 1

    def subnet(layers):
        chosen = {f"{name}.B": "vector" if name in names[:layers] else "none" for name in names}
        return Subnet({gene.name: gene.choices[0] for gene in space.genes} | chosen, layers, 0.5)

    empty, first, near, far = subnet(0), subnet(1), subnet(quarter), subnet(1 + quarter)
    assert distinct([empty, first, near, far, subnet(len(names))], space, 2) == [first, far]
    assert distinct([first, near], space, 2) == [first]
