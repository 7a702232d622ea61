"""The one exception that a user's mistake raises; the command line turns it into a message and exit code 2."""

from __future__ import annotations

import re
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user wrote cannot be used as it is.

    The message names the key, the value it got and what is allowed.
    """


def invalid(key: str, value: object, allowed: str | Iterable[object]) -> UserError:
    """Build the standard message.

    Args:
        key: where the value stands, e.g. ``search.sampler``.
        value: what was given.
        allowed: a sentence, or the values that are allowed.

    Returns:
        The error, to be raised by the caller.
    """
    text = allowed if isinstance(allowed, str) else "one of " + ", ".join(repr(a) for a in allowed)
    return UserError(f"{key}: got {value!r}; allowed: {text}")


def check_pattern(key: str, pattern: str) -> None:
    """Check a pattern for module names.

    Raises:
        UserError: it is not a regular expression.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise invalid(key, pattern, f"a regular expression for module names ({error})") from None
