"""The search loop: what it evaluates, what it keeps, and how it goes on."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.trial import TrialState

from glora_search.errors import UserError
from glora_search.search import Evaluation, best_trial, search
from glora_search.search.sampler import LOSS, ORIGIN
from glora_search.search.study import open_journal
from glora_search.space import BoundSpace, SpaceLayer

OPTIONS = {"population_size": 8, "n_parents": 3, "n_mutants": 4, "n_crossovers": 4}


@pytest.fixture
def space():
    kinds = {"A": ["vector", "none"], "B": ["lora", "none"], "E": ["vector", "none"]}
    return BoundSpace([SpaceLayer(f"l{index}.query", 8, 8, True, kinds, [1, 2]) for index in range(4)])


class Evaluator:
    """Scores a genome by its parameters and remembers what it was asked."""

    def __init__(self, space, stop_after=None):
        self.space, self.genomes, self.stop_after = space, [], stop_after

    def __call__(self, genome):
        if self.stop_after is not None and len(self.genomes) >= self.stop_after:
            raise KeyboardInterrupt
        self.genomes.append(dict(genome))
        return Evaluation(metric=round(self.space.params(genome) / 1000, 2), loss=sum(self.space.encode(genome)))


def genomes(study):
    return [trial.params for trial in study.get_trials(states=(TrialState.COMPLETE,))]


@pytest.mark.parametrize("sampler", ["evolution", "nsga2", "tpe", "random"])
def test_nothing_over_the_budget_and_nothing_twice_is_evaluated(space, sampler):
    evaluator = Evaluator(space)
    options = OPTIONS if sampler == "evolution" else {}
    study = search(space, evaluator, sampler=sampler, trials=40, max_params=90, options=options)
    assert len(evaluator.genomes) == 40
    assert max(space.params(genome) for genome in evaluator.genomes) <= 90
    assert len({space.key(genome) for genome in evaluator.genomes}) == 40
    assert sorted(map(str, genomes(study))) == sorted(map(str, evaluator.genomes))


def test_the_uniform_methods_that_fit_the_budget_come_first(space):
    evaluator = Evaluator(space)
    study = search(space, evaluator, trials=10, max_params=90, options=OPTIONS)
    fitting = {name: genome for name, genome in space.uniform_methods().items() if space.params(genome) <= 90}
    assert {"LoRA r=1", "BitFit", "(IA)3"} <= set(fitting)
    assert "LoRA r=2" not in fitting
    first = [trial.user_attrs[ORIGIN] for trial in study.trials[: len(first_keys(space, fitting))]]
    assert set(first) <= set(fitting)
    keys = {space.key(genome) for genome in evaluator.genomes}
    assert all(space.key(genome) in keys for genome in fitting.values())


def first_keys(space, methods):
    return {space.key(genome) for genome in methods.values()}


def test_a_continued_search_is_the_same_as_one_that_never_stopped(space, tmp_path):
    whole = search(space, Evaluator(space), trials=40, max_params=90, options=OPTIONS)
    journal = tmp_path / "journal.log"
    with pytest.raises(KeyboardInterrupt):
        search(space, Evaluator(space, stop_after=23), trials=40, max_params=90, options=OPTIONS, journal=journal)
    evaluator = Evaluator(space)
    study = search(space, evaluator, trials=40, max_params=90, options=OPTIONS, journal=journal)
    assert len(evaluator.genomes) == 40 - 23
    assert genomes(study) == genomes(whole)


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "random"])
def test_every_sampler_continues_without_repeating_an_evaluation(space, sampler, tmp_path):
    journal = tmp_path / "journal.log"
    first, second = Evaluator(space), Evaluator(space)
    search(space, first, sampler=sampler, trials=15, journal=journal)
    search(space, second, sampler=sampler, trials=30, journal=journal)
    assert len(second.genomes) == 15
    assert len({space.key(genome) for genome in [*first.genomes, *second.genomes]}) == 30


def test_every_finished_trial_is_on_disk_with_its_genome_and_figures(space, tmp_path):
    journal = tmp_path / "journal.log"
    study = search(space, Evaluator(space), trials=12, options=OPTIONS, journal=journal)
    stored = open_journal(journal).trials
    assert [trial.params for trial in stored] == genomes(study)
    assert all(trial.user_attrs["params"] == space.params(trial.params) for trial in stored)
    assert all(LOSS in trial.user_attrs and "seconds" in trial.user_attrs for trial in stored)


def test_a_line_that_a_kill_cut_off_is_dropped_and_the_search_goes_on(space, tmp_path):
    journal = tmp_path / "journal.log"
    search(space, Evaluator(space), trials=10, options=OPTIONS, journal=journal)
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x","stu')
    evaluator = Evaluator(space)
    study = search(space, evaluator, trials=14, options=OPTIONS, journal=journal)
    assert len(evaluator.genomes) == 4
    assert len(study.trials) == 14
    assert len(open_journal(journal).trials) == 14


def test_a_result_that_is_not_finite_fails_its_trial_alone(space, tmp_path):
    def evaluate(genome):
        bad = genome["l0.query.A"] == "vector"
        return Evaluation(metric=0.5, loss=math.nan if bad else 1.0)

    journal = tmp_path / "journal.log"
    study = search(space, evaluate, trials=30, options=OPTIONS, journal=journal)
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert failed
    assert all("loss nan" in trial.user_attrs["failed"] for trial in failed)
    assert len(study.trials) == 30
    assert all("loss nan" in t.user_attrs["failed"] for t in open_journal(journal).trials if t.state == TrialState.FAIL)
    assert best_trial(study).params["l0.query.A"] == "none"


def test_the_search_ends_when_the_space_has_no_more_subnets():
    small = BoundSpace([SpaceLayer("l", 8, 8, True, {"B": ["lora", "none"], "E": ["vector", "none"]}, [1, 2])])
    evaluator = Evaluator(small)
    search(small, evaluator, trials=100, options=OPTIONS)
    # none, B r=1, B r=2, E, and E with each B: the rank where B is none makes no difference.
    assert len(evaluator.genomes) == 6


def test_the_best_trial_is_the_best_metric_then_the_lowest_loss(space):
    losses = iter([3.0, 1.0, 2.0, 4.0])
    metrics = iter([0.9, 0.9, 0.9, 0.8])
    study = search(space, lambda genome: Evaluation(next(metrics), next(losses)), trials=4)
    assert best_trial(study).number == 1


def test_a_budget_below_the_cheapest_subnet_is_refused():
    fixed = BoundSpace([SpaceLayer("l", 8, 8, True, {"B": ["lora"], "E": ["vector", "constant"]}, [2])])
    with pytest.raises(UserError, match=r"search\.max_params: got 20; allowed: at least 33"):
        search(fixed, Evaluator(fixed), trials=3, max_params=20)


def test_a_journal_of_another_space_is_refused_and_kept(space, tmp_path):
    journal = tmp_path / "journal.log"
    search(space, Evaluator(space), trials=5, options=OPTIONS, journal=journal)
    before = journal.read_bytes()
    other = BoundSpace([SpaceLayer("x", 8, 8, True, {"B": ["lora", "none"]}, [1])])
    with pytest.raises(UserError, match="journal"):
        search(other, Evaluator(other), trials=5, options=OPTIONS, journal=journal)
    assert journal.read_bytes() == before


def test_optunas_own_tools_read_the_study(space):
    study = search(space, Evaluator(space), trials=25, options=OPTIONS)
    assert len(study.trials_dataframe()) == 25
    assert set(optuna.importance.get_param_importances(study)) == {gene.name for gene in space.genes}
