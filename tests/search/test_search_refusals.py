"""What a search refuses: wrong arguments, and storages of another search."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from glora_search.errors import UserError
from glora_search.search import search
from glora_search.search.evolution.base import GenomeSampler, Proposal
from glora_search.search.trials import PARAMS
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import SpaceLayer

OPTIONS = {
    "evolution": {"n_random": 4},
    "paper": {"population_size": 8, "n_parents": 3, "n_mutants": 4, "n_crossovers": 4},
    "nsga2": {"population_size": 8},
}


def genomes(study):
    return [trial.params for trial in study.get_trials(states=(TrialState.COMPLETE,))]


def reread(journal):
    return optuna.load_study(
        study_name="search",
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal))),
    )


class Greedy(GenomeSampler):
    """Proposes the largest genome, whatever the budget."""

    def propose(self, history, number):
        return Proposal(history.codec.largest, "greed")


def test_a_front_needs_a_sampler_for_several_objectives(space, evaluator):
    with pytest.raises(UserError, match=r"search\.sampler: got 'evolution'.*nsga2"):
        search(space, evaluator(), objective="front")


def test_a_budget_below_the_cheapest_subnet_is_refused(evaluator):
    fixed = BoundSpace([SpaceLayer("l", 8, 8, True, {"B": ["lora"], "E": ["vector", "constant"]}, [2])])
    with pytest.raises(UserError, match=r"search\.max_params: got 20; allowed: at least 33"):
        search(fixed, evaluator(), trials=3, max_params=20)


def test_a_proposal_over_the_budget_is_neither_claimed_nor_evaluated(space, evaluator, tmp_path):
    made, largest = evaluator(), space.params(space.largest)
    with pytest.raises(UserError, match=rf"greed\) of {largest} parameters.*within search\.max_params, 90"):
        search(space, made, sampler=Greedy(space), trials=5, max_params=90, storage=tmp_path / "j.log")
    assert made.genomes == []
    assert "claim" not in (tmp_path / "j.log").read_text()


def test_a_sampler_that_repeats_itself_is_named_instead_of_asked_forever(space, evaluator):
    made = evaluator()
    with pytest.raises(UserError, match=r"search\.sampler: got .*greed.*allowed: one that was not evaluated before"):
        search(space, made, sampler=Greedy(space), trials=5)
    assert made.genomes == [space.codec.decode(space.codec.largest)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trials": 0}, r"search\.trials: got 0; allowed: an int >= 1$"),
        ({"trials": True}, r"search\.trials: got True; allowed: an int >= 1$"),
        ({"max_params": "90"}, r"search\.max_params: got '90'; allowed: an int >= 0 or None$"),
        ({"seed": -1}, r"search\.seed: got -1; allowed: an int >= 0$"),
        ({"score": "los"}, r"search\.score: got 'los'; allowed: 'loss' or 'metric'$"),
        ({"direction": "up"}, r"search\.direction: got 'up'; allowed: 'maximize' or 'minimize'$"),
        ({"options": {"boldness": "high"}}, r"search\.options\.boldness: got 'high'; allowed: a number >= 0$"),
        ({"options": {"changes": 0}}, r"search\.options\.changes: got 0; allowed: a number >= 1$"),
        ({"racing": True}, r"search\.racing: got True; allowed: .*no legs"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_evaluated_or_written(
    space, evaluator, tmp_path, arguments, message
):
    made = evaluator()
    with pytest.raises(UserError, match=message):
        search(space, made, storage=tmp_path / "j.log", **arguments)
    assert made.genomes == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {"max_params": 90}, "max_params is 90 here and was None"),
        ({"max_params": 90}, {}, "max_params is None here and was 90"),
        ({"max_params": 90}, {"max_params": 200}, "max_params is 200 here and was 90"),
        ({}, {"direction": "minimize"}, "direction is 'minimize' here and was 'maximize'"),
        ({"weights": "one"}, {"weights": "other"}, "weights is 'other' here and was 'one'"),
        ({}, {"weights": "other"}, "weights is 'other' here and was None"),
    ],
)
def test_a_search_goes_on_with_its_own_budget_direction_and_weights_alone(
    space, evaluator, tmp_path, first, second, words
):
    journal, made = tmp_path / "journal.log", evaluator()
    search(space, made, trials=5, storage=journal, **first)
    before = journal.read_bytes()
    with pytest.raises(UserError, match=rf"^storage: got .*journal\.log'; allowed: one of the same search: {words}"):
        search(space, made, trials=8, storage=journal, **second)
    assert journal.read_bytes() == before
    assert len(made.genomes) == 5
    assert len(search(space, made, trials=8, storage=journal, **first).trials) == 8


def of_an_earlier_version(space, evaluator, journal, **settings):
    """A journal of five trials in which only the space and the score are recorded."""
    search(space, evaluator(), trials=5, storage=journal, **settings)
    lines = journal.read_text().splitlines(keepends=True)
    new = ("max_params", "direction", "weights")
    journal.write_text("".join(line for line in lines if not any(f'"user_attr":{{"{key}"' in line for key in new)))
    return reread(journal)


def test_a_journal_of_an_earlier_version_goes_on_and_is_settled_from_then_on(space, evaluator, tmp_path):
    journal = tmp_path / "journal.log"
    of_an_earlier_version(space, evaluator, journal, max_params=90)
    assert set(reread(journal).user_attrs) == {"space", "score"}
    assert len(search(space, evaluator(), trials=8, storage=journal, max_params=90, weights="one").trials) == 8
    for settings, words in (({"weights": "one"}, "was 90"), ({"max_params": 90, "weights": "other"}, "was 'one'")):
        with pytest.raises(UserError, match=words):
            search(space, evaluator(), trials=9, storage=journal, **settings)


def test_a_journal_of_an_earlier_version_with_a_trial_over_the_budget_is_refused(space, evaluator, tmp_path):
    journal = tmp_path / "journal.log"
    largest = max(trial.user_attrs[PARAMS] for trial in of_an_earlier_version(space, evaluator, journal).trials)
    message = rf"one of the same search: max_params is {largest - 1} here, and it has a trial of {largest} parameters"
    with pytest.raises(UserError, match=message):
        search(space, evaluator(), trials=8, storage=journal, max_params=largest - 1)
    assert len(search(space, evaluator(), trials=8, storage=journal, max_params=largest).trials) == 8


def test_a_storage_of_another_search_is_refused_and_kept(space, evaluator, tmp_path):
    journal = tmp_path / "journal.log"
    search(space, evaluator(), trials=5, storage=journal)
    before = journal.read_bytes()
    other = BoundSpace([SpaceLayer("x", 8, 8, True, {"B": ["lora", "none"]}, [1])])
    with pytest.raises(UserError, match="storage"):
        search(other, evaluator(), trials=5, storage=journal)
    with pytest.raises(UserError, match="maximize"):
        search(space, evaluator(), trials=5, storage=journal, score="metric")
    assert journal.read_bytes() == before
