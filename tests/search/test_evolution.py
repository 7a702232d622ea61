"""The default evolution and its steps."""

from __future__ import annotations

import numpy as np
import pytest

from glora_search.errors import UserError
from glora_search.search import Evaluation, EvolutionSampler, best_trial, search
from glora_search.search.evolution.base import distributions
from glora_search.search.evolution.selection import Tournament
from glora_search.search.evolution.start import AnySize, UniformMethods
from glora_search.search.evolution.surrogate import Surrogate
from glora_search.search.evolution.variation import GiveAndTake, LayerCrossover, resized
from glora_search.search.history import History
from glora_search.search.trials import ORIGIN
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import SpaceLayer


@pytest.fixture
def wide():
    kinds = {"A": ["vector", "none"], "B": ["lora", "none"], "E": ["vector", "none"]}
    shapes = [(16, 16), (16, 64), (64, 16)]
    return BoundSpace(
        [SpaceLayer(f"l{i}.m{i % 3}", *shapes[i % 3], True, kinds, [1, 2, 4]) for i in range(18)]
    )  # fmt: skip


def rng(seed=0):
    return np.random.default_rng(seed)


def effects(space):
    """A loss to which each gene adds its own part, more the more parameters it has."""
    codec = space.codec
    weights = rng(3).gamma(0.5, 1.0, len(codec.columns))

    def evaluate(genome):
        gain = float(codec.features([codec.encode(genome)])[0] @ weights)
        return Evaluation(metric=gain, loss=100 - gain)

    return evaluate


def history_of(space, trials=40, max_params=1500):
    study = search(space, effects(space), sampler="random", trials=trials, max_params=max_params, score="loss")
    history = History(space, max_params=max_params, direction=study.direction)
    history.add(study.trials)
    return history


@pytest.mark.parametrize("max_params", [0, 300, 1500, 10**9])
def test_resizing_meets_any_budget_and_grows_only_below_it(wide, max_params):
    codec = wide.codec
    for seed in range(10):
        code = codec.encode(wide.sample(rng(seed)))
        small = resized(codec, code, max_params, rng(seed))
        grown = resized(codec, code, max_params, rng(seed), grow=True)
        assert codec.params(small) <= max_params
        assert codec.params(small) <= codec.params(code)
        assert codec.params(small) <= codec.params(grown) <= max_params
    assert (resized(codec, code, None, rng()) == code).all()


def test_layers_that_are_kept_change_last(wide):
    codec = wide.codec
    keep = {0, 1, 2}
    code = codec.largest
    small = resized(codec, code, codec.params(code) - 10, rng(), keep=keep)
    assert (small[[0, 1, 2]] == code[[0, 1, 2]]).all()
    assert (small != code).any()
    assert codec.params(resized(codec, code, 0, rng(), keep=keep)) == 0


def test_mutants_change_few_layers_and_stay_in_the_budget_near_their_parents_size(wide):
    codec = wide.codec
    parent = resized(codec, codec.encode(wide.sample(rng())), 1500, rng(), grow=True)
    mutate = GiveAndTake(changes=2.0, keep_size=1.0)
    children = [mutate(codec, parent, 1500, rng(seed)) for seed in range(200)]
    sizes = np.array([codec.params(child) for child in children])
    changed = np.array([(child != parent).sum() for child in children])
    assert sizes.max() <= codec.params(parent)
    assert np.median(sizes) > 0.9 * codec.params(parent)
    assert np.median(changed) <= 5
    free = [GiveAndTake(keep_size=0.0)(codec, codec.smallest, 1500, rng(seed)) for seed in range(50)]
    assert any(codec.params(child) > 0 for child in free)


def test_a_crossover_takes_each_layer_from_a_parent_where_the_budget_allows(wide):
    codec = wide.codec
    first, second = codec.encode(wide.sample(rng(1))), codec.encode(wide.sample(rng(2)))
    child = LayerCrossover()(codec, first, second, None, rng())
    assert all(own in pair for own, *pair in zip(child, first, second, strict=True))
    assert (child != first).any()
    assert (child != second).any()
    assert codec.params(LayerCrossover()(codec, first, second, 500, rng())) <= 500


def test_the_first_genomes_are_uniform_methods_and_then_of_all_sizes(wide):
    history = History(wide, max_params=1500)
    name, code = UniformMethods()(history)
    assert name in wide.uniform_methods()
    assert history.fits(code)
    sizes = [history.codec.params(AnySize()(history, rng(seed))) for seed in range(100)]
    assert max(sizes) <= 1500
    assert sum(size < 500 for size in sizes) > 20
    assert sum(size > 1000 for size in sizes) > 5


def test_parents_are_among_the_best(wide):
    history = history_of(wide)
    best = {history.codec.params(history.codes[p]) for p in history.ranking()[:3]}
    select = Tournament(n_parents=3)
    assert {history.codec.params(select(history, rng(seed))) for seed in range(30)} == best


