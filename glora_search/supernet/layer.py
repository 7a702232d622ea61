"""What a supernet's layer computes: the active subnet's paths, out of tensors that all subnets share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from glora_search.space.layers import SpaceLayer
from glora_search.tuners.glora.functional import Terms, collect
from glora_search.tuners.glora.layer import FrozenLinear, new_path
from glora_search.vocabulary import KINDS, PATHS, TIED, LayerPaths

SHARING = ("separate", "nested")
"""How the kinds of a path share weights; the first is the default."""


class SupernetLayer(FrozenLinear):
    """All choices of one layer, with shared weights.

    The ranks of a low-rank path share their tensors: rank r is the first r columns of ``Xd`` and rows of ``Xu`` of the
    largest rank. The kinds of a path have tensors of their own (``separate``), or those of its largest kind
    (``nested``): a vector is the first column of ``Xd``, a constant is the vector's first entry.

    Attributes:
        supernet_A, ..., supernet_E: adapter name -> the path's tensors, named ``<kind>_<tensor>``.
        active_paths: the paths that the next forward takes.
    """

    adapter_layer_names: tuple[str, ...] = tuple(f"supernet_{path}" for path in PATHS)
    other_param_names: tuple[str, ...] = ("spaces",)

    def __init__(self, base_layer: nn.Module, name: str = "") -> None:
        self._init_base(base_layer, name)
        for attribute in self.adapter_layer_names:
            setattr(self, attribute, nn.ModuleDict())
        self.spaces: dict[str, SpaceLayer] = {}
        self.active_paths = LayerPaths()
        self._spare: Tensor | None = None

    def has_adapter(self, adapter_name: str) -> bool:
        """Whether this layer holds the supernet of that name."""
        return adapter_name in self.spaces

    def update_layer(self, adapter_name: str, space: SpaceLayer, sharing: str) -> None:
        """Make the tensors of all choices; it starts as a no-op, whatever is active."""
        self.spaces[adapter_name] = space
        r = max((int(rank) for rank in space.settings.get("r", ())), default=0)
        for setting, kinds in space.settings.items():
            for path in TIED.get(setting, (setting,)) if setting != "r" else ():
                held = [kind for kind in KINDS[path] if kind in kinds and kind != "none" and (kind != "lora" or r)]
                tensors = nn.ParameterDict()
                for kind in held[:1] if sharing == "nested" else held:  # KINDS has the largest first
                    new = new_path(path, kind, self.in_features, self.out_features, r, init_weights=True)
                    tensors.update({f"{kind}_{name}": value for name, value in new.items()})
                if len(tensors):
                    getattr(self, f"supernet_{path}")[adapter_name] = tensors
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def activate(self, paths: LayerPaths) -> None:
        """Choose the paths that the next forward takes; what was merged is taken out first."""
        if self.merged:
            self.unmerge()
        self.active_paths = paths

    def _memory_like(self, weight: Tensor) -> Tensor | None:
        # A search folds thousands of subnets: to ask the system for new memory each time takes as long as to fold.
        if (
            self.quantized
            or self._unmerged is not None
            or self.fan_in_fan_out
            or weight.dtype != self.get_base_layer().weight.dtype
        ):
            return None
        if self._spare is None or (self._spare.device, self._spare.dtype) != (weight.device, weight.dtype):
            with torch.inference_mode(False):  # else it could be written in that mode only
                self._spare = torch.empty_like(weight)
        return self._spare

    def subnet_tensors(self, paths: LayerPaths, adapter_name: str) -> dict[str, dict[str, Tensor]]:
        """Path -> tensor name -> the part of the shared tensors that these paths use (views, not copies)."""
        found: dict[str, dict[str, Tensor]] = {}
        for path, kind in paths.kinds.items():
            if kind == "none":
                continue
            tensors = getattr(self, f"supernet_{path}")[adapter_name]
            if kind == "lora":
                found[path] = {"Xd": tensors["lora_Xd"][:, : paths.r], "Xu": tensors["lora_Xu"][: paths.r]}
            elif f"{kind}_X" in tensors:
                found[path] = {"X": tensors[f"{kind}_X"]}
            else:
                vector = tensors["lora_Xd"][:, :1] if "lora_Xd" in tensors else tensors["vector_X"]
                found[path] = {"X": vector if kind == "vector" else vector.view(-1)[:1]}
        return found

    def terms(self, adapter_names: list[str], dtype: torch.dtype) -> Terms:
        """What the active subnet adds on this layer, in this dtype."""
        return collect([self.subnet_tensors(self.active_paths, name) for name in adapter_names], dtype)


class SupernetLinear(nn.Module, SupernetLayer):
    """A frozen ``nn.Linear`` or ``Conv1D`` with every choice of its part of the search space.

    Args:
        base_layer: the layer to adapt.
        adapter_name: the supernet's name.
        space: what this layer may take.
        sharing: ``nested`` or ``separate``.
        name: the module's name, for error messages.
    """

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, space: SpaceLayer, *, sharing: str = SHARING[0], name: str = ""
    ) -> None:
        super().__init__()
        SupernetLayer.__init__(self, base_layer, name)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, space, sharing)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``x @ W.T + b`` of the active subnet.

        Args:
            x: ``[..., in]``.

        Returns:
            ``[..., out]``.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)
        return self._adapted(x, self.active_adapters)

    def train(self, mode: bool = True) -> SupernetLinear:
        """Switch to training, which needs its memory for other things than folding, or to scoring."""
        if mode:
            self._spare = None
        return super().train(mode)

    def __repr__(self) -> str:
        return "supernet." + super().__repr__()
