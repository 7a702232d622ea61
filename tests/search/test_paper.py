"""The paper's evolution: its generations, its budget, and that nothing is proposed twice."""

from __future__ import annotations

import optuna
import pytest

from glora_search.search import PaperSampler, search
from glora_search.search.evolution.base import distributions
from glora_search.search.trials import LOSS, NOTES, ORIGIN, trial_key
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import SpaceLayer


@pytest.fixture
def space():
    kinds = {"A": ["lora", "vector", "none"], "B": ["lora", "none"], "E": ["vector", "none"]}
    return BoundSpace([SpaceLayer(f"l{index}", 8, 8, True, kinds, [1, 2]) for index in range(4)])


def run(space, sampler, trials, value=lambda genome: 0.0):
    return search(space, value, sampler=sampler, trials=trials, max_params=sampler.max_params, score="metric")


def origins(study):
    return [trial.user_attrs[ORIGIN] for trial in study.trials]


def test_generations_have_mutants_then_crossovers_then_random_genomes(space):
    sampler = PaperSampler(space, population_size=10, n_parents=3, n_mutants=5, n_crossovers=3, seed=1)
    study = run(space, sampler, 30, value=space.params)
    found = origins(study)
    assert found[:10] == ["random"] * 10
    assert found[10:20] == ["mutation"] * 5 + ["crossover"] * 3 + ["random"] * 2
    assert [trial.user_attrs[NOTES]["generation"] for trial in study.trials] == [0] * 10 + [1] * 10 + [2] * 10


def test_parents_are_the_best_of_all_generations_and_the_loss_breaks_ties(space):
    sampler = PaperSampler(space, population_size=4, n_parents=2, n_mutants=2, n_crossovers=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for value, loss in [(0.5, 0.3), (0.9, 0.4), (0.9, 0.2), (0.1, 0.1)]:
        trial = study.ask(distributions(space))
        trial.set_user_attr(LOSS, loss)
        study.tell(trial, value)
    history = sampler._history_of(study)
    assert [history.codec.decode(code) for code in sampler.select_parents(history, 1)] == [
        history.codec.decode(history.codec.encode(study.trials[number].params)) for number in (2, 1)
    ]


def test_it_is_an_optuna_ga_sampler_whose_populations_and_parents_can_be_read(space):
    sampler = PaperSampler(space, population_size=5, n_parents=2, n_mutants=3, n_crossovers=1)
    assert isinstance(sampler, optuna.samplers.BaseGASampler)
    plain = optuna.create_study(direction="maximize", sampler=sampler)
    genes = distributions(space)
    plain.optimize(lambda trial: space.params({n: trial._suggest(n, d) for n, d in genes.items()}), n_trials=12)
    for study in (plain, run(space, sampler, 12, value=space.params)):
        assert [len(sampler.get_population(study, generation)) for generation in range(3)] == [5, 5, 2]
        numbers = [trial.number for trial in sampler.select_parent(study, 1)]
        assert numbers == sorted(range(5), key=lambda number: (-study.trials[number].value, number))[:2]


def test_mutants_differ_from_a_parent_in_about_the_share_of_genes_that_is_set(space):
    wide = BoundSpace(
        [SpaceLayer(f"l{i}", 8, 8, True, {"B": ["lora", "vector", "constant", "none"]}, [1]) for i in range(200)]
    )
    sampler = PaperSampler(wide, population_size=2, n_parents=1, n_mutants=2, n_crossovers=0, mutation_prob=0.2)
    study = run(wide, sampler, 4, value=wide.params)
    parent = max(study.trials[:2], key=lambda trial: trial.value).params
    mutant = study.trials[2].params
    changed = sum(parent[name] != mutant[name] for name in parent)
    assert 10 <= changed <= 60  # 200 genes, 0.2 redrawn, 3 in 4 of those to another kind: 30


def test_every_gene_of_a_crossover_comes_from_one_of_the_parents(space):
    sampler = PaperSampler(space, population_size=6, n_parents=2, n_mutants=0, n_crossovers=6, seed=3)
    study = run(space, sampler, 12, value=space.params)
    parents = sorted(study.trials[:6], key=trial_key)[:2]
    crossed = [trial for trial in study.trials[6:] if trial.user_attrs[ORIGIN] == "crossover"]
    assert crossed
    for trial in crossed:
        genes = {k: v for k, v in trial.params.items() if not k.endswith(".r")}
        assert all(value in {p.params[name] for p in parents} for name, value in genes.items())


def test_no_proposal_is_over_the_budget_or_computes_the_same_as_an_earlier_one(space):
    sampler = PaperSampler(space, max_params=60, population_size=10, n_parents=3, n_mutants=5, n_crossovers=5)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(60):
        trial = study.ask(distributions(space))
        study.tell(trial, space.params(trial.params))
    assert max(space.params(trial.params) for trial in study.trials) <= 60
    assert len({space.key(trial.params) for trial in study.trials}) == 60


def test_the_same_seed_proposes_the_same_genomes_and_another_seed_others(space):
    def genomes(seed):
        return [trial.params for trial in run(space, PaperSampler(space, seed=seed), 8).trials]

    assert genomes(1) == genomes(1)
    assert genomes(1) != genomes(2)


def test_defaults_are_the_papers(space):
    sampler = PaperSampler(space)
    assert (sampler.population_size, sampler.n_parents, sampler.n_mutants, sampler.n_crossovers) == (50, 10, 25, 25)
    assert sampler.mutation_prob == 0.2
