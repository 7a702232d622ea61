"""One process of a search: claim, evaluate, record; every finished trial is on disk before the next one starts."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState

from glora_search.errors import UserError, invalid
from glora_search.files.disk import full_disk
from glora_search.progress import say
from glora_search.ranking import is_finite
from glora_search.scoring import Evaluation
from glora_search.search.evolution.base import Proposal, distributions
from glora_search.search.history import History
from glora_search.search.racing import Race
from glora_search.search.samplers import Proposer
from glora_search.search.shared.ledger import Ledger
from glora_search.search.shared.storage import storage_errors
from glora_search.search.trials import EXHAUSTED, FAILED, KEY, LOSS, METRIC, NOTES, ORIGIN, PARAMS
from glora_search.space.bound import BoundSpace
from glora_search.space.codes import key_of
from glora_search.space.layers import Genome

Result = TypeVar("Result")
PATIENCE_SECONDS = 60.0
"""How long a storage that does not answer is tried again, before the search ends with an error."""
FAILURES = 10
"""Evaluations of a process that may fail in a row: after so many, the others would fail too, on a broken GPU say."""


class Worker:
    """One process of a search.

    Args:
        ledger: where finished trials and claims are recorded.
        history: the search's, without trials yet.
        proposer: where genomes come from.
        runner: proposal -> finished trial.
        trials: how many finished ones complete the search.
        on_trial: see `study.search`.
    """

    def __init__(
        self,
        ledger: Ledger,
        history: History,
        proposer: Proposer,
        runner: Runner,
        trials: int,
        on_trial: Callable[[optuna.Study, FrozenTrial], None] | None,
    ) -> None:
        self.ledger, self.history, self.proposer, self.runner = ledger, history, proposer, runner
        self.trials, self.on_trial = trials, on_trial
        self.failed: list[str] = []

    def run(self) -> None:
        """Evaluate until the search is complete.

        Raises:
            UserError: see `study.search`.
        """
        pause, salt = _Pause(), 0
        exhausted = self.ledger.study.user_attrs.get(EXHAUSTED)  # by an earlier call, which another seed may go past
        self._look(self.ledger.claims)
        if self.ledger.in_doubt and self._finished() < self.trials:
            say("search: waiting for a sign of another machine's workers, a minute at most", "dim")
            while self.ledger.in_doubt:  # what a dead one claims is not pending, and shifts no number
                pause()
                self._look(self.ledger.claims)
            pause.reset()
        while True:
            self._look(self.ledger.claims)
            if self._finished() >= self.trials:
                return
            if len(self.failed) >= FAILURES:
                raise UserError(
                    f"search: {FAILURES} evaluations in a row have failed, the last one: {self.failed[-1]}. Once that "
                    "is mended, the search goes on from its trials; those that have failed are not repeated"
                )
            proposal = None
            if self._finished() + len(self.history.pending) < self.trials:
                number = self._finished() + len(self.history.pending) + salt
                proposal = self.proposer.propose(self.history, number)
                if proposal is None and not self.history.pending:
                    self.ledger.study.set_user_attr(EXHAUSTED, True)
                    return
            if proposal is not None and exhausted:
                self.ledger.study.set_user_attr(EXHAUSTED, False)
                exhausted = False
            if proposal is None:
                pause()  # what is left is in the hands of other workers; one of them may die
                continue
            if not self._claim(proposal):
                self.proposer.done(None)
                # The same numbers would make the same two workers propose the same again.
                salt = random.randrange(1, 1 << 30)
                pause()
                continue
            salt = 0
            pause.reset()
            try:
                with self.ledger.beating():
                    trial = self.runner(proposal, self.history)
                kept = self._holds(proposal)
                if kept:
                    self._record(trial)
            except BaseException:
                self.proposer.done(None)
                raise
            self.proposer.done(trial if kept else None)
            self.failed = [*self.failed, trial.user_attrs[FAILED]] if trial.state == TrialState.FAIL else []

    def _finished(self) -> int:
        return len(self.history)

    def _look(self, read_claims: Callable[[], set[str]]) -> None:
        """Take in what others have finished; what they claim and have not finished is pending."""
        claims = _patiently(read_claims)  # before the trials: a claim that has ended since is a trial by then
        new = _patiently(self.ledger.new_trials)
        self.history.add(new)
        self.history.pending = claims - self.history.seen
        if self.on_trial is not None:
            for trial in new:
                self.on_trial(self.ledger.study, trial)

    def _claim(self, proposal: Proposal) -> bool:
        """Claim a genome; False where another worker was faster, or the last trial was taken.

        Raises:
            UserError: it is over the budget, or was not new when it was proposed.
        """
        got = f"a proposal ({proposal.origin}) of {self.history.codec.params(proposal.code)} parameters"
        if not self.history.fits(proposal.code):
            raise invalid("search.sampler", got, f"one within search.max_params, {self.history.max_params}")
        if not self.history.is_new(proposal.code):
            raise invalid("search.sampler", got, "one that was not evaluated before; None ends the search")
        key = key_of(proposal.code)
        self._look(lambda: self.ledger.claim(key))
        if not self.history.is_new(proposal.code) or self._finished() + len(self.history.pending) >= self.trials:
            _patiently(self.ledger.release)
            return False
        return True

    def _holds(self, proposal: Proposal) -> bool:
        """Whether the claim still stands; where it was lost in a long silence, claim again."""
        return _patiently(self.ledger.holds) or self._claim(proposal)

    def _record(self, trial: FrozenTrial) -> None:
        """Write a trial; before another try, look whether the first one has come through."""
        tried = False

        def write() -> None:
            nonlocal tried
            if tried:
                self._look(self.ledger.claims)
            if trial.user_attrs[KEY] not in self.history.seen:
                tried = True
                self.ledger.append(trial)

        _patiently(write, full=False)
        self._look(self.ledger.claims)


class Runner:
    """Proposal -> finished trial.

    Args:
        evaluate: see `study.search`.
        objective, score: see `study.search`.
        race: whether, and when, to stop an evaluation; None never does.
    """

    def __init__(self, space: BoundSpace, evaluate: Any, *, objective: str, score: str, race: Race | None) -> None:
        self.evaluate, self.objective, self.score, self.race = evaluate, objective, score, race
        self.genes = distributions(space)

    def __call__(self, proposal: Proposal, history: History) -> FrozenTrial:
        """Evaluate a genome; a trial that failed, or was stopped by the race, says so."""
        genome, params = history.codec.decode(proposal.code), history.codec.params(proposal.code)
        begun, started = datetime.now(), time.perf_counter()
        legs: dict[int, float] = {}
        failed, result = None, None
        try:
            result = self._evaluate(genome, history, legs)
        except UserError:
            raise
        except Exception as error:  # out of memory, say: the next genome may be smaller
            if full_disk(error, Path()) is not None:
                raise
            failed = _reason(error)
        attributes: dict[str, Any] = {ORIGIN: proposal.origin, PARAMS: params, KEY: key_of(proposal.code)}
        attributes["seconds"] = time.perf_counter() - started
        if proposal.notes:
            attributes[NOTES] = proposal.notes
        if result is not None and not is_finite(result.metric, result.loss):
            failed = f"metric {result.metric}, loss {result.loss}"
        state, values = TrialState.COMPLETE, None
        if failed is not None or result is None:
            state, legs = TrialState.FAIL, {}
            attributes[FAILED] = failed
        elif result.share < 1:
            state = TrialState.PRUNED
            attributes["partial"] = result.share
        else:
            values = [self._value(result)] + ([float(params)] if self.objective == "front" else [])
            attributes |= {METRIC: result.metric, LOSS: result.loss}
        # Not create_trial: it checks each gene against its distribution, which takes as long as writing it.
        return FrozenTrial(
            number=0,
            trial_id=-1,
            state=state,
            value=None,
            values=values,
            datetime_start=begun,
            datetime_complete=datetime.now(),
            params=genome,
            distributions=self.genes,
            user_attrs=attributes,
            system_attrs=proposal.system,
            intermediate_values=legs,
        )

    def _value(self, result: Evaluation) -> float:
        return float(result.loss if self.score == "loss" else result.metric)

    def _evaluate(self, genome: Genome, history: History, legs: dict[int, float]) -> Evaluation:
        if self.race is None:
            return _as_evaluation(self.evaluate(genome), self.score)
        result = None
        with contextlib.closing(self.evaluate.legs(genome)) as parts:
            for leg, part in enumerate(parts):
                result = _as_evaluation(part, self.score)
                if result.share >= 1 or not math.isfinite(self._value(result)):
                    break
                legs[leg] = self._value(result)
                if self.race.hopeless(history, leg, history.sign * legs[leg]):
                    break
        assert result is not None
        return result if math.isfinite(self._value(result)) else Evaluation(result.metric, result.loss)


def _as_evaluation(result: Any, score: str) -> Evaluation:
    """A result in plain numbers, which every storage takes."""
    try:
        if isinstance(result, Evaluation):
            return dataclasses.replace(result, metric=float(result.metric), loss=float(result.loss))
        metric = float(result)
    except (TypeError, ValueError):
        raise invalid("evaluate", result, "an Evaluation, or a number") from None
    if score == "loss":
        raise invalid("evaluate", result, "an Evaluation, whose loss is the score; score='metric' takes a number")
    return Evaluation(metric)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class _Pause:
    """Waits longer from time to time, and never two workers the same."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._seconds = 0.01

    def __call__(self) -> None:
        time.sleep(self._seconds * random.uniform(0.5, 1.0))
        self._seconds = min(2 * self._seconds, 0.5)


def _patiently(use: Callable[[], Result], *, full: bool = True) -> Result:
    """Use the storage; where it does not answer, try again for a while.

    Args:
        full: whether to wait for room on a full disk too; else its error is raised.

    Raises:
        UserError: it could not be used for a minute. What was recorded stays; a continued search goes on there.
    """
    pause, until = _Pause(), time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return use()
        except storage_errors() as error:
            if not full and full_disk(error, Path()) is not None:
                raise
            if time.monotonic() > until:
                raise UserError(f"search: the storage cannot be used ({_reason(error)})") from error
        pause()
