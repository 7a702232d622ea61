"""Find the best per-layer GLoRA adapter for a Hugging Face model."""

import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from glora_search.lazy import lazily

__version__ = "0.1.0"
__all__ = [
    "BoundSpace",
    "FoundAdapter",
    "GLoraConfig",
    "GLoraLayer",
    "GLoraLinear",
    "GLoraModel",
    "SearchSpace",
    "SupernetConfig",
    "SupernetModel",
    "SupernetTrainer",
    "find_adapter",
    "from_stock",
    "to_lora",
    "to_stock",
]


def _is_command_line() -> bool:
    """Whether this process is the command line, whose help must not wait for torch."""
    program = Path(sys.argv[0])
    if program.name in ("glora-search", "glora-search.exe"):  # a script of the user's may have this name too
        return program.resolve().parent == Path(sysconfig.get_path("scripts")).resolve()
    return sys.orig_argv[1:3] == ["-m", __name__]


if TYPE_CHECKING or not _is_command_line():
    # Importing the methods is what makes them known to peft.
    from glora_search.find import FoundAdapter, find_adapter
    from glora_search.space import BoundSpace, SearchSpace
    from glora_search.supernet import SupernetConfig, SupernetModel, SupernetTrainer
    from glora_search.tuners.glora import (
        GLoraConfig,
        GLoraLayer,
        GLoraLinear,
        GLoraModel,
        from_stock,
        to_lora,
        to_stock,
    )
else:
    __getattr__ = lazily(
        __name__,
        {
            **dict.fromkeys(("FoundAdapter", "find_adapter"), "find"),
            **dict.fromkeys(("BoundSpace", "SearchSpace"), "space"),
            **dict.fromkeys((name for name in __all__ if name.startswith("Supernet")), "supernet"),
            **dict.fromkeys((name for name in __all__ if name.startswith(("GLora", "from_", "to_"))), "tuners.glora"),
        },
    )
