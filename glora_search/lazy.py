"""Public names that are imported when they are asked for: the command line starts without torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for a package's ``__init__.py``.

    Args:
        package: its ``__name__``.
        homes: public name -> the module that has it, below ``glora_search``.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"glora_search.{homes[name]}"), name)

    return get
