"""The search loop: what it evaluates, what it keeps, and how it goes on."""

from __future__ import annotations

import errno
import math
import sys
import types

import optuna
import pytest
from optuna.trial import TrialState

from glora_search.errors import UserError
from glora_search.search import Evaluation, best_trial, front, search
from glora_search.search import worker as worker_module
from glora_search.search.results import show_progress
from glora_search.search.shared.ledger import Ledger
from glora_search.search.trials import FAILED, KEY, LOSS, METRIC, ORIGIN, PARAMS
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import SpaceLayer

OPTIONS = {
    "evolution": {"n_random": 4},
    "paper": {"population_size": 8, "n_parents": 3, "n_mutants": 4, "n_crossovers": 4},
    "nsga2": {"population_size": 8},
}


SAMPLERS = ["evolution", "paper", "nsga2", "tpe", "random"]


def genomes(study):
    return [trial.params for trial in study.get_trials(states=(TrialState.COMPLETE,))]


def reread(journal):
    return optuna.load_study(
        study_name="search",
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal))),
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_over_the_budget_and_nothing_twice_is_evaluated(space, evaluator, sampler):
    made = evaluator()
    study = search(space, made, sampler=sampler, trials=40, max_params=90, options=OPTIONS.get(sampler))
    assert len(made.genomes) == 40
    assert max(space.params(genome) for genome in made.genomes) <= 90
    assert len({space.key(genome) for genome in made.genomes}) == 40
    assert genomes(study) == made.genomes


@pytest.mark.parametrize("sampler", ["evolution", "tpe"])
def test_the_uniform_methods_that_fit_the_budget_come_first(space, evaluator, sampler):
    made = evaluator()
    study = search(space, made, sampler=sampler, trials=12, max_params=90)
    fitting = {name: genome for name, genome in space.uniform_methods().items() if space.params(genome) <= 90}
    assert {"LoRA r=1", "BitFit", "(IA)3"} <= set(fitting)
    assert "LoRA r=2" not in fitting
    keys = {space.key(genome) for genome in fitting.values()}
    assert {space.key(genome) for genome in made.genomes[: len(keys)]} == keys
    assert {trial.user_attrs[ORIGIN] for trial in study.trials[: len(keys)]} <= set(fitting)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("stop_after", [3, 23])
def test_a_continued_search_is_the_same_as_one_that_never_stopped(space, evaluator, sampler, stop_after, tmp_path):
    settings = {"sampler": sampler, "trials": 32, "max_params": 90, "options": OPTIONS.get(sampler), "seed": 5}
    whole = search(space, evaluator(), **settings)
    journal = tmp_path / "journal.log"
    with pytest.raises(KeyboardInterrupt):
        search(space, evaluator(stop_after=stop_after), storage=journal, **settings)
    made = evaluator()
    study = search(space, made, storage=journal, **settings)
    assert len(made.genomes) == 32 - stop_after
    assert genomes(study) == genomes(whole)


def test_every_finished_trial_is_on_disk_with_its_genome_and_figures(space, evaluator, tmp_path):
    journal = tmp_path / "journal.log"
    study = search(space, evaluator(), trials=12, score="metric", storage=journal)
    stored = reread(journal).trials
    assert [trial.params for trial in stored] == genomes(study)
    for trial in stored:
        assert trial.user_attrs[PARAMS] == space.params(trial.params)
        assert trial.user_attrs[METRIC] == trial.value
        assert {LOSS, "seconds", ORIGIN, KEY} <= set(trial.user_attrs)


