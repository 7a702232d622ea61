"""What comes with the package: search spaces and recipes."""

from __future__ import annotations

from pathlib import Path

from glora_search.errors import invalid

PACKAGE = Path(__file__).parent.parent


def shipped_folder(kind: str) -> Path:
    """The folder of files that come with the package: inside it when installed, beside it in a checkout."""
    inside = PACKAGE / "shipped" / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def shipped_files(kind: str) -> dict[str, Path]:
    """The YAML files that come with the package, by their names."""
    folder = shipped_folder(kind)
    return {file.stem: file for pattern in ("*.yaml", "recipes/*.yaml") for file in sorted(folder.glob(pattern))}


def find_shipped(kind: str, path: str | Path, *, key: str) -> Path:
    """A file by its path, or one that comes with the package by its path in a checkout or by its name.

    Args:
        kind: ``search_spaces`` or ``experiments``.
        path: what the user wrote.
        key: where the user wrote it, for the message.

    Raises:
        UserError: there is no such file; the message lists the shipped ones.
    """
    if Path(path).is_file():
        return Path(path)
    folder, shipped = shipped_folder(kind), shipped_files(kind)
    name = Path(path).stem if Path(path).suffix == ".yaml" else Path(path).name
    if name in shipped and Path(path).parent in (Path("."), Path(kind) / shipped[name].parent.relative_to(folder)):
        return shipped[name]
    if (inside := Path(path) / "recipe.yaml").is_file():  # a run folder
        raise invalid(key, str(path), f"a YAML file; the run folder's is {inside}")
    raise invalid(key, str(path), f"a YAML file, or one of the shipped: {', '.join(sorted(shipped))}")
