"""What the user sets: GLoRA with its kinds of paths, the same in all layers or different by module pattern."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig

from glora_search.compat import get_pattern_key
from glora_search.errors import check_pattern, invalid
from glora_search.tuners.registry import GLoraSearchType
from glora_search.tuners.targets import exact_targets
from glora_search.vocabulary import KINDS, PATHS, TIED, LayerPaths, check_kind, expand_tied


@dataclass
class GLoraConfig(PeftConfig):
    """Configuration of a [`GLoraModel`]: ``W = W0 + W0 * A + B``, ``b = b0 + b0 * D + E + W0 @ C``.

    Kinds may be written in any letter case. On layers without a bias C, D and E are left out.

    Args:
        r (`int`): rank of the low-rank paths.
        target_modules (`Union[List[str], str]`, *optional*): as in peft, ``"all-linear"`` included.
        exclude_modules (`Union[List[str], str]`, *optional*): as in peft.
        layers_to_transform (`Union[List[int], int]`, *optional*): as in peft.
        layers_pattern (`Union[List[str], str]`, *optional*): as in peft.
        config_A_B (`str`): kind of A and B: ``lora``, ``vector``, ``constant`` or ``none``.
        config_C (`str`): kind of C: ``lora``, ``vector`` or ``none``.
        config_D_E (`str`): kind of D and E: ``vector``, ``constant`` or ``none``.
        config_A, config_B, config_D, config_E (`str`, *optional*): kind of that path alone; None follows the tied
            option.
        path_pattern (`dict`): module-name pattern, matched as peft matches ``rank_pattern`` (a module's exact name
            comes before any pattern), -> the settings of those layers: any of ``A_B``, ``C``, ``D_E``, ``A``, ``B``,
            ``D``, ``E`` and ``r``. What it leaves out follows the options above.
        bias (`str`): ``none``, ``all`` or ``glora_only``: which biases of the base model are trained.
        modules_to_save (`List[str]`, *optional*): as in peft.
        init_weights (`bool`): True starts as the base model does (no-op); False draws every path at random.

    Raises:
        UserError: an option's value, or a key of ``path_pattern``, is not one of those that are allowed.

    Example:

        >>> from peft import get_peft_model
        >>> config = GLoraConfig(r=8, target_modules=["q_proj", "v_proj"], config_A_B="LoRA", config_C="vector")
        >>> model = get_peft_model(base, config)  # doctest: +SKIP
    """

    r: int = field(default=4, metadata={"help": "Rank of the low-rank paths."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Module names, a regex, or 'all-linear': where to put GLoRA layers."}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Module names or a regex: where not to put GLoRA layers."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indexes of the layers to adapt."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the layer list, where layers_to_transform is set."}
    )
    config_A_B: str = field(default="lora", metadata={"help": "Kind of A and B: lora, vector, constant or none."})
    config_C: str = field(default="lora", metadata={"help": "Kind of C: lora, vector or none."})
    config_D_E: str = field(default="constant", metadata={"help": "Kind of D and E: vector, constant or none."})
    config_A: str | None = field(default=None, metadata={"help": "Kind of A; None follows config_A_B."})
    config_B: str | None = field(default=None, metadata={"help": "Kind of B; None follows config_A_B."})
    config_D: str | None = field(default=None, metadata={"help": "Kind of D; None follows config_D_E."})
    config_E: str | None = field(default=None, metadata={"help": "Kind of E; None follows config_D_E."})
    path_pattern: dict[str, dict[str, Any]] = field(
        default_factory=dict,
        metadata={"help": "Module-name pattern -> kinds and rank of those layers, e.g. {'query': {'A': 'vector'}}."},
    )
    bias: Literal["none", "all", "glora_only"] = field(
        default="none", metadata={"help": "Which biases of the base model are trained: none, all or glora_only."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules besides the GLoRA layers to train and save, e.g. a classifier."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "True: start as a no-op. False: draw every path at random."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = GLoraSearchType.GLORA_PATHS
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if self.layers_pattern and self.layers_to_transform in (None, []):
            raise invalid("layers_pattern", self.layers_pattern, "only together with layers_to_transform")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise invalid("layers_to_transform", self.layers_to_transform, "not where target_modules is a string")
        _check_rank("r", self.r)
        if self.bias not in ("none", "all", "glora_only"):
            raise invalid("bias", self.bias, ("none", "all", "glora_only"))
        for path in ("A_B", "C", "D_E"):
            name = f"config_{path}"
            setattr(self, name, check_kind(name, path, getattr(self, name)))
        for path in ("A", "B", "D", "E"):
            name = f"config_{path}"
            if getattr(self, name) is not None:
                setattr(self, name, check_kind(name, path, getattr(self, name)))
        for pattern in self.path_pattern or {}:
            check_pattern("path_pattern", pattern)
        self.path_pattern = {
            pattern: _check_settings(f"path_pattern[{pattern!r}]", settings)
            for pattern, settings in (self.path_pattern or {}).items()
        }

    def paths_for(self, module_name: str, *, has_bias: bool) -> LayerPaths:
        """The paths of one module.

        Args:
            module_name: its full name in the base model.
            has_bias: whether its base layer has a bias; without one there is no C, D and E.
        """
        tied = {path: tie for tie, paths in TIED.items() for path in paths}
        kinds = {path: getattr(self, f"config_{tied.get(path, path)}") for path in PATHS}
        kinds |= {path: own for path in ("A", "B", "D", "E") if (own := getattr(self, f"config_{path}")) is not None}
        settings = self.path_pattern.get(self.pattern_of(module_name), {})
        kinds |= expand_tied({name: value for name, value in settings.items() if name != "r"})
        paths = LayerPaths(**kinds, r=settings.get("r", self.r))
        return paths if has_bias else paths.without_bias()

    def pattern_of(self, module_name: str) -> str:
        """The key of ``path_pattern`` that holds for a module; one that is no key where none does."""
        exact = module_name in self.path_pattern
        return module_name if exact else get_pattern_key(list(self.path_pattern), module_name)


def paths_to_config(layer_paths: Mapping[str, LayerPaths], namesakes: Iterable[str] = (), **kwargs: Any) -> GLoraConfig:
    """A `GLoraConfig` with exactly these paths.

    Args:
        namesakes: the model's other modules whose names end like one of these layers'.
        kwargs: further fields of the config.
    """
    used = {name: paths for name, paths in layer_paths.items() if not paths.empty} or dict(layer_paths)
    pattern = {
        name: {**{p: k for p, k in paths.kinds.items() if k != "none"}, **({"r": paths.r} if paths.r else {})}
        for name, paths in used.items()
    }
    return GLoraConfig(
        r=max(1, *(paths.r for paths in used.values())) if used else 1,
        target_modules=exact_targets(used, [*layer_paths, *namesakes]),
        config_A_B="none",
        config_C="none",
        config_D_E="none",
        path_pattern=pattern,
        **kwargs,
    )


def _check_rank(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid(key, value, "an int >= 1")


def _check_settings(key: str, settings: object) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise invalid(key, settings, "a dict of path -> kind, and r")
    checked: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "r":
            _check_rank(f"{key}['r']", value)
            checked[name] = value
        elif name in KINDS or name in TIED:
            checked[name] = check_kind(f"{key}[{name!r}]", name, value)
        else:
            raise invalid(key, name, [*TIED, *PATHS, "r"])
    return checked