def test_genomes_that_compute_the_same_are_evaluated_once_also_after_a_restart(evaluator, tmp_path):
    kinds = {"B": ["lora", "none"], "E": ["vector", "none"]}
    small = BoundSpace([SpaceLayer("l", 8, 8, True, kinds, [1, 2]), SpaceLayer("m", 8, 8, False, kinds, [1, 2])])
    counted = []

    def evaluate(genome):
        counted.append(small.key(genome))
        return 0.5

    for trials in (7, 100, 100):
        study = search(small, evaluate, trials=trials, score="metric", storage=tmp_path / "journal.log")
    # l: none, B r=1, B r=2, E, and E with each B; m has no bias, so no E. The rank of no B makes no difference.
    assert len(counted) == len(set(counted)) == 6 * 3
    assert len(study.trials) == 6 * 3


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("kinds", "ranks", "functions"),
    [
        ({"B": ["none", "lora"]}, [0, 4], 2),  # the first genome of none has rank 0, and so has one of lora
        ({"B": ["none", "lora"]}, [0], 1),
        ({"B": ["lora"]}, [4], 1),
    ],
)
def test_a_small_space_is_searched_to_its_end(sampler, kinds, ranks, functions):
    small = BoundSpace([SpaceLayer(f"l{index}.query", 8, 8, True, kinds, ranks) for index in range(3)])
    study = search(small, lambda genome: Evaluation(0.5, 1.0 + small.params(genome)), sampler=sampler, trials=30)
    assert len({small.key(genome) for genome in genomes(study)}) == len(study.trials) == functions**3


@pytest.mark.parametrize("kind", ["error", "nan"])
def test_an_evaluation_that_fails_fails_its_trial_alone_and_the_reason_is_kept(space, tmp_path, kind):
    def evaluate(genome):
        if genome["l0.query.A"] == "vector":
            if kind == "error":
                raise MemoryError("out of memory: tried to allocate 2 GiB")
            return Evaluation(metric=0.5, loss=math.nan)
        return Evaluation(metric=0.5, loss=1.0)

    journal = tmp_path / "journal.log"
    study = search(space, evaluate, trials=30, storage=journal)
    reason = "MemoryError: out of memory: tried" if kind == "error" else "loss nan"
    for found in (study, reread(journal)):
        failed = [trial for trial in found.trials if trial.state == TrialState.FAIL]
        assert failed
        assert all(reason in trial.user_attrs[FAILED] for trial in failed)
        assert len(found.trials) == 30
    assert best_trial(study).params["l0.query.A"] == "none"


def test_a_search_whose_every_trial_fails_says_why(space):
    study = search(space, lambda genome: 1 / 0, trials=5)
    with pytest.raises(UserError, match="ZeroDivisionError"):
        best_trial(study)


def test_evaluations_that_fail_one_after_the_other_end_the_search_and_later_it_goes_on(space, evaluator, tmp_path):
    journal, made = tmp_path / "journal.log", evaluator()

    def broken(genome):
        if len(made.genomes) >= 4:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return made(genome)

    with pytest.raises(UserError, match="10 evaluations in a row have failed, the last one: RuntimeError: CUDA error"):
        search(space, broken, trials=30, storage=journal)
    assert len(reread(journal).trials) == 14
    study = search(space, evaluator(), trials=30, storage=journal)
    assert len(study.trials) == 30
    assert len(genomes(study)) == 20


def test_a_mistake_of_the_user_ends_the_search(space):
    with pytest.raises(UserError, match="evaluate: got 'good'"):
        search(space, lambda genome: "good", trials=5)


def append_fails(monkeypatch, error, *, written=False):
    """The second and the third time that a trial is written, that fails, or looks as if it had."""
    original, calls = Ledger.append, []

    def append(self, trial):
        calls.append(trial)
        if len(calls) not in (2, 3) or written:
            original(self, trial)
        if len(calls) in (2, 3):
            raise error

    monkeypatch.setattr(Ledger, "append", append)


