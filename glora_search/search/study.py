"""A search: from a space, an evaluator and a sampler to an Optuna study."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from pydantic import InstanceOf

from glora_search.errors import UserError, invalid
from glora_search.files.arguments import Count, Whole, checked_arguments
from glora_search.scoring import Evaluation
from glora_search.search.evolution.base import GenomeSampler
from glora_search.search.history import History
from glora_search.search.racing import Race
from glora_search.search.samplers import OPTUNAS, OptunaProposer, OwnProposer, Proposer, make_sampler
from glora_search.search.shared.ledger import BUDGET, Ledger
from glora_search.search.shared.storage import storage_errors
from glora_search.search.trials import STUDY_NAME
from glora_search.search.worker import Runner, Worker
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome


@checked_arguments("search")
def search(
    space: InstanceOf[BoundSpace],
    evaluate: Callable[[Genome], Evaluation | float],
    *,
    sampler: str | BaseSampler = "evolution",
    trials: Count = 1000,
    max_params: Whole | None = None,
    objective: Literal["best", "front"] = "best",
    score: Literal["loss", "metric"] = "loss",
    direction: Literal["maximize", "minimize"] = "maximize",
    seed: Whole = 0,
    options: Mapping[str, Any] | None = None,
    racing: bool = False,
    storage: str | Path | BaseStorage | None = None,
    study_name: str = STUDY_NAME,
    weights: str | None = None,
    on_trial: Callable[[optuna.Study, FrozenTrial], None] | None = None,
) -> optuna.Study:
    """Search a space for the genome with the best score under a budget, or for the front of score and parameters.

    No genome over the budget, and none that computes the same as an earlier one, is evaluated. Any number of
    processes can call this with the same storage: they share the trials, and no two evaluate the same. The defaults are
    those of a recipe's ``search`` section.

    Args:
        space: the bound space.
        evaluate: genome -> `Evaluation`; with ``score="metric"`` the metric alone will do. What it raises, or a figure
            that is not finite, fails that trial alone, with its reason.
        sampler: a name, see `make_sampler`, or an Optuna sampler.
        trials: stop when so many trials are finished, those of other workers and of earlier calls included.
        max_params: the budget: trainable adapter parameters; None is no budget, also where the sampler was made with
            one.
        objective: ``best``: the best score; ``front``: every genome that no other beats in score and parameters, by
            a sampler for several objectives, ``nsga2`` say.
        score: what is searched for: the loss, which is smooth, or the metric, whose ties the loss breaks.
        direction: whether a higher or a lower metric is better.
        seed: of all draws.
        options: keyword arguments of a sampler given by name.
        racing: stop an evaluation that has no chance any more, see `racing.Race`; the evaluator must have ``legs``.
        storage: where the study is kept, see `storage.open_storage`; where it exists already, the search continues.
        study_name: its name there.
        weights: a name of what the evaluator scores with, e.g. a hash of the supernet's weights; a storage that holds
            the trials of other weights is refused.
        on_trial: called with the study and each finished trial as this process learns of it, those of other workers
            and of earlier calls included.

    Returns:
        A study with one parameter a gene and one finished trial an evaluation. It holds fewer than ``trials`` where
        no further subnet within the budget was found.

    Raises:
        UserError: an argument is wrong, the budget is below the cheapest subnet, the storage cannot be used or belongs
            to another search (of another space, score, direction, budget, or other weights), an option cannot be used
            with another, the sampler proposed a genome over the budget, the search was begun anew by another process,
            or ten evaluations in a row have failed.
    """
    made = check_search(
        space, sampler=sampler, max_params=max_params, objective=objective, seed=seed, options=options, racing=racing
    )
    if racing and not hasattr(evaluate, "legs"):
        raise invalid("search.racing", racing, "false with an evaluator that has no legs; SubnetEvaluator has them")
    first = StudyDirection.MINIMIZE if score == "loss" or direction == "minimize" else StudyDirection.MAXIMIZE
    directions = [first, StudyDirection.MINIMIZE] if objective == "front" else [first]
    settings = {
        "space": space.codec.fingerprint,
        "score": score,
        "direction": direction,
        BUDGET: max_params,
        "weights": weights,
    }
    ledger = Ledger(storage, name=study_name, directions=directions, settings=settings)
    history = History(space, max_params=max_params, direction=first)
    proposer: Proposer = (
        OwnProposer(made)
        if isinstance(made, GenomeSampler)
        else OptunaProposer(made, space, directions=directions, seed=seed, options=options)
    )
    runner = Runner(space, evaluate, objective=objective, score=score, race=Race() if racing else None)
    worker = Worker(ledger, history, proposer, runner, trials, on_trial)
    try:
        worker.run()
    finally:
        with contextlib.suppress(UserError, *storage_errors()):
            ledger.leave()
    return ledger.study


def check_search(
    space: BoundSpace,
    *,
    sampler: str | BaseSampler = "evolution",
    max_params: int | None = None,
    objective: str = "best",
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    racing: bool = False,
) -> str | BaseSampler:
    """What can be wrong with a search before it has anything to score; the arguments are those of `search`.

    Returns:
        The sampler; one of Optuna's that was given by its name is made anew for each trial.

    Raises:
        UserError: the budget is below the cheapest subnet, the sampler or an option of it is unknown, or arguments
            exclude each other.
    """
    space.check_budget(max_params)
    made = sampler
    if isinstance(sampler, str):
        made = make_sampler(sampler, space, max_params=max_params, seed=seed, options=options)
    if objective == "front" and isinstance(made, GenomeSampler):
        raise invalid("search.sampler", sampler, "with objective front, a sampler for several objectives: nsga2, tpe")
    if racing and objective == "front":
        raise invalid("search.racing", racing, "false with objective front")
    return sampler if sampler in OPTUNAS else made
