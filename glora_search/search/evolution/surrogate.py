"""What the trials so far say about a genome that was not evaluated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, cast

import numpy as np
from pydantic import Field
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import ThreadpoolController

from glora_search.files.arguments import checked_arguments
from glora_search.search.history import History
from glora_search.space.codes import Code, Codec

FADING = 0.25
"""The share of the kernel's part that fades with the number of differences."""
Window = Annotated[int, Field(ge=2, description="an int >= 2")]

Method = TypeVar("Method", bound=Callable[..., Any])


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _on_one_thread(method: Method) -> Method:
    """Several threads take many times as long as one for matrices of this size, the more so beside torch's own."""

    @functools.wraps(method)
    def limited(*args: Any) -> Any:
        with _blas().limit(limits=1, user_api="blas"):
            return method(*args)

    return cast(Method, limited)


class Surrogate:
    """A Gaussian process over which kinds and ranks each layer has.

    Its kernel is a sum of linear parts (an effect of each kind and rank over all layers, over the layers of one name,
    query say, and in each layer) and one that fades with the number of differences. It sees the ranks of the scores,
    not their sizes: one very bad genome must not outweigh all the others.

    Args:
        window: how many trials it learns from: half of them the best, half the latest.
    """

    @checked_arguments()
    def __init__(self, window: Window = 160) -> None:
        self.window = window

    @_on_one_thread
    def fit(self, history: History) -> Fitted | None:
        """Learn from the trials that were scored on all rows; None where they are too few."""
        if len(history.whole) < 8:
            return None
        ranking = history.ranking()
        half = self.window // 2
        best_known = ranking[:half].tolist()
        among = set(best_known)
        latest = [position for position in reversed(history.whole) if position not in among][:half]
        chosen = [*best_known, *latest]
        place = np.empty(len(history.codes))
        place[ranking] = (np.arange(len(ranking)) + 0.5) / len(ranking)
        target = np.log(place[chosen] / (1 - place[chosen]))
        y = (target - target.mean()) / (target.std() or 1.0)
        if self not in history.memory:
            history.memory[self] = _Known(history.codec)
        known: _Known = history.memory[self]
        return Fitted(history.codec, known.groups, known.features(history, chosen), y)


class _Known:
    """What is computed once a history: the features of its trials, and which columns are of one name."""

    def __init__(self, codec: Codec) -> None:
        modules = [f"{name.rpartition('.')[2]} {feature}" for name, feature in codec.columns]
        self.groups = [_groups([feature for _, feature in codec.columns]), _groups(modules)]
        self._rows: dict[int, np.ndarray] = {}

    def features(self, history: History, positions: list[int]) -> np.ndarray:
        """``[positions, columns]`` of 0 and 1."""
        new = [position for position in positions if position not in self._rows]
        if new:
            rows = history.codec.features([history.codes[position] for position in new])
            self._rows |= dict(zip(new, rows, strict=True))
        return np.stack([self._rows[position] for position in positions])


class Fitted:
    """What a `Surrogate` has learned.

    Args:
        codec: of the space.
        groups: which columns are summed for the effects that layers share, each ``[columns, names]``.
        x: features of the trials, ``[trials, columns]``.
        y: what they are worth, ``[trials]``, lower is better.
    """

    def __init__(self, codec: Codec, groups: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> None:
        self._codec, self._groups, self._x = codec, groups, x
        self._centre = x.mean(0)
        unscaled = self._parts(x - self._centre)
        self._scales = [_scale(part, len(unscaled)) for part in unscaled]
        self._trained = self._scaled(unscaled)
        dots = self._trained @ self._trained.T
        self._sizes = x.sum(1)
        distance = self._differences(x)
        self._scale = max(float(np.median(distance)), 1.0)
        best: float | None = None
        # How fast the fading part fades, and the noise, by marginal likelihood.
        for length in (0.5, 1.5):
            kernel = dots + FADING * np.exp(-distance / (length * self._scale))
            for noise in (0.1, 0.5):
                factor = cho_factor(kernel + noise * np.eye(len(y)), lower=True)
                weights = cho_solve(factor, y)
                evidence = -0.5 * float(y @ weights) - float(np.log(np.diag(factor[0])).sum())
                if best is None or evidence > best:
                    best, self._factor, self._weights, self._length = evidence, factor, weights, length
        # The linear parts' prediction is a sum over features, which needs no trials.
        ends = np.cumsum([part.shape[1] for part in unscaled])[:-1]
        parts = np.split(self._trained.T @ self._weights, ends)
        self._slopes = parts[0] * self._scales[0]
        for shared, part, scale in zip(self._groups, parts[1:], self._scales[1:], strict=True):
            self._slopes = self._slopes + shared @ part * scale

    @_on_one_thread
    def mean(self, codes: list[Code]) -> np.ndarray:
        """What the codes are probably worth, ``[codes]``, lower is better."""
        x = self._codec.features(codes)
        return (x - self._centre) @ self._slopes + self._fading(x) @ self._weights

    @_on_one_thread
    def spread(self, codes: list[Code]) -> np.ndarray:
        """The standard deviation of what the codes are worth, ``[codes]``."""
        x = self._codec.features(codes)
        effects = self._scaled(self._parts(x - self._centre))
        cross = effects @ self._trained.T + self._fading(x)
        own = (effects**2).sum(1) + FADING
        return np.sqrt(np.maximum(own - (cross * cho_solve(self._factor, cross.T).T).sum(1), 1e-9))

    def _fading(self, x: np.ndarray) -> np.ndarray:
        return FADING * np.exp(-self._differences(x) / (self._length * self._scale))

    def _differences(self, x: np.ndarray) -> np.ndarray:
        """The number of features in which each row of x and each learned one differ."""
        return x.sum(1)[:, None] + self._sizes[None, :] - 2 * x @ self._x.T

    def _parts(self, centred: np.ndarray) -> list[np.ndarray]:
        return [centred, *(centred @ groups for groups in self._groups)]

    def _scaled(self, parts: list[np.ndarray]) -> np.ndarray:
        """The features of the linear parts, each part scaled to the same share of the kernel."""
        return np.concatenate([part * scale for part, scale in zip(parts, self._scales, strict=True)], axis=1)


def _scale(part: np.ndarray, parts: int) -> float:
    """What gives a part its share of the kernel."""
    return float(np.sqrt((1 - FADING) / parts / max(float((part**2).sum(1).mean()), 1e-9)))


def _groups(names: list[str]) -> np.ndarray:
    """Sums columns of one name, ``[columns, names]``."""
    index: dict[str, int] = {}
    positions = [index.setdefault(name, len(index)) for name in names]
    table = np.zeros((len(names), len(index)), dtype=np.float32)
    table[np.arange(len(names)), positions] = 1.0
    return table