@pytest.mark.parametrize("written", [False, True])
def test_a_trial_that_the_storage_does_not_take_is_written_again_unless_it_has_come_through(
    space, evaluator, tmp_path, monkeypatch, written
):
    whole = search(space, evaluator(), trials=12)
    append_fails(monkeypatch, OSError(errno.EIO, "Input/output error"), written=written)
    journal, made = tmp_path / "journal.log", evaluator()
    study = search(space, made, trials=12, storage=journal)
    for found in (study, reread(journal)):
        assert genomes(found) == made.genomes == genomes(whole)
        assert len(found.trials) == 12


def test_a_storage_that_takes_no_trial_for_a_minute_ends_the_search(space, evaluator, tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, "PATIENCE_SECONDS", 0.0)
    append_fails(monkeypatch, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(UserError, match=r"storage cannot be used \(OSError.*Input/output error"):
        search(space, evaluator(), trials=12, storage=tmp_path / "journal.log")
    assert len(reread(tmp_path / "journal.log").trials) == 1


def test_a_full_disk_ends_the_search_and_with_room_it_goes_on_as_if_nothing_had_happened(
    space, evaluator, tmp_path, monkeypatch
):
    whole = search(space, evaluator(), trials=12, storage=tmp_path / "whole.log")
    append_fails(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            search(space, evaluator(), trials=12, storage=tmp_path / "journal.log")
    study = search(space, evaluator(), trials=12, storage=tmp_path / "journal.log")
    assert [trial.params for trial in study.trials] == [trial.params for trial in whole.trials]
    assert [trial.values for trial in study.trials] == [trial.values for trial in whole.trials]


def test_the_best_trial_is_the_best_metric_then_the_lowest_loss(space):
    losses = iter([3.0, 1.0, 2.0, 4.0])
    metrics = iter([0.9, 0.9, 0.9, 0.8])
    study = search(space, lambda genome: Evaluation(next(metrics), next(losses)), score="metric", trials=4)
    assert best_trial(study).number == 1


def test_any_metric_can_be_searched_higher_or_lower(space):
    high = search(space, space.params, score="metric", trials=40, max_params=90)
    low = search(space, space.params, score="metric", trials=40, direction="minimize")
    assert best_trial(high).value == max(trial.value for trial in high.trials)
    assert best_trial(low).value == min(trial.value for trial in low.trials)
    assert space.params(best_trial(high).params) > 80
    assert space.params(best_trial(low).params) == 0


def test_the_loss_is_the_score(space):
    study = search(space, lambda genome: Evaluation(0.5, abs(space.params(genome) - 60)), trials=40)
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert best_trial(study).value == best_trial(study).user_attrs[LOSS] == min(t.value for t in study.trials)
    with pytest.raises(UserError, match=r"evaluate: got 0\.5; .*loss is the score; score='metric' takes a number"):
        search(space, lambda genome: 0.5, trials=3)


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "random"])
def test_the_front_holds_what_no_other_trial_beats_in_score_and_parameters(space, sampler, tmp_path):
    def evaluate(genome):
        return Evaluation(space.params(genome) % 23, 1.0)

    study = search(
        space,
        evaluate,
        sampler=sampler,
        objective="front",
        score="metric",
        trials=40,
        max_params=150,
        storage=tmp_path / "j.log",
    )
    found = front(study)
    assert {trial.number for trial in found} <= {trial.number for trial in study.best_trials}
    assert {tuple(trial.values) for trial in found} == {tuple(trial.values) for trial in study.best_trials}
    assert all(trial.values[1] == space.params(trial.params) <= 150 for trial in study.trials)
    assert best_trial(study).values[0] == max(trial.values[0] for trial in study.trials)


def test_every_trial_is_told_once_those_of_earlier_calls_too(space, evaluator, tmp_path):
    told = []
    for trials in (5, 9):
        told.append([])
        search(
            space,
            evaluator(),
            trials=trials,
            storage=tmp_path / "j.log",
            on_trial=lambda _, trial: told[-1].append(trial),
        )
    assert [[trial.number for trial in part] for part in told] == [list(range(5)), list(range(9))]


