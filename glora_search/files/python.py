"""Lines of Python for a shell, which leaves them alone between double quotes."""

from __future__ import annotations

from typing import Any

SHELL = "'\"$`!\\"
"""What ends a string of Python, or means something between a shell's double quotes."""


def literal(text: str) -> str:
    """A text as Python writes it, without double quotes."""
    named = {"\n": "\\n", "\t": "\\t"}
    return "'" + "".join(named.get(c) or (c if c not in SHELL and c.isprintable() else _code(c)) for c in text) + "'"


def arguments(*texts: str, **flags: Any) -> str:
    """The arguments of a call."""
    return ", ".join([*map(literal, texts), *(f"{name}={value!r}" for name, value in flags.items())])


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\U{number:08x}"
