"""A race of made-up trainings: what is trained, who wins, and what is recorded."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.trial import TrialState

from glora_search.finals.finalists import Finalist, finalists
from glora_search.finals.race import race
from glora_search.finals.rungs import Standing
from glora_search.training.uniform import Uniform, uniform_methods

STEPS = 16


def finalist(name, *, taught=False, rate=1.0):
    method = name.split(" +")[0]
    origin = {} if name.startswith("subnet") else Uniform(method, 100, None)
    return Finalist(name, method, origin, rate, taught, 100)


FIELD = [
    finalist("subnet 1"),
    finalist("subnet 2"),
    finalist("LoRA"),
    finalist("LoRA + teacher", taught=True),
    finalist("BitFit"),
    finalist("BitFit + teacher", taught=True),
]
ENDS = {"subnet 1": 0.2, "subnet 2": 0.9, "LoRA": 0.8, "LoRA + teacher": 0.5, "BitFit": 0.85, "BitFit + teacher": 0.95}


class Trainings:
    """Losses that fall from 1 to a finalist's own end."""

    def __init__(self, ends):
        self.ends, self.reached, self.calls = ends, {}, []

    def __call__(self, some, step):
        return {one.name: self.train(one, step) for one in some}

    def train(self, one, step):
        self.calls.append((one.name, step))
        self.reached[one.name] = max(step, self.reached.get(one.name, 0))
        loss = 1 - (1 - self.ends[one.name]) * step / STEPS
        return Standing(step, loss, 1 - loss, step, {step: loss})


@pytest.fixture
def study():
    return optuna.create_study(study_name="finals")


def test_the_best_wins_and_losers_are_dropped_early(study):
    trained = Trainings(ENDS)
    result = race(FIELD, trained, STEPS, study=study)
    assert result.last[0] == "subnet 1"
    assert trained.reached == {
        "subnet 1": 16, "subnet 2": 2, "LoRA": 16, "LoRA + teacher": 16, "BitFit": 2, "BitFit + teacher": 2,
    }  # fmt: skip
    assert result.steps == sum(trained.reached.values())


def test_the_tuned_baseline_and_its_taught_twin_are_trained_to_the_end_whoever_wins(study):
    ends = {**ENDS, "LoRA": 0.97, "LoRA + teacher": 0.99, "BitFit": 0.98}
    result = race(FIELD, Trainings(ends), STEPS, study=study)
    assert result.baseline == "LoRA"
    assert {"LoRA", "LoRA + teacher"} <= set(result.last)


def test_what_diverges_never_wins():
    result = race(FIELD, Trainings({**ENDS, "subnet 1": math.nan}), STEPS)
    assert result.last[0] == "LoRA + teacher"
    assert "subnet 1" not in result.last


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


def test_the_field_has_subnets_and_every_uniform_method_with_and_without_the_teacher(bind):
    space = bind("glora-paper")
    methods = uniform_methods(space, None, ["lora", "ia3", "bitfit"])
    options = {"methods": methods, "rates": [0.5, 2.0]}
    subnets = [({gene.name: gene.choices[0] for gene in space.genes}, 70)]
    names = [one.name for one in finalists(subnets, teacher=True, **options)]
    assert names == [
        "subnet 1 + teacher",
        "LoRA r=8 x0.5", "LoRA r=8 x2", "(IA)3", "BitFit",
        "LoRA r=8 x0.5 + teacher", "LoRA r=8 x2 + teacher", "(IA)3 + teacher", "BitFit + teacher",
    ]  # fmt: skip
    field = finalists(subnets, teacher=False, **options)
    assert [one.name for one in field] == ["subnet 1", "LoRA r=8 x0.5", "LoRA r=8 x2", "(IA)3", "BitFit"]
    assert len({one.slug for one in field}) == len(field)
    assert [one.uniform for one in field] == [False, True, True, True, True]
