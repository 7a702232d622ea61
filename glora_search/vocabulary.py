"""The vocabulary: path kinds, the paths of one layer, and what each of them costs in parameters.

GLoRA (arXiv 2306.07967, eq. 6-9) adapts a frozen linear layer ``W0 [out, in]``, ``b0 [out]`` as::

    W = W0 + W0 * A + B
    b = b0 + b0 * D + E + W0 @ C
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from glora_search.errors import invalid

PATHS = ("A", "B", "C", "D", "E")

KINDS: dict[str, tuple[str, ...]] = {
    "A": ("lora", "vector", "constant", "none"),
    "B": ("lora", "vector", "constant", "none"),
    "C": ("lora", "vector", "none"),
    "D": ("vector", "constant", "none"),
    "E": ("vector", "constant", "none"),
}
"""The kinds that each path can take."""

TIED: dict[str, tuple[str, ...]] = {"A_B": ("A", "B"), "D_E": ("D", "E")}
"""Names that set two paths to the same kind, as PEFT's ``config_A_B`` and ``config_D_E`` do."""


def check_kind(key: str, path: str, kind: object) -> str:
    """Normalise a kind's letter case and check that its path can take it.

    Args:
        key: how the user spelled the setting, for the message.
        path: one of ``PATHS``, or a tied name.
        kind: what the user gave.

    Returns:
        The kind in lower case.

    Raises:
        UserError: the path does not know this kind.
    """
    kinds = KINDS[TIED.get(path, (path,))[0]]
    lowered = kind.lower() if isinstance(kind, str) else kind
    if lowered not in kinds:
        raise invalid(key, kind, kinds)
    return str(lowered)


def expand_tied(settings: Mapping[str, object], key: str = "paths") -> dict[str, str]:
    """Turn ``{"A_B": ..., "C": ...}`` into one kind a path; a path's own entry wins over its tied one.

    Raises:
        UserError: an unknown path name or kind.
    """
    kinds: dict[str, str] = {}
    for name in sorted(settings, key=lambda name: name not in TIED):
        if name not in TIED and name not in PATHS:
            raise invalid(key, name, [*TIED, *PATHS])
        kind = check_kind(f"{key}.{name}", name, settings[name])
        kinds.update(dict.fromkeys(TIED.get(name, (name,)), kind))
    return kinds


@dataclass(frozen=True)
class LayerPaths:
    """The kinds of one layer's five paths, and the rank of its low-rank ones.

    Always in canonical form: two instances are equal exactly if they compute the same function. The rank is 0 where
    no path is low-rank, and a low-rank path of rank 0 is none.
    """

    A: str = "none"
    B: str = "none"
    C: str = "none"
    D: str = "none"
    E: str = "none"
    r: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 0:
            raise invalid("r", self.r, "an int >= 0")
        for path in PATHS:
            kind = check_kind(path, path, getattr(self, path))
            if kind == "lora" and self.r == 0:
                kind = "none"
            object.__setattr__(self, path, kind)
        if "lora" not in self.kinds.values():
            object.__setattr__(self, "r", 0)

    @property
    def kinds(self) -> dict[str, str]:
        """Path -> kind, in the order of ``PATHS``."""
        return {path: getattr(self, path) for path in PATHS}

    @property
    def empty(self) -> bool:
        """Whether no path is there at all."""
        return set(self.kinds.values()) == {"none"}

    def without_bias(self) -> LayerPaths:
        """The same paths on a layer without a bias, which has no C, D and E."""
        return dataclasses.replace(self, C="none", D="none", E="none")

    def shapes(self, in_features: int, out_features: int) -> dict[str, dict[str, tuple[int, ...]]]:
        """Path -> tensor name -> shape, for the paths that are there."""
        return {
            path: path_shapes(path, kind, in_features, out_features, self.r)
            for path, kind in self.kinds.items()
            if kind != "none"
        }

    def params(self, in_features: int, out_features: int) -> int:
        """The number of trainable parameters on a layer of this size."""
        return _count(self, in_features, out_features)

    def describe(self) -> str:
        """One short line, e.g. ``A=vector B=lora(r=4)``."""
        parts = [
            f"{path}={kind}" + (f"(r={self.r})" if kind == "lora" else "")
            for path, kind in self.kinds.items()
            if kind != "none"
        ]
        return " ".join(parts) or "none"


def path_shapes(path: str, kind: str, in_features: int, out_features: int, r: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one path: ``Xd @ Xu`` where it is low-rank, ``X`` where it is a vector or a constant.

    Source: arXiv 2306.07967, section 3.3; names and shapes as in peft's GLoRA.
    """
    rows, columns = (in_features, 1) if path == "C" else (out_features, in_features)
    if kind == "lora":
        return {"Xd": (rows, r), "Xu": (r, columns)}
    if kind == "vector":
        return {"X": (rows,) if path in ("D", "E") else (rows, 1)}
    if kind == "constant":
        return {"X": (1,)}
    return {}


@lru_cache(maxsize=4096)
def _count(paths: LayerPaths, in_features: int, out_features: int) -> int:
    return sum(
        prod(shape) for tensors in paths.shapes(in_features, out_features).values() for shape in tensors.values()
    )


LR_GROUPS = (
    *("lora", "vector", "constant", "head"),
    *(f"{path}.{kind}" for path, kinds in KINDS.items() for kind in kinds if kind != "none"),
)
"""What can have a learning rate of its own: a kind of path, a kind of one path, and all that is trained besides."""


LR_FACTORS = {
    **{"head": 3.0, "vector": 2.0, "constant": 2.0},
    **{"A.vector": 5.0, "A.constant": 5.0, "B.vector": 0.2, "B.constant": 0.2},
}
"""The factors of ``auto``; where they come from: docs/fidelity.md."""


def check_lr_factors(factors: Mapping[str, float] | str) -> dict[str, float]:
    """Check factors of the learning rate; ``auto`` is `LR_FACTORS`.

    Raises:
        UserError: an unknown kind, or a factor that is not positive.
    """
    if factors == "auto":
        return dict(LR_FACTORS)
    if not isinstance(factors, Mapping):
        raise invalid("lr_factors", factors, "auto, or a mapping of factors")
    for name, factor in factors.items():
        if name not in LR_GROUPS:
            raise invalid("lr_factors", name, LR_GROUPS)
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
            raise invalid(f"lr_factors.{name}", factor, "a finite number above 0")
    return {name: float(factor) for name, factor in factors.items()}
