"""Running a search: ask, evaluate, tell; every finished trial is on disk before the next one starts.

Sampling runs against a study in memory and each finished trial is appended to the durable one in a single write:
with hundreds of genes that is many times faster than sampling against the durable storage.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from glora_search.errors import UserError, invalid
from glora_search.search.evaluator import Evaluation
from glora_search.search.sampler import LOSS, ORIGIN, distributions, make_sampler, rank_key
from glora_search.space import BoundSpace, Genome

STUDY_NAME = "search"
MAX_TRIES = 200


def search(
    space: BoundSpace,
    evaluate: Callable[[Genome], Evaluation],
    *,
    sampler: str | BaseSampler = "evolution",
    trials: int = 1000,
    max_params: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    journal: Path | None = None,
    on_trial: Callable[[FrozenTrial], None] | None = None,
) -> optuna.Study:
    """Search a space for the genome with the best metric under a budget.

    The uniform methods that the space holds and the budget allows come first. No genome over the budget, and none
    that computes the same as an earlier one, is evaluated.

    Args:
        space: the bound space.
        evaluate: genome -> `Evaluation`; one whose metric or loss is not finite fails that trial alone.
        sampler: a name, see `make_sampler`, or an Optuna sampler.
        trials: stop when so many trials are finished, those of an earlier call on the same journal included.
        max_params: the budget: trainable adapter parameters.
        seed: of all draws.
        options: keyword arguments of a sampler given by name.
        journal: file of the durable study; where it exists already, the search continues.
        on_trial: called after each finished trial.

    Returns:
        A study with one parameter a gene and one finished trial an evaluation. It holds fewer than ``trials`` where
        no further subnet within the budget was found in 200 draws.

    Raises:
        UserError: the budget is below the cheapest subnet, or the journal belongs to another space.
    """
    space.check_budget(max_params)
    durable = open_journal(journal) if journal is not None else None
    finished = durable.get_trials(deepcopy=False) if durable is not None else []
    if isinstance(sampler, str):
        # Optuna's own samplers keep a random state; a continued search must not draw the same numbers again.
        start = seed if sampler == "evolution" else seed + len(finished)
        sampler = make_sampler(sampler, space, max_params=max_params, seed=start, options=options)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=sampler, study_name=STUDY_NAME)
    genes = distributions(space)
    for trial in finished:
        if trial.distributions != genes:
            raise invalid("journal", str(journal), f"trials of the space {space.name!r} with its {len(genes)} genes")
        study.add_trial(trial)
    proposer = _Proposer(space, max_params, seed, {space.key(trial.params) for trial in finished})
    first = [
        (name, genome)
        for name, genome in space.uniform_methods().items()
        if max_params is None or space.params(genome) <= max_params
    ]
    while len(study.get_trials(deepcopy=False, states=DONE)) < trials:
        while first and space.key(first[0][1]) in proposer.seen:
            first.pop(0)
        if first:
            name, genome = first.pop(0)
            study.enqueue_trial(genome, user_attrs={ORIGIN: name})
            trial, origin = study.ask(genes), name
        else:
            trial = study.ask(genes)
            origin = trial.storage.get_trial_user_attrs(trial._trial_id).get(ORIGIN, type(sampler).__name__)
            proposed = proposer.make_new(trial.params, trial.number)
            if proposed is None:
                study.tell(trial, state=TrialState.FAIL)
                break
            genome = proposed
        proposer.seen.add(space.key(genome))
        done = _run(evaluate, genome, genes, {ORIGIN: origin, "params": space.params(genome)}, trial)
        _record(study, trial, done)
        if durable is not None:
            durable.add_trial(done)
        if on_trial is not None:
            on_trial(done)
    return study


DONE = (TrialState.COMPLETE, TrialState.FAIL)


class _Proposer:
    """Turns a sampler's proposal into a genome that fits the budget and is new."""

    def __init__(self, space: BoundSpace, max_params: int | None, seed: int, seen: set[Any]) -> None:
        self.space, self.max_params, self.seed, self.seen = space, max_params, seed, seen

    def make_new(self, genome: Genome, number: int) -> Genome | None:
        """The genome itself where it can be evaluated, else a neighbour of it; None if none was found."""
        rng = np.random.default_rng([self.seed, number, 1])
        for attempt in range(MAX_TRIES):
            candidate = dict(genome)
            if attempt:
                redrawn = self.space.sample(rng)
                # Further and further away, until it is a genome drawn at random.
                names = rng.permutation(list(redrawn))[: max(1, attempt * len(redrawn) // (MAX_TRIES // 2))]
                candidate |= {name: redrawn[name] for name in names}
            if self.max_params is not None:
                candidate = self.space.resize(candidate, self.max_params, rng)
            if self.space.key(candidate) not in self.seen:
                return candidate
        return None


def _run(
    evaluate: Callable[[Genome], Evaluation],
    genome: Genome,
    genes: dict[str, Any],
    attributes: dict[str, Any],
    trial: optuna.Trial,
) -> FrozenTrial:
    """Evaluate a genome; what comes back is a finished trial, a failed one if the result is not finite."""
    started = time.perf_counter()
    result = evaluate(genome)
    attributes |= {"seconds": time.perf_counter() - started}
    system = dict(trial.storage.get_trial_system_attrs(trial._trial_id))
    system.pop("fixed_params", None)
    common: dict[str, Any] = {"params": genome, "distributions": genes, "system_attrs": system}
    if not (math.isfinite(result.metric) and math.isfinite(result.loss)):
        attributes["failed"] = f"metric {result.metric}, loss {result.loss}"
        return create_trial(state=TrialState.FAIL, user_attrs=attributes, **common)
    return create_trial(value=result.metric, user_attrs={**attributes, LOSS: result.loss}, **common)


def _record(study: optuna.Study, trial: optuna.Trial, done: FrozenTrial) -> None:
    """Tell the in-memory study; where another genome than the proposed one was evaluated, add that one."""
    if trial.params == done.params:
        for name, value in done.user_attrs.items():
            trial.set_user_attr(name, value)
        study.tell(trial, done.value, state=done.state)
    else:
        study.tell(trial, state=TrialState.PRUNED)
        study.add_trial(done)


def best_trial(study: optuna.Study) -> FrozenTrial:
    """The finished trial with the best metric; ties go to the lower loss, then to the earlier one.

    Raises:
        UserError: no trial has finished.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not finished:
        raise UserError("search: no trial has finished with a finite metric and loss")
    return min(finished, key=rank_key)


def open_journal(path: Path) -> optuna.Study:
    """The durable study of a journal file, made if it is not there.

    A write that was cut off (by SIGKILL, say) leaves half a line at the end of the file; it is removed, or the next
    trial would be appended to it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    storage = JournalStorage(JournalFileBackend(str(path)))
    if optuna.get_all_study_names(storage):
        return optuna.load_study(study_name=STUDY_NAME, storage=storage)
    return optuna.create_study(study_name=STUDY_NAME, storage=storage, direction="maximize")
