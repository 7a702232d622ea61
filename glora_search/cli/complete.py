"""What the shell proposes for an argument."""

from __future__ import annotations

from pathlib import Path

from glora_search.files.shipped import shipped_files


def run_folders(incomplete: str) -> list[str]:
    """Run folders below what was typed."""
    if incomplete.startswith("./"):  # which Path drops
        return [f"./{name}" for name in run_folders(incomplete.removeprefix("./"))]
    place = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    levels = ("*/recipe.yaml", "*/*/recipe.yaml")
    found = {str(recipe.parent) for level in levels for recipe in place.glob(level)}
    return sorted(name for name in found if name.startswith(incomplete))


def recipes(incomplete: str) -> list[str]:
    """YAML files of this folder, and the recipes that come with the package."""
    return _files_and_shipped("experiments", incomplete)


def spaces(incomplete: str) -> list[str]:
    """YAML files of this folder, and the spaces that come with the package."""
    return _files_and_shipped("search_spaces", incomplete)


def _files_and_shipped(kind: str, incomplete: str) -> list[str]:
    if incomplete.startswith("./"):
        return [f"./{name}" for name in _files_and_shipped(kind, incomplete.removeprefix("./")) if Path(name).is_file()]
    typed = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    own = [str(file) for file in typed.glob("*.yaml")]
    return sorted(name for name in {*shipped_files(kind), *own} if name.startswith(incomplete))
