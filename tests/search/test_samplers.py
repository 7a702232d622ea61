"""Samplers by name and by import path."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import optuna
import pytest
from optuna.study import StudyDirection

from glora_search.errors import UserError
from glora_search.search import Evaluation, EvolutionSampler, PaperSampler, make_sampler, search
from glora_search.search.evolution.base import distributions
from glora_search.search.history import History
from glora_search.search.samplers import OptunaProposer
from glora_search.space.bound import BoundSpace
from glora_search.space.codes import key_of
from glora_search.space.layers import SpaceLayer

OWN = {
    "evolution": lambda space, **settings: EvolutionSampler(space, n_random=4, **settings),
    "paper": lambda space, **settings: PaperSampler(
        space, population_size=8, n_parents=3, n_mutants=4, n_crossovers=4, **settings
    ),
}


def genomes(study):
    return [trial.params for trial in study.trials]


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
        ("evolution", {"boldness": "high"}, ["search.options.boldness: got 'high'; allowed: a number >= 0"]),
        ("evolution", {"boldness": float("inf")}, ["search.options.boldness: got inf; allowed: a number >= 0"]),
        ("evolution", {"boldness": -1}, ["search.options.boldness: got -1; allowed: a number >= 0"]),
        ("evolution", {"changes": 0}, ["search.options.changes: got 0; allowed: a number >= 1"]),
        ("evolution", {"changes": "x"}, ["search.options.changes: got 'x'; allowed: a number >= 1"]),
        ("evolution", {"pool": "3"}, ["search.options.pool: got '3'; allowed: an int >= 1"]),
        ("evolution", {"rounds": True}, ["search.options.rounds: got True; allowed: an int >= 0"]),
        ("evolution", {"start": "large"}, ["search.options.start: got 'large'; allowed: callable or None"]),
        ("evolution", {"surrogate": "gp"}, ["search.options.surrogate: got 'gp'; allowed: an instance of Surrogate"]),
        ("evolution", {"pool": 0, "changes": 0}, ["search.options.pool: got 0", "\nsearch.options.changes: got 0"]),
        ("paper", {"max_tries": 1.5}, ["search.options.max_tries: got 1.5; allowed: an int >= 1"]),
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


@pytest.mark.parametrize("name", OWN)
def test_a_sampler_that_has_served_another_search_proposes_as_a_new_one(space, evaluator, name):
    def loss(genome):
        return Evaluation(0.5, abs(space.params(genome) - 100) + genome["l0.query.r"] / 10)

    sampler = OWN[name](space, seed=3)
    search(space, evaluator(), sampler=sampler, trials=30, score="metric")
    settings = {"trials": 30, "max_params": 90, "score": "loss"}
    again = search(space, loss, sampler=sampler, **settings)
    assert genomes(again) == genomes(search(space, loss, sampler=OWN[name](space, seed=3), **settings))


@pytest.mark.parametrize("name", OWN)
def test_a_sampler_serves_a_search_of_another_space_than_the_one_before(space, name):
    kinds = {"B": ["lora", "vector", "none"], "E": ["constant", "none"]}
    other = BoundSpace([SpaceLayer(f"m{index}.dense", 4, 6, True, kinds, [2, 3]) for index in range(5)])
    sampler = OWN[name](space, seed=3)
    for each in (space, other):
        study = search(each, each.params, sampler=sampler, trials=25, max_params=90, score="metric")
        assert len({each.key(genome) for genome in genomes(study)}) == 25
        new = search(each, each.params, sampler=OWN[name](each, seed=3), trials=25, max_params=90, score="metric")
        assert genomes(study) == genomes(new)


def ask(study, space, trials):
    """Genomes of a plain study, each scored by its parameters."""
    found = []
    for _ in range(trials):
        trial = study.ask(distributions(space))
        study.tell(trial, space.params(trial.params))
        found.append(trial.params)
    return found


@pytest.mark.parametrize("name", OWN)
def test_a_sampler_of_two_plain_studies_at_once_knows_them_apart(space, name):
    def make():
        return OWN[name](space, max_params=90, seed=3)

    directions, sampler = ("maximize", "minimize"), make()
    studies = [optuna.create_study(direction=direction, sampler=sampler) for direction in directions]
    taken = [ask(study, space, 1)[0] for _ in range(25) for study in studies]  # in memory, each has the number 0
    for start, direction in enumerate(directions):
        assert taken[start::2] == ask(optuna.create_study(direction=direction, sampler=make()), space, 25)


@pytest.mark.parametrize("name", OWN)
def test_a_sampler_goes_on_where_it_was_pickled(space, name):
    study = optuna.create_study(direction="maximize", sampler=OWN[name](space, max_params=90, seed=3))
    taken = ask(study, space, 10)
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    taken += ask(study, space, 10)
    whole = optuna.create_study(direction="maximize", sampler=OWN[name](space, max_params=90, seed=3))
    assert taken == ask(whole, space, 20)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("own", [None, 40])
def test_in_a_search_the_searchs_budget_holds_not_the_samplers(space, name, own):
    def largest(genome):
        return Evaluation(0.5, -space.params(genome))

    study = search(space, largest, sampler=OWN[name](space, max_params=own), trials=30, max_params=90)
    assert len(study.trials) == 30
    assert 40 < max(space.params(genome) for genome in genomes(study)) <= 90


def test_a_paper_sampler_without_a_budget_finds_what_fits_a_small_one():
    kinds = {"A": ["vector", "lora"], "B": ["lora", "vector"], "E": ["vector", "none"]}
    wide = BoundSpace([SpaceLayer(f"l{index}.query", 8, 8, True, kinds, [0, 8]) for index in range(12)])
    budget = wide.params(wide.smallest) + 40  # hardly any genome that is drawn at random fits
    assert not any(wide.params(wide.sample(np.random.default_rng(seed))) <= budget for seed in range(100))
    study = search(wide, lambda genome: Evaluation(0.5, 1.0), sampler=PaperSampler(wide), trials=5, max_params=budget)
    assert len(study.trials) == 5


LAST = {
    "evolution": lambda space: EvolutionSampler(space, n_random=5),
    "paper": lambda space: PaperSampler(space, max_tries=1),
    "tpe": lambda space: OptunaProposer("tpe", space, directions=[StudyDirection.MINIMIZE] * 2, seed=0),
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_genome_of_a_small_space_is_found(name):
    layers = [SpaceLayer(f"l{number}.query", 4, 4, True, {"E": ["vector", "none"]}, []) for number in range(10)]
    space = BoundSpace(layers)
    codes = [np.array(code) for code in itertools.product((0, 1), repeat=10)]
    for left in (codes[0], codes[-1], codes[400]):
        history = History(space, max_params=None, direction=StudyDirection.MINIMIZE)
        history.pending = {key_of(code) for code in codes} - {key_of(left)}
        found = LAST[name](space).propose(history, 7)
        assert found is not None
        assert found.code.tolist() == left.tolist()
        history.pending.add(key_of(left))
        assert LAST[name](space).propose(history, 7) is None


def test_numbers_of_numpy_are_numbers(space):
    sampler = EvolutionSampler(space, max_params=np.int64(90), pool=np.int32(3), boldness=np.float64(0.5))
    assert (sampler.max_params, sampler.pool, sampler.boldness) == (90, 3, 0.5)


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


@pytest.mark.parametrize("trials", [10, 16, 40])
def test_a_grid_ends_the_search_where_it_ends(trials):
    space = BoundSpace([SpaceLayer(f"l{n}.query", 4, 4, True, {"E": ["vector", "none"]}, []) for n in range(4)])
    grid = {gene.name: list(gene.choices) for gene in space.genes}
    sampler = optuna.samplers.GridSampler(grid, seed=0)
    study = search(space, lambda genome: Evaluation(0.5, float(space.params(genome))), sampler=sampler, trials=trials)
    assert len(study.trials) == len({space.key(genome) for genome in genomes(study)})
    assert len(study.trials) == 10 if trials == 10 else 10 < len(study.trials) <= 16


def test_a_sampler_that_reads_the_genes_drawn_before_is_given_them(space, evaluator):
    study = search(space, evaluator(), sampler="optuna.samplers.BruteForceSampler", trials=20, max_params=100)
    assert len({space.key(genome) for genome in genomes(study)}) == 20


def test_without_a_budget_for_anything_the_smallest_subnet_is_proposed():
    kinds = {"A": ["constant", "none"], "E": ["vector", "none"]}
    space = BoundSpace([SpaceLayer(f"l{n}.query", 4, 4, True, kinds, []) for n in range(4)])
    study = search(space, lambda genome: Evaluation(0.5, 1.0), trials=3, max_params=0)
    assert [space.params(genome) for genome in genomes(study)] == [0]
