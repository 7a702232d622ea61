from __future__ import annotations

import collections
import math

import numpy as np
import pytest

from glora_search.errors import UserError
from glora_search.space.bound import BoundSpace
from glora_search.supernet.sampling import (
    STRATEGIES,
    BudgetSampling,
    FairSampling,
    SandwichSampling,
    SizeSampling,
    UniformSampling,
    make_sampling,
)

STEPS = 400


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_the_genomes_of_a_step_are_a_function_of_seed_and_step_alone(strategy, bind):
    space = bind("glora-paper")
    one, other = strategy(space, seed=3), strategy(BoundSpace.from_dict(space.to_dict()), seed=3)
    forwards = [one(step) for step in range(20)]
    assert [other(step) for step in reversed(range(20))] == forwards[::-1]
    assert [one(step) for step in range(20)] == forwards
    assert len({space.key(genome) for genomes in forwards for genome in genomes}) > 10


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_another_seed_is_another_sequence(strategy, bind):
    space = bind("glora-paper")
    sequences = [[strategy(space, seed=seed)(step) for step in range(5)] for seed in (0, 1)]
    assert sequences[0] != sequences[1]
    # A seed is no shift of the steps either.
    assert strategy(space, seed=0)(1) != strategy(space, seed=1)(0)


@pytest.mark.parametrize("strategy", STRATEGIES.values())
@pytest.mark.parametrize("name", ["glora", "glora-paper", "glora-ranks", "lora-ranks", "odd"])
@pytest.mark.parametrize("max_params", [None, 0, 400])
def test_every_genome_is_one_of_the_space(strategy, name, max_params, bind):
    sampling = strategy(bind(name), seed=0, max_params=max_params)
    for step in range(20):
        for genome in sampling(step):
            bind(name).check(genome)


def test_uniform_sampling_draws_every_choice_of_every_gene_equally_often(bind):
    space = bind("odd")
    sampling = UniformSampling(space, seed=0)
    drawn = [genome for step in range(STEPS) for genome in sampling(step)]
    for gene in space.genes:
        counts = collections.Counter(genome[gene.name] for genome in drawn)
        assert set(counts) == set(gene.choices)
        expected = STEPS / len(gene.choices)
        # Five standard deviations: a fair draw is outside less than once in a million.
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_size_sampling_covers_small_and_large_sizes_where_uniform_draws_are_of_the_middle(bind):
    space = bind("glora-paper")
    largest = space.params(space.largest)

    def shares(sampling) -> list[float]:
        sizes = [space.params(*sampling(step)) / largest for step in range(STEPS)]
        return [sum(low <= size < high for size in sizes) / STEPS for low, high in ((0, 0.1), (0.1, 0.3), (0.7, 1.01))]

    small, middle, large = shares(SizeSampling(space, seed=0, anchor_share=0))
    assert small > 0.2
    assert middle > 0.1
    assert large > 0.03
    assert shares(UniformSampling(space, seed=0))[0] == 0


@pytest.mark.parametrize("name", ["glora", "glora-paper", "glora-ranks", "lora-ranks"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 2.0])
def test_size_sampling_never_exceeds_its_largest_size(name, share, bind):
    space = bind(name)
    max_params = int(share * space.params(space.largest))
    sampling = SizeSampling(space, seed=0, max_params=max_params)
    sizes = [space.params(*sampling(step)) for step in range(100)]
    assert max(sizes) <= max_params
    if share:
        assert max(sizes) > 0.5 * min(max_params, space.params(space.largest))


def test_a_limit_below_the_smallest_subnet_trains_the_smallest(bind):
    space = bind("odd")
    assert space.params(space.smallest) > 1
    sampling = SizeSampling(space, seed=0, max_params=1)
    assert {space.params(*sampling(step)) for step in range(20)} == {space.params(space.smallest)}


def test_size_sampling_trains_the_uniform_methods_in_their_share_of_the_steps(bind):
    space = bind("glora-ranks")
    methods = {label: space.key(genome) for label, genome in space.uniform_methods().items()}
    sampling = SizeSampling(space, seed=0, anchor_share=0.25)
    drawn = collections.Counter(space.key(*sampling(step)) for step in range(STEPS))
    for label, key in methods.items():
        assert drawn[key], label
    anchors = sum(drawn[key] for key in set(methods.values()))
    assert 0.25 * STEPS - 5 * (0.25 * 0.75 * STEPS) ** 0.5 < anchors < 0.25 * STEPS + 5 * (0.25 * 0.75 * STEPS) ** 0.5
    always = SizeSampling(space, seed=0, anchor_share=1.0)
    assert {space.key(*always(step)) for step in range(STEPS)} == set(methods.values())


def test_a_uniform_method_that_is_too_large_is_no_anchor(bind):
    space = bind("glora-ranks")
    limit = space.params(space.uniform_methods()["LoRA r=2"])
    sampling = SizeSampling(space, seed=0, max_params=limit, anchor_share=1.0)
    wanted = {space.key(g) for g in space.uniform_methods().values() if space.params(g) <= limit}
    assert {space.key(*sampling(step)) for step in range(STEPS)} == wanted
    assert len(wanted) < len(space.uniform_methods())


def test_what_is_drawn_can_be_changed_without_changing_later_draws(bind):
    sampling = SizeSampling(bind("glora-ranks"), seed=0, anchor_share=1.0)
    before = [dict(*sampling(step)) for step in range(10)]
    for step in range(10):
        sampling(step)[0].clear()
    assert [dict(*sampling(step)) for step in range(10)] == before


