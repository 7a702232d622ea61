"""Samplers by name and by import path."""

from __future__ import annotations

import optuna
import pytest

from glora_search.errors import UserError
from glora_search.search import make_sampler, search


@pytest.mark.parametrize(
    "name", ["evolution", "paper", "nsga2", "tpe", "random", "optuna.samplers.QMCSampler", "optuna.samplers.GPSampler"]
)
def test_every_sampler_of_a_recipe_is_an_optuna_sampler(space, name):
    assert isinstance(make_sampler(name, space, max_params=100), optuna.samplers.BaseSampler)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("annealing", {}, ["search.sampler", "annealing", "evolution", "import path"]),
        ("optuna.samplers.NoSampler", {}, ["search.sampler", "optuna.samplers.NoSampler", "NoSampler"]),
        ("no_module.Sampler", {}, ["search.sampler", "no_module"]),
        ("optuna.trial.Trial", {}, ["search.sampler", "optuna.trial.Trial", "import path"]),
        ("evolution", {"population": 5}, ["search.options", "population"]),
        ("evolution", {"pool": 0}, ["search.options.pool", "0", ">= 1"]),
        ("evolution", {"random_prob": 2}, ["random_prob", "2", "0 to 1"]),
        ("paper", {"population_size": 0}, ["population_size", "0", ">= 1"]),
        ("paper", {"mutation_prob": 2}, ["mutation_prob", "2", "0 to 1"]),
        ("paper", {"population_size": 10}, ["n_mutants", "population_size=10"]),
        ("tpe", {"speed": 1}, ["search.options", "speed"]),
    ],
)
def test_wrong_names_and_options_are_refused(space, name, options, words):
    with pytest.raises(UserError) as error:
        make_sampler(name, space, options=options)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("sampler", ["optuna.samplers.QMCSampler", optuna.samplers.TPESampler(multivariate=True)])
def test_any_optuna_sampler_searches_within_the_budget_and_repeats_nothing(space, evaluator, sampler):
    made = evaluator()
    search(space, made, sampler=sampler, trials=20, max_params=90)
    assert max(space.params(genome) for genome in made.genomes) <= 90
    assert len({space.key(genome) for genome in made.genomes}) == 20


def test_nsga2_breeds_from_what_was_evaluated(space, evaluator):
    study = search(space, evaluator(), sampler="nsga2", trials=24, max_params=90, options={"population_size": 6})
    generations = [trial.system_attrs["NSGAIISampler:generation"] for trial in study.trials]
    assert generations == [number // 6 for number in range(24)]