def test_what_a_gene_is_worth_is_learned(wide):
    history, unseen = history_of(wide, trials=120), wide.codec
    fitted = Surrogate().fit(history)
    codes = [
        resized(unseen, unseen.encode(wide.sample(rng(seed))), 1500, rng(seed), grow=True) for seed in range(1000, 1100)
    ]
    losses = [effects(wide)(unseen.decode(code)).loss for code in codes]
    predicted = fitted.mean(codes)
    assert np.corrcoef(np.argsort(np.argsort(losses)), np.argsort(np.argsort(predicted)))[0, 1] > 0.5
    known = [history.codes[position] for position in history.ranking()[:20]]
    assert fitted.spread(known).mean() < fitted.spread(codes).mean()


def test_what_was_learned_in_one_search_is_not_used_in_another(wide):
    surrogate = Surrogate()
    surrogate.fit(history_of(wide, trials=60, max_params=None))
    history = history_of(wide, trials=60, max_params=600)
    codes = [wide.codec.encode(wide.sample(rng(seed))) for seed in range(20)]
    again, new = surrogate.fit(history), Surrogate().fit(history)
    assert (again.mean(codes) == new.mean(codes)).all()
    assert (again.spread(codes) == new.spread(codes)).all()


def test_a_space_of_one_function_has_itself_as_its_only_mutant_and_child():
    single = BoundSpace([SpaceLayer("l", 8, 8, True, {"B": ["lora", "none"]}, [0])])
    codec = single.codec
    assert [table.neighbours for table in codec.tables] == [[[]]]
    code = codec.encode(single.sample(rng()))
    assert (GiveAndTake()(codec, code, None, rng()) == code).all()
    assert (LayerCrossover()(codec, code, code, 10, rng()) == code).all()
    assert (resized(codec, code, 10, rng(), grow=True) == code).all()


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (GiveAndTake, {"changes": 0.5}),
        (GiveAndTake, {"keep_size": 2}),
        (LayerCrossover, {"share": -0.1}),
        (Tournament, {"size": 0}),
        (AnySize, {"span": "wide"}),
        (Surrogate, {"window": 1}),
    ],
)
def test_a_step_of_wrong_numbers_is_refused(step, options):
    (name, value), *_ = options.items()
    with pytest.raises(UserError, match=f"^{name}: got {value!r}; allowed: a"):
        step(**options)


def test_too_few_trials_teach_nothing(wide):
    assert Surrogate().fit(history_of(wide, trials=5)) is None


def test_the_evolution_ends_no_worse_than_the_uniform_methods_and_beats_random_search(wide):
    evaluate = effects(wide)
    settings = {"trials": 80, "max_params": 1500, "score": "loss", "seed": 1}
    fitting = [genome for genome in wide.uniform_methods().values() if wide.params(genome) <= 1500]
    best = best_trial(search(wide, evaluate, **settings)).value
    assert best <= min(evaluate(genome).loss for genome in fitting)
    assert best < best_trial(search(wide, evaluate, sampler="random", **settings)).value


def test_a_step_can_be_swapped(wide):
    class Smallest(AnySize):
        def __call__(self, history, rng):
            return history.codec.smallest

    sampler = EvolutionSampler(wide, max_params=1500, n_random=1, start=Smallest())
    study = search(wide, effects(wide), sampler=sampler, trials=25, max_params=1500)
    drawn = [trial for trial in study.trials if trial.user_attrs[ORIGIN] == "random"]
    assert [wide.params(trial.params) for trial in drawn] == [0]


def test_the_sampler_works_in_a_plain_study_of_optuna(wide):
    import optuna

    study = optuna.create_study(direction="maximize", sampler=EvolutionSampler(wide, max_params=1500, n_random=3))
    evaluate = effects(wide)
    for _ in range(25):
        trial = study.ask(distributions(wide))
        study.tell(trial, evaluate(trial.params).metric)
    assert max(wide.params(trial.params) for trial in study.trials) <= 1500
    assert len({wide.key(trial.params) for trial in study.trials}) == 25


@pytest.mark.parametrize("max_params", [None, 700])
def test_a_short_search_is_told_what_it_is_spent_on_and_how_long_one_is_not(wide, max_params):
    sampler = EvolutionSampler(wide, max_params=max_params, n_random=6)

    def origins(trials):
        study = search(wide, effects(wide), sampler=sampler, trials=trials, max_params=max_params)
        return [trial.user_attrs[ORIGIN] for trial in study.trials]

    def own(found):
        return sum(origin in ("mutation", "crossover") for origin in found)

    uniform = sum(origin not in ("random", "mutation", "crossover") for origin in origins(30))
    start = uniform + 6
    for trials in (uniform - 1, uniform + 2, 2 * start - 1):
        found = origins(trials)
        random = found.count("random")
        assert sampler.note(trials) == (
            f"of {trials} trials, {trials - random - own(found)} are uniform methods, {random} are random subnets, "
            f"and {own(found)} are chosen by the evolution; with {2 * start} trials or more, it chooses at least half"
        )
    assert sampler.note(2 * start) is None
    assert own(origins(2 * start)) == start
