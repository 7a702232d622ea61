"""A class of the user's own, by its import path."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import ImportString, TypeAdapter, ValidationError

from glora_search.errors import invalid

Class = TypeVar("Class")
_IMPORT: TypeAdapter[Any] = TypeAdapter(ImportString)


def import_class(path: str, base: type[Class], *, key: str, allowed: str) -> type[Class]:
    """Import a class that a recipe names; modules in the current folder are found too.

    Args:
        path: ``package.module.Class``.
        base: what it has to be a subclass of.
        key: where the path stands, for the message.
        allowed: what may stand there, for the message.

    Raises:
        UserError: it cannot be imported, or is something else.
    """
    here = os.getcwd()
    sys.path.insert(0, here)  # a console script does not look for modules where it is called
    try:
        found = _IMPORT.validate_python(path)
    except ValidationError as error:
        reason = error.errors()[0].get("ctx", {}).get("error", error)
        raise invalid(key, path, f"{allowed} ({reason})") from None
    except (TypeError, ValueError) as error:  # a relative path
        raise invalid(key, path, f"{allowed} ({error})") from None
    finally:
        sys.path.remove(here)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise invalid(key, path, allowed)
    return found


def options_of(cls: type, without: Iterable[str]) -> str:
    """The keyword arguments that a recipe can give to a class, for a message.

    Args:
        without: those that it is given already.
    """
    left_out = {"self", "args", "kwargs", *without}
    return ", ".join(name for name in inspect.signature(cls).parameters if name not in left_out) or "no options"
