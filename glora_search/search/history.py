"""What a search knows: its finished trials as arrays, for the samplers to draw from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from glora_search.errors import invalid
from glora_search.search.trials import NOTES, trial_key
from glora_search.space.bound import BoundSpace
from glora_search.space.codes import Code, key_of

LISTED = 1 << 16
"""The most genomes of a space whose last ones are looked for one by one."""


class History:
    """The trials of a search, in the order in which they finished.

    Attributes:
        space: the search's.
        codec: of the space.
        max_params: the budget; None is no budget.
        direction: of the score.
        trials: the finished trials, failed and partial ones included.
        codes: code of each trial.
        whole: positions in ``trials`` of those that were scored on all rows.
        scores: of the trials in ``whole``, lower is better, whatever the direction.
        seen: the keys of all trials.
        pending: the keys that other workers evaluate at the moment.
        memory: what the steps of a sampler keep from one proposal to the next, each under itself. What a step knows of
            a search has its place here, not in the step, which may serve another search next.
    """

    def __init__(
        self,
        space: BoundSpace,
        *,
        max_params: int | None = None,
        direction: StudyDirection = StudyDirection.MAXIMIZE,
    ) -> None:
        self.space, self.codec = space, space.codec
        self.max_params, self.direction = max_params, direction
        self.trials: list[FrozenTrial] = []
        self.codes: list[Code] = []
        self.whole: list[int] = []
        self.scores: list[float] = []
        self.seen: set[str] = set()
        self.pending: set[str] = set()
        self.memory: dict[Hashable, Any] = {}
        self._known: set[bytes] = set()
        self._losses: list[float] = []
        self._ranking: np.ndarray | None = None

    def add(self, trials: Iterable[FrozenTrial]) -> None:
        """Take in finished trials.

        Raises:
            UserError: a trial is of another space.
        """
        for trial in trials:
            try:
                code = self.codec.encode(trial.params)
            except KeyError as error:
                space = self.space
                allowed = f"trials of the space {space.name!r} with its {len(space.genes)} genes"
                raise invalid("storage", f"trial {trial.number} without a fitting {error}", allowed) from None
            if trial.state == TrialState.COMPLETE:
                score, loss, _ = trial_key(trial, self.direction)
                self.whole.append(len(self.trials))
                self.scores.append(score)
                self._losses.append(loss)
            self._ranking = None
            self.trials.append(trial)
            self.codes.append(code)
            self._known.add(code.tobytes())
            self.seen.add(key_of(code))

    @property
    def sign(self) -> float:
        """What makes a value of the study one where lower is better."""
        return -1.0 if self.direction == StudyDirection.MAXIMIZE else 1.0

    def __len__(self) -> int:
        return len(self.trials)

    def fits(self, code: Code) -> bool:
        """Whether a code is within the budget."""
        return self.max_params is None or self.codec.params(code) <= self.max_params

    def is_new(self, code: Code) -> bool:
        """Whether no trial has this code and no other worker evaluates it."""
        if code.tobytes() in self._known:
            return False
        if not self.pending and len(self.seen) == len(self._known):
            return True  # a key takes many times as long, and a proposal asks about a hundred codes
        key = key_of(code)
        return key not in self.seen and key not in self.pending

    def rest(self) -> Iterator[Code]:
        """Every code that is new and within the budget, in order; none in a space of more than `LISTED` genomes."""
        if math.prod(map(int, self.codec.sizes)) <= LISTED:
            everything = map(np.array, itertools.product(*map(range, self.codec.sizes)))
            yield from (code for code in everything if self.fits(code) and self.is_new(code))

    def sample(self, rng: np.random.Generator) -> Code:
        """A code with every gene drawn uniformly."""
        return self.codec.encode(self.space.sample(rng))

    def ranking(self) -> np.ndarray:
        """Positions in ``trials`` of what was scored on all rows, best first."""
        if self._ranking is None:
            order = np.lexsort((self.whole, self._losses, self.scores))
            self._ranking = np.array(self.whole, dtype=np.int64)[order]
        return self._ranking

    def notes(self, position: int) -> dict[str, Any]:
        """What the sampler noted at a trial."""
        found: dict[str, Any] = self.trials[position].user_attrs.get(NOTES, {})
        return found
