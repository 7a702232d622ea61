from __future__ import annotations

import collections

import pytest

from glora_search.space import BoundSpace
from glora_search.supernet.sampling import STRATEGIES, SizeSampling, UniformSampling

STEPS = 400


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_a_genome_is_a_function_of_seed_and_step_alone(strategy, bind):
    space = bind("glora-paper")
    one, other = strategy(space, seed=3), strategy(BoundSpace.from_dict(space.to_dict()), seed=3)
    forwards = [one(step) for step in range(20)]
    assert [other(step) for step in reversed(range(20))] == forwards[::-1]
    assert [one(step) for step in range(20)] == forwards
    assert len({space.key(genome) for genome in forwards}) > 10


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_another_seed_is_another_sequence(strategy, bind):
    space = bind("glora-paper")
    sequences = [[strategy(space, seed=seed)(step) for step in range(5)] for seed in (0, 1)]
    assert sequences[0] != sequences[1]
    # A seed is no shift of the steps either.
    assert strategy(space, seed=0)(1) != strategy(space, seed=1)(0)


@pytest.mark.parametrize("strategy", STRATEGIES.values())
@pytest.mark.parametrize("name", ["glora", "glora-paper", "glora-ranks", "lora-ranks", "odd"])
def test_every_genome_is_one_of_the_space(strategy, name, bind):
    sampling = strategy(bind(name), seed=0)
    for step in range(40):
        bind(name).check(sampling(step))


def test_uniform_sampling_draws_every_choice_of_every_gene_equally_often(bind):
    space = bind("odd")
    sampling = UniformSampling(space, seed=0)
    drawn = [sampling(step) for step in range(STEPS)]
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
        sizes = [space.params(sampling(step)) / largest for step in range(STEPS)]
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
    sizes = [space.params(sampling(step)) for step in range(100)]
    assert max(sizes) <= max_params
    if share:
        assert max(sizes) > 0.5 * min(max_params, space.params(space.largest))


def test_a_limit_below_the_smallest_subnet_trains_the_smallest(bind):
    space = bind("odd")
    assert space.params(space.smallest) > 1
    sampling = SizeSampling(space, seed=0, max_params=1)
    assert {space.params(sampling(step)) for step in range(20)} == {space.params(space.smallest)}


def test_size_sampling_trains_the_uniform_methods_in_their_share_of_the_steps(bind):
    space = bind("glora-ranks")
    methods = {label: space.key(genome) for label, genome in space.uniform_methods().items()}
    sampling = SizeSampling(space, seed=0, anchor_share=0.25)
    drawn = collections.Counter(space.key(sampling(step)) for step in range(STEPS))
    for label, key in methods.items():
        assert drawn[key], label
    anchors = sum(drawn[key] for key in set(methods.values()))
    assert 0.25 * STEPS - 5 * (0.25 * 0.75 * STEPS) ** 0.5 < anchors < 0.25 * STEPS + 5 * (0.25 * 0.75 * STEPS) ** 0.5
    always = SizeSampling(space, seed=0, anchor_share=1.0)
    assert {space.key(always(step)) for step in range(STEPS)} == set(methods.values())


def test_a_uniform_method_that_is_too_large_is_no_anchor(bind):
    space = bind("glora-ranks")
    limit = space.params(space.uniform_methods()["LoRA r=2"])
    sampling = SizeSampling(space, seed=0, max_params=limit, anchor_share=1.0)
    wanted = {space.key(g) for g in space.uniform_methods().values() if space.params(g) <= limit}
    assert {space.key(sampling(step)) for step in range(STEPS)} == wanted
    assert len(wanted) < len(space.uniform_methods())


def test_what_is_drawn_can_be_changed_without_changing_later_draws(bind):
    sampling = SizeSampling(bind("glora-ranks"), seed=0, anchor_share=1.0)
    before = [dict(sampling(step)) for step in range(10)]
    for step in range(10):
        sampling(step).clear()
    assert [sampling(step) for step in range(10)] == before
