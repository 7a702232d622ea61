"""The search space: a checked YAML file that, bound to a model, gives one gene per layer and path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationInfo, field_validator, model_validator

from glora_search.errors import check_pattern, invalid
from glora_search.files.checked import validate
from glora_search.files.shipped import find_shipped
from glora_search.files.text import load_yaml
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import SpaceLayer
from glora_search.vocabulary import PATHS, TIED, check_kind

if TYPE_CHECKING:
    from torch import nn


class Choices(BaseModel):
    """What the layers of one pattern may take; what is left out follows the space."""

    model_config = ConfigDict(extra="forbid")

    paths: dict[str, list[str]] = Field(default_factory=dict)
    ranks: list[StrictInt] | None = None

    @field_validator("paths")
    @classmethod
    def _check_paths(cls, paths: dict[str, list[str]]) -> dict[str, list[str]]:
        checked: dict[str, list[str]] = {}
        for name, kinds in paths.items():
            if name not in PATHS and name not in TIED:
                raise invalid("paths", name, [*TIED, *PATHS])
            if not kinds:
                raise invalid(f"paths.{name}", kinds, "at least one kind")
            checked[name] = list(dict.fromkeys(check_kind(f"paths.{name}", name, kind) for kind in kinds))
        for tie, members in TIED.items():
            if tie in paths and any(member in paths for member in members):
                raise invalid("paths", tie, f"either {tie} (tied) or {' and '.join(members)} (free), not both")
        return checked

    @field_validator("ranks")
    @classmethod
    def _check_ranks(cls, ranks: list[int] | None) -> list[int] | None:
        if ranks is not None and (not ranks or min(ranks) < 0):
            raise invalid("ranks", ranks, "a list of ints >= 0 (0: no low-rank path)")
        return None if ranks is None else sorted(set(ranks))


class SearchSpace(Choices):
    """Which paths each layer of a model may take.

    Attributes:
        name: what the space is called.
        description: one line for listings.
        targets: modules to adapt, in the semantics of peft's ``target_modules``.
        exclude: modules not to adapt, in the semantics of peft's ``exclude_modules``.
        paths: path (or tied pair) -> the kinds it may take; a path that is left out is none.
        ranks: ranks of the low-rank paths; with several, the rank is a gene of its own in every layer.
        overrides: module-name pattern (matched as peft matches ``rank_pattern``) -> other paths or ranks.

    Source: arXiv 2306.07967, section 3.3; tied pairs as in peft's GLoRA.
    """

    name: str = "space"
    description: str = ""
    targets: str | list[str] = "all-linear"
    exclude: str | list[str] | None = None
    paths: dict[str, list[str]]
    ranks: list[StrictInt] = Field(default_factory=lambda: [4])
    overrides: dict[str, Choices] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_not_empty(self) -> SearchSpace:
        if not self.paths:
            raise invalid("paths", self.paths, "at least one path")
        return self

    @field_validator("targets", "exclude", mode="before")
    @classmethod
    def _check_modules(cls, value: Any, info: ValidationInfo) -> Any:
        names = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if not names and not isinstance(value, str) and not (value is None and info.field_name == "exclude"):
            raise invalid(str(info.field_name), value, "module names, or a regular expression")
        if isinstance(value, str):
            check_pattern(str(info.field_name), value)
        return value

    @field_validator("overrides")
    @classmethod
    def _check_overrides(cls, overrides: dict[str, Choices]) -> dict[str, Choices]:
        for pattern in overrides:
            check_pattern("overrides", pattern)
        return overrides

    @classmethod
    def load(cls, path: str | Path) -> SearchSpace:
        """Read a space from a file, or from the spaces that come with the package.

        Args:
            path: a YAML file, or a shipped one by ``search_spaces/<name>.yaml`` or by ``<name>``.

        Raises:
            UserError: no such file; an unknown key, path or kind.
        """
        found = find_shipped("search_spaces", path, key="space")
        return validate(cls, {"name": found.stem, **load_yaml(found)}, source=str(found))

    def choices_for(self, module_name: str) -> tuple[dict[str, list[str]], list[int]]:
        """``(path -> kinds, ranks)`` of one module, its override applied."""
        override = self.overrides.get(self._override_of(module_name), Choices())
        paths = dict(self.paths)
        for name, kinds in override.paths.items():
            for tie, members in TIED.items():
                if name == tie:
                    paths = {path: own for path, own in paths.items() if path not in members}
                elif name in members and tie in paths:  # the other of the pair keeps the space's kinds, now free
                    paths |= dict.fromkeys(members, paths.pop(tie))
            paths[name] = kinds
        return paths, override.ranks if override.ranks is not None else self.ranks

    def layer(self, name: str = "layer", size: int = 1) -> SpaceLayer:
        """A square layer with a bias under this name, for what can be said of a space without a model."""
        return SpaceLayer(name, size, size, True, *self.choices_for(name))

    def bind(self, model: nn.Module, modules_to_save: Sequence[str] = ()) -> BoundSpace:
        """Match the space against a model's layers.

        Args:
            model: the base model.
            modules_to_save: modules that are trained as they are, in peft's semantics; what is inside of them is not
                adapted. A classifier is always among them.

        Raises:
            UserError: no layer matches, one that matches cannot be adapted, or an override matches no layer.
        """
        from glora_search.space.binding import adaptable_layers, bound_to

        found = adaptable_layers(model, self.targets, self.exclude, modules_to_save)
        layers = [SpaceLayer(*layer, *self.choices_for(layer.name)) for layer in found]
        for pattern in self.overrides:
            if not any(self._override_of(layer.name) == pattern for layer in layers):
                allowed = f"patterns that match a layer which none before them matches, e.g. of {layers[0].name}"
                raise invalid("space.overrides", pattern, allowed)
        return bound_to(model, layers, self.name)

    def _override_of(self, module_name: str) -> str:
        """The override of a module: its own name before any pattern, then the first that matches as in peft."""
        if module_name in self.overrides:
            return module_name
        # peft's get_pattern_key, which would import torch where a space is only read.
        return next((key for key in self.overrides if re.match(rf"(.*\.)?({key})$", module_name)), module_name)