@pytest.mark.parametrize("name", ["glora-paper", "glora-ranks", "odd"])
def test_fair_sampling_trains_every_choice_of_every_gene_equally_often_in_every_window(name, bind):
    space = bind(name)
    sampling = FairSampling(space, seed=0)
    window = math.lcm(*(len(gene.choices) for gene in space.genes))
    for start in (0, window, 5 * window):
        drawn = [genome for step in range(start, start + window) for genome in sampling(step)]
        for gene in space.genes:
            counts = collections.Counter(genome[gene.name] for genome in drawn)
            assert counts == dict.fromkeys(gene.choices, window // len(gene.choices))


def test_fair_sampling_draws_the_genes_apart_from_each_other(bind):
    space = bind("glora-paper")
    first, second = [gene for gene in space.genes if gene.path == "A"][:2]
    sampling = FairSampling(space, seed=0)
    pairs = collections.Counter((g[first.name], g[second.name]) for step in range(STEPS) for g in sampling(step))
    assert set(pairs) == {(a, b) for a in first.choices for b in second.choices}


def test_a_sandwich_is_the_largest_some_random_ones_and_the_smallest(bind):
    space = bind("glora-ranks")
    sampling = SandwichSampling(space, seed=0, random=3)
    for step in range(10):
        largest, *between, smallest = sampling(step)
        assert space.params(largest) == space.params(space.largest)
        assert space.params(smallest) == space.params(space.smallest)
        assert len(between) == 3
        assert len({space.key(genome) for genome in (largest, *between, smallest)}) > 2
    assert not sampling.distill
    assert SandwichSampling(space, distill=True).distill


@pytest.mark.parametrize("strategy", [SandwichSampling, BudgetSampling])
@pytest.mark.parametrize("share", [0.05, 0.3, 2.0])
def test_what_has_a_budget_never_exceeds_it(strategy, share, bind):
    space = bind("glora-ranks")
    limit = int(share * space.params(space.largest))
    sampling = strategy(space, seed=0, max_params=limit)
    sizes = [max(map(space.params, sampling(step))) for step in range(40)]
    assert max(sizes) <= limit
    assert min(sizes) > 0.5 * min(limit, space.params(space.largest))


def test_budget_sampling_stays_near_the_budget(bind):
    space = bind("glora-paper")
    limit = space.params(space.largest) // 4
    sizes = np.array([space.params(*BudgetSampling(space, max_params=limit, spread=0.2)(step)) for step in range(100)])
    assert sizes.min() > 0.7 * limit
    assert sizes.max() > 0.95 * limit
    assert np.ptp(sizes) > 0.1 * limit


@pytest.mark.parametrize(("name", "strategy"), STRATEGIES.items())
def test_a_strategy_is_made_by_its_name(name, strategy, bind):
    made = make_sampling(name, bind("glora-ranks"), seed=4, max_params=500)
    assert type(made) is strategy
    assert made(7) == strategy(bind("glora-ranks"), seed=4, max_params=500)(7)


def test_options_reach_the_strategy(bind):
    assert make_sampling("sizes", bind("glora"), options={"anchor_share": 0.5}).anchor_share == 0.5


def test_a_class_of_the_users_own_is_found_where_the_command_is_called(bind, tmp_path, monkeypatch):
    text = "from glora_search.supernet import Sampling\nclass Mine(Sampling):\n    pass\nother = 3\n"
    (tmp_path / "a_users_own.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    made = make_sampling("a_users_own.Mine", bind("glora"), seed=1, max_params=100)
    assert type(made).__name__ == "Mine"
    assert (made.seed, made.max_params) == (1, 100)
    with pytest.raises(UserError, match=r"a_users_own\.other"):
        make_sampling("a_users_own.other", bind("glora"))


@pytest.mark.parametrize("name", ["best", "json.loads", "no_such_module.X", "json.nothing", ".X", "json."])
def test_what_is_no_strategy_is_refused_with_those_that_are(name, bind):
    with pytest.raises(UserError) as error:
        make_sampling(name, bind("glora"))
    for word in ("supernet.sampling", name, *STRATEGIES, "import path"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sizes", {"anchor_share": 2}),
        ("sizes", {"anchors": 2}),
        ("budget", {"spread": -1}),
        ("sandwich", {"random": -1}),
        ("sandwich", {"random": 1.5}),
        ("sandwich", {"random": True}),
        ("sandwich", {"distill": "yes"}),
        ("sizes", {"anchor_share": "all"}),
        ("budget", {"spread": True}),
        ("fair", {"seed": 3}),
    ],
)
def test_options_that_a_strategy_does_not_take_are_refused(name, options, bind):
    with pytest.raises(UserError, match=r"supernet\.sampling_options") as error:
        make_sampling(name, bind("glora"), options=options)
    assert next(iter(options)) in str(error.value)


def test_every_wrong_option_has_its_line_with_what_is_allowed(bind):
    with pytest.raises(UserError) as error:
        make_sampling("sandwich", bind("glora"), options={"random": -1, "distill": "yes"})
    assert str(error.value).split("\n") == [
        "supernet.sampling_options.random: got -1; allowed: an int >= 0",
        "supernet.sampling_options.distill: got 'yes'; allowed: a valid boolean",
    ]