def test_optunas_importances_and_plots_work_on_the_study(space, evaluator, tmp_path):
    study = search(space, evaluator(), trials=25, storage=tmp_path / "journal.log")
    genes = {gene.name for gene in space.genes}
    assert len(study.trials_dataframe()) == 25
    assert set(optuna.importance.get_param_importances(study)) == genes
    plots = optuna.visualization
    for figure in (
        plots.plot_optimization_history(study),
        plots.plot_param_importances(study),
        plots.plot_parallel_coordinate(study, params=sorted(genes)[:3]),
        plots.plot_slice(study, params=sorted(genes)[:3]),
        plots.plot_contour(study, params=sorted(genes)[:2]),
    ):
        assert figure.data


def test_a_storage_that_does_not_answer_is_tried_again_and_then_named(space, evaluator, tmp_path, monkeypatch):
    original, failures = Ledger.claim, [OSError(errno.ENOSPC, "No space left on device")] * 3

    def claim(self, key):
        if failures:
            raise failures.pop()
        return original(self, key)

    monkeypatch.setattr(Ledger, "claim", claim)
    study = search(space, evaluator(), trials=5, storage=tmp_path / "journal.log")
    assert len(genomes(study)) == 5
    monkeypatch.setattr(worker_module, "PATIENCE_SECONDS", 0.0)
    failures.extend([OSError(errno.ENOSPC, "No space left on device")] * 99)
    with pytest.raises(UserError, match=r"storage cannot be used \(OSError.*No space left"):
        search(space, evaluator(), trials=9, storage=tmp_path / "journal.log")
    failures.clear()
    assert len(genomes(search(space, evaluator(), trials=9, storage=tmp_path / "journal.log"))) == 9


@pytest.mark.parametrize(("module", "name"), [("grpc", "RpcError"), ("redis", "RedisError")])
def test_errors_of_grpc_and_redis_are_those_of_a_storage(space, evaluator, tmp_path, monkeypatch, module, name):
    class LostError(Exception):
        pass

    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: LostError}))
    failures = {"claims": [LostError("connection lost")] * 3, "append": [LostError("connection lost")]}
    for method, left in failures.items():
        original = getattr(Ledger, method)

        def failing(self, *arguments, original=original, left=left):
            if left:
                raise left.pop()
            return original(self, *arguments)

        monkeypatch.setattr(Ledger, method, failing)
    study = search(space, evaluator(), trials=5, storage=tmp_path / "journal.log")
    assert not any(failures.values())
    assert len(genomes(study)) == 5


@pytest.mark.parametrize(("direction", "best"), [("maximize", 0.9), ("minimize", 0.2)])
def test_the_bar_shows_the_best_by_the_score_that_is_searched_for(direction, best):
    class Notes(list):
        def advance(self, steps, note):
            self.append(note)

    study, bar = optuna.create_study(direction=direction), Notes()
    show = show_progress(bar)
    for value, loss in ((0.5, 0.3), (0.9, 0.6), (0.2, 0.5)):
        study.add_trial(optuna.create_trial(value=value, user_attrs={"metric": value, "loss": loss}))
        show(study, study.trials[-1])
    assert bar[-1] == f"best {best:.4f}"


def test_a_search_that_another_seed_continues_is_exhausted_no_longer(tmp_path):
    space = BoundSpace([SpaceLayer(f"l{n}.query", 4, 4, True, {"E": ["vector", "none"]}, []) for n in range(2)])

    def evaluate(genome):
        return Evaluation(0.5, float(space.params(genome)))

    study = search(space, evaluate, trials=10, max_params=4, storage=tmp_path / "journal.log")
    assert study.user_attrs["exhausted"]
    study.set_user_attr("max_params", None)  # as if the rest had not been found
    study = search(space, evaluate, trials=len(study.trials) + 1, storage=tmp_path / "journal.log")
    assert not study.user_attrs["exhausted"]
