"""Which modules a config adapts: peft takes a name in ``target_modules`` for the end of a module's name too."""

from __future__ import annotations

import re
from collections.abc import Iterable


def namesakes(names: Iterable[str], modules: Iterable[str]) -> list[str]:
    """The modules that peft would adapt as well, were ``target_modules`` a list of these names.

    Args:
        names: full names of the modules that are meant.
        modules: full names of all of the model's modules.
    """
    meant = set(names)
    ends = tuple(f".{name}" for name in meant)
    return [module for module in modules if module not in meant and module.endswith(ends)]


def exact_targets(names: Iterable[str], modules: Iterable[str]) -> list[str] | str:
    """What ``target_modules`` has to be for a config of peft that adapts these modules and no other.

    Args:
        names: full names of the modules to adapt.
        modules: full names of all of the model's modules; those of `namesakes` are enough.

    Returns:
        The names, sorted. Where another module's name ends like one of them, a regular expression instead: peft
        matches that against the whole name.
    """
    found = sorted(names)
    return "|".join(map(re.escape, found)) if namesakes(found, modules) else found
