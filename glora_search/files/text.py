"""Reading and writing YAML, JSON and text."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from glora_search.errors import UserError, invalid


def shell(words: Sequence[str]) -> str:
    """A command as this system's shell takes it."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


class _Loader(yaml.SafeLoader):
    """YAML in which no mapping has a key twice: the second one would replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; keys that ``<<`` merges in may be there too."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes each text that `_Loader` would read as a number."""


for _cls in (_Loader, _Dumper):  # YAML 1.2 needs no point in 1e-3
    _cls.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+\.?[0-9]*[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def parse_yaml(text: str) -> Any:
    """YAML in which no mapping has a key twice.

    Raises:
        yaml.YAMLError: it is something else.
    """
    return yaml.load(text, _Loader)


def dump_yaml(data: Any, **options: Any) -> str:
    """YAML that `parse_yaml` reads as it was, the keys of mappings in their order.

    Args:
        options: of ``yaml.dump``.
    """
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options))


def load_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, no key of which is there twice.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        data = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise invalid(str(path), data, "a mapping of keys to values")
    return data


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader finds the old file or the new one, never half of it."""
    write_text(path, json.dumps(plain_json(data), indent=2, allow_nan=False) + "\n")


def plain_json(data: Any) -> Any:
    """The same data with null for each number that is not finite: JSON has no such numbers."""
    if isinstance(data, dict):
        return {key: plain_json(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain_json(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step, see `write_json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say which
        raise


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
