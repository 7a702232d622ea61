"""A run folder whose recipe has changed: which results stay, and which are stale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from glora_search.errors import UserError
from glora_search.files.text import load_yaml
from glora_search.recipe.arguments import OTHER_MACHINE
from glora_search.recipe.schema import Recipe
from glora_search.run.folder import RunFolder
from glora_search.run.making import resolved
from glora_search.run.stages import STAGES
from glora_search.search.trials import EXHAUSTED
from glora_search.space.schema import SearchSpace

PATHS = ("space", "task.model", "data.train", "data.validation", "data.test", "data.folder", "data.name")
"""Keys that say where something is: it may have been moved, as long as it is the same."""


@dataclass(frozen=True)
class Change:
    """A key of the recipe, or of the space, whose value is another one."""

    key: str
    before: Any
    after: Any
    file: str = "recipe"

    def __str__(self) -> str:
        return f"{self.key} is {self.after!r} here and was {self.before!r}"

    @property
    def stale(self) -> list[str] | None:
        """The stages that it makes stale; None for all."""
        return stages_of(self.key) if self.file == "recipe" else None

    def is_move(self) -> bool:
        """Whether it may be the same thing in another place."""
        return (
            self.file == "recipe" and self.key in PATHS and isinstance(self.before, str) and isinstance(self.after, str)
        )


def changes(run: RunFolder, recipe: Recipe) -> list[Change]:
    """In what a recipe and its space differ from a run folder's.

    Args:
        recipe: with whole paths, see `making.resolved`.
    """
    before = _recipe_of(run.recipe)
    space, old = SearchSpace.load(recipe.space).model_dump(), load_yaml(run.path / "space.yaml")
    old["description"] = space["description"]  # words, which change nothing
    return [
        *_compare(run.recipe if before is None else yaml.safe_load(before.dump()), yaml.safe_load(recipe.dump())),
        *_compare(old, space, file="space"),
    ]


def check_changes(run: RunFolder, found: list[Change]) -> None:
    """Refuse to change what results were made from: all but the sections of the later stages.

    Raises:
        UserError: the recipe, or its space, is another one; the message says what differs.
    """
    if not run.has_begun():
        return
    pins = [change for change in found if change.stale is None and not change.is_move()]
    if pins:
        raise made_from_another(run, pins[0].file, [str(change) for change in pins if change.file == pins[0].file])


def made_from_another(run: RunFolder, what: str, differences: list[str]) -> UserError:
    """The refusal of a recipe."""
    return UserError(
        f"run-dir: {run.path} was made from another {what}: {'; '.join(differences[:5])}. Nothing was changed; use "
        "another --run-dir, or the recipe that made it"
    )


def stages_of(key: str) -> list[str] | None:
    """The stages that have to be done again where a key of the recipe changes; None where the supernet would have to,
    and so all.

    What a stage says of a part of a section counts, and not what is said of the section.
    """
    for part in _parts(key):
        named = [name for name, stage in STAGES.items() if part in stage.keys]
        if named or any(part in stage.goes_on for stage in STAGES.values()):
            return named
    return None


def stale_stages(run: RunFolder, recipe: Recipe, found: list[Change]) -> tuple[list[str], bool]:
    """The stages whose results other keys made, and whether the search has only to go on.

    A supernet whose training has not ended is stale where it would be trained for subnets of other sizes.
    """
    stale = {name for change in found for name in change.stale or ()}
    searched, before = run.done("search"), _recipe_of(run.recipe)
    more = [change for change in found if change.key == "search.trials"]
    goes_on = (
        bool(more)
        and searched is not None
        and searched["trials"] < more[0].after
        and EXHAUSTED not in searched
        and "search" not in stale
    )
    begun = (run.path / "supernet").is_dir() and run.done("supernet") is None
    if begun and (before is None or before.supernet_max_params != recipe.supernet_max_params):
        stale.add("supernet")
    return [name for name in STAGES if name in stale], goes_on


def _parts(key: str) -> Iterator[str]:
    """The key, the section that it is in, and so on."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def _recipe_of(recipe: Any) -> Recipe | None:
    """A run folder's recipe, with whole paths and the defaults of keys that its version of this package had not.

    Returns:
        None where it is damaged, or of another version: the differences name it.
    """
    try:
        return resolved(Recipe.model_validate(recipe, context=OTHER_MACHINE))
    except ValueError:
        return None


def _compare(old: Any, new: Any, key: str = "", *, file: str = "recipe") -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _compare(old.get(name), new.get(name), f"{key}.{name}" if key else name, file=file)
    elif old != new:
        yield Change(key, old, new, file)
