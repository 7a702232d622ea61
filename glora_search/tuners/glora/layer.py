"""What a layer computes: one frozen linear layer and the paths of its adapters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from glora_search.compat import BaseTunerLayer, check_adapters_to_merge
from glora_search.errors import UserError, invalid
from glora_search.tuners.glora.functional import (
    Packed,
    Terms,
    collect,
    effective_bias,
    effective_weight,
    glora_linear,
)
from glora_search.tuners.quantized import check_quantization, compute_dtype, dense_weight, linear_of
from glora_search.vocabulary import PATHS, LayerPaths, path_shapes

SUPPORTED_LAYERS = (nn.Linear, Conv1D)


def base_linear(module: nn.Module, name: str) -> nn.Module:
    """The layer under any tuner layers, if it is one that GLoRA can adapt.

    A subclass may compute something else, so the type has to match exactly, or be a quantised one that is known.

    Raises:
        UserError: another type; the message names the module and the types that are supported. Or its weight is
            sharded.
    """
    if isinstance(module, BaseTunerLayer) and not isinstance(module, FrozenLinear):
        raise _adapted_already(module, name)
    base = module.get_base_layer() if isinstance(module, FrozenLinear) else module
    if check_quantization(base, name) is None and type(base) not in SUPPORTED_LAYERS:
        supported = ", ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in SUPPORTED_LAYERS)
        raise invalid(f"target module {name!r}", type(base).__qualname__, supported)
    if hasattr(base.weight, "device_mesh"):  # tensor parallelism: what is computed here needs the whole weight
        raise invalid(f"target module {name!r}", "a weight sharded over devices", "a model loaded without tp_plan")
    return base


def _adapted_already(module: nn.Module, name: str) -> UserError:
    """Computing from the innermost layer would drop what the other tuner adds, without a word."""
    return invalid(f"target module {name!r}", f"{type(module).__module__} layer", "a layer without another adapter")


def linear_features(base: nn.Module) -> tuple[int, int]:
    """``(in_features, out_features)`` of a supported layer."""
    if isinstance(base, Conv1D):
        return int(base.weight.shape[0]), int(base.weight.shape[1])
    assert isinstance(base, nn.Linear)
    return base.in_features, base.out_features


def new_path(path: str, kind: str, in_features: int, out_features: int, r: int, init_weights: bool) -> nn.ParameterDict:
    """The parameters of one path.

    Args:
        init_weights: True starts as a no-op: only the right factor of a low-rank path is not zero, so that the left
            one has a gradient. False draws everything at random.
    """
    tensors = nn.ParameterDict(
        {
            name: nn.Parameter(torch.zeros(shape))
            for name, shape in path_shapes(path, kind, in_features, out_features, r).items()
        }
    )
    reset_path(tensors, init_weights)
    return tensors


@torch.no_grad()
def reset_path(tensors: nn.ParameterDict, init_weights: bool) -> None:
    """Draw the parameters of one path anew; see `new_path`."""
    for name, value in tensors.items():
        if name == "Xu":
            # One column (path C) would leave kaiming's fan-in at 1, so the rank stands in for it.
            bound = 1 / math.sqrt(max(value.shape) if value.shape[1] > 1 else value.shape[0])
            nn.init.uniform_(value, -bound, bound)
        elif init_weights:
            nn.init.zeros_(value)
        else:
            nn.init.normal_(value, std=0.02)


class FrozenLinear(BaseTunerLayer):
    """What every layer of this package has in common: a frozen base layer, and merging that can be undone exactly.

    A subclass says which terms its active adapters add up to. While something is merged, the base layer's own weight
    and bias are kept aside (that is the memory an exact unmerge costs: one copy of the merged layers), and every
    merge starts from them.

    A quantised base layer is made dense for one product at a time. While something is merged into it, a dense layer
    stands in its place.
    """

    base_layer: nn.Module
    active_adapters: list[str]

    def _init_base(self, base_layer: nn.Module, name: str) -> None:
        if isinstance(base_layer, BaseTunerLayer):
            raise _adapted_already(base_layer, name)
        self.base_layer = base_layer
        base = base_linear(base_layer, name)
        self.in_features, self.out_features = linear_features(base)
        self.fan_in_fan_out = isinstance(base, Conv1D)
        self.has_bias = getattr(base, "bias", None) is not None
        base.requires_grad_(False)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._unmerged: tuple[Tensor, Tensor | None] | None = None
        self.quantized = check_quantization(base, name) is not None
        self.dense_dtype = torch.get_default_dtype()
        self._packed: tuple[nn.Module] | None = None  # in a tuple: it is no part of the model while it is kept aside
        self.register_state_dict_post_hook(_keep_trained_bias)  # type: ignore[operator]

    def terms(self, adapter_names: list[str], dtype: torch.dtype) -> Terms:
        """What these adapters add up to on this layer, in this dtype."""
        raise NotImplementedError

    def has_adapter(self, adapter_name: str) -> bool:
        """Whether this layer holds the adapter."""
        raise NotImplementedError

    def _adapted(self, x: Tensor, adapter_names: list[str]) -> Tensor:
        """The layer's output with these adapters; the base layer's where they add nothing."""
        names = [name for name in dict.fromkeys(adapter_names) if self.has_adapter(name)]
        base: Any = self.base_layer
        bias = base.bias if self.has_bias else None
        dtype = compute_dtype(base, x) if self.quantized else base.weight.dtype
        if torch.is_autocast_enabled(x.device.type) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
            bias = None if bias is None else bias.to(dtype)
        terms = self.terms(names, dtype)
        if self.quantized:
            # Without paths too: the layer's own product may round its inputs, or keep what it makes dense.
            packed = Packed((self.out_features, self.in_features), lambda: dense_weight(base, dtype))
            y = glora_linear(x.to(dtype), packed, bias, terms)
            return y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)
        if terms.empty:
            return self.base_layer(x)
        weight = base.weight.to(dtype)
        if self.fan_in_fan_out:
            weight = weight.T
        return glora_linear(x if x.dtype == dtype else self._cast_input_dtype(x, dtype), weight, bias, terms)

    @torch.no_grad()
    def _effective(self, weight: Tensor, bias: Tensor | None, adapter_names: list[str]) -> tuple[Tensor, Tensor | None]:
        """The base layer's weight (in its own layout) and bias with these adapters folded in, computed in float32
        or better and rounded once."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        terms = self.terms(adapter_names, dtype)
        if terms.empty:
            return weight, bias
        w0 = (weight.T if self.fan_in_fan_out else weight).to(dtype)
        b0 = None if bias is None else bias.to(dtype)
        b = effective_bias(w0, b0, terms)
        if any(part is not None for part in (terms.a, terms.a_lora, terms.b, terms.b_lora)):
            w = effective_weight(w0, terms, self._memory_like(w0))
            weight = (w.T.contiguous() if self.fan_in_fan_out else w).to(weight.dtype)
        return weight, None if b is None or bias is None else b.to(bias.dtype)

    def _memory_like(self, weight: Tensor) -> Tensor | None:
        """Memory that the folded weight may be written to; None is new memory."""
        return None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the base layer's weight and bias.

        Args:
            safe_merge: refuse weights that are not finite, and leave the base layer as it is.
            adapter_names: which; None is all active ones.

        Raises:
            ValueError: ``safe_merge`` found a weight that is not finite.
        """
        names = [n for n in dict.fromkeys(check_adapters_to_merge(self, adapter_names)) if self.has_adapter(n)]
        if names:
            self._remerge([*self.merged_adapters, *names], safe_merge)

    def unmerge(self, adapter_names: list[str] | None = None) -> None:
        """Take merged adapters out again; the base layer is restored bit for bit."""
        remaining = [] if adapter_names is None else [n for n in self.merged_adapters if n not in adapter_names]
        if len(remaining) < len(self.merged_adapters):
            self._remerge(remaining, safe_merge=False)

    def _remerge(self, adapter_names: list[str], safe_merge: bool) -> None:
        weight, bias = kept = self._own()
        if adapter_names:
            weight, bias = self._effective(weight, bias, adapter_names)
            if safe_merge and not all(t is None or bool(torch.isfinite(t).all()) for t in (weight, bias)):
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {', '.join(adapter_names)} seems to be broken"
                )
        if self.quantized:
            packed = self._packed[0] if self._packed is not None else self.base_layer
            self.base_layer = linear_of(weight, bias) if adapter_names else packed
            self._packed = (packed,) if adapter_names else None
        else:
            base = self.get_base_layer()
            base.weight.data = weight
            if bias is not None:
                base.bias.data = bias
            self._unmerged = kept if adapter_names else None
        self.merged_adapters = list(adapter_names)

    def _own(self) -> tuple[Tensor, Tensor | None]:
        """The base layer's weight and bias as they are where nothing is merged; of a quantised one, made dense."""
        base = self.get_base_layer()
        if self.quantized:
            packed: Any = base if self._packed is None else self._packed[0]
            bias = packed.bias.detach().to(self.dense_dtype) if self.has_bias else None
            return dense_weight(packed, self.dense_dtype), bias
        if self._unmerged is None:
            return base.weight.data, base.bias.data if self.has_bias else None
        weight, own = self._unmerged
        return weight.to(base.weight), None if own is None else own.to(base.bias)


def _keep_trained_bias(layer: FrozenLinear, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """A trained bias is saved with its adapter: as it was trained, also while the adapter is merged into it."""
    name = f"{prefix}base_layer.bias"
    if not layer.merged_adapters or not layer.has_bias or name not in state_dict:
        return
    trained = layer.base_layer.bias if layer._packed is None else layer._packed[0].bias
    if trained.requires_grad:  # type: ignore[union-attr]
        state_dict[name] = layer._own()[1] if layer._packed is None else trained


class GLoraLayer(FrozenLinear):
    """The adapters of one frozen linear layer.

    Attributes:
        glora_A, glora_B, glora_C, glora_D, glora_E: adapter name -> the path's parameters; an adapter without the
            path has no entry.
        paths: adapter name -> `LayerPaths`.
    """

    adapter_layer_names: tuple[str, ...] = tuple(f"glora_{path}" for path in PATHS)
    other_param_names: tuple[str, ...] = ("paths",)

    def __init__(self, base_layer: nn.Module, name: str = "") -> None:
        self._init_base(base_layer, name)
        for attribute in self.adapter_layer_names:
            setattr(self, attribute, nn.ModuleDict())
        self.paths: dict[str, LayerPaths] = {}

    def has_adapter(self, adapter_name: str) -> bool:
        """Whether this layer holds the adapter."""
        return adapter_name in self.paths

    def update_layer(
        self, adapter_name: str, paths: LayerPaths, *, init_weights: bool = True, inference_mode: bool = False
    ) -> None:
        """Add an adapter, or replace the one of that name."""
        if not self.has_bias:
            paths = paths.without_bias()
        self.paths[adapter_name] = paths
        for path, kind in paths.kinds.items():
            entries = getattr(self, f"glora_{path}")
            if adapter_name in entries:
                del entries[adapter_name]
            if kind != "none":
                entries[adapter_name] = new_path(path, kind, self.in_features, self.out_features, paths.r, init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def reset_parameters(self, adapter_name: str, init_weights: bool = True) -> None:
        """Draw an adapter's parameters anew."""
        for tensors in self.path_tensors(adapter_name).values():
            reset_path(tensors, init_weights)

    def path_tensors(self, adapter_name: str) -> dict[str, nn.ParameterDict]:
        """Path -> its parameters, for the paths that this adapter has."""
        found: dict[str, nn.ParameterDict] = {}
        for path, attribute in zip(PATHS, self.adapter_layer_names, strict=True):
            # Not self.glora_A: every forward comes here, and a module's own lookup takes several times as long.
            entries = self._modules[attribute]._modules
            if adapter_name in entries:
                found[path] = entries[adapter_name]
        return found

    def terms(self, adapter_names: list[str], dtype: torch.dtype) -> Terms:
        """What these adapters add up to on this layer, in this dtype."""
        # A replica of nn.DataParallel has tensors for parameters, which only the slower lookup of items() finds.
        adapters: list[Any] = [
            {path: own._parameters or dict(own.items()) for path, own in self.path_tensors(name).items()}
            for name in adapter_names
        ]
        return collect(adapters, dtype)


class GLoraLinear(nn.Module, GLoraLayer):
    """A frozen ``nn.Linear`` or ``Conv1D`` with GLoRA adapters.

    Args:
        base_layer: the layer to adapt.
        adapter_name: name of the first adapter.
        paths: its paths on this layer.
        name: the module's name, for error messages.

    Raises:
        UserError: the base layer is of another type.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        paths: LayerPaths,
        *,
        init_weights: bool = True,
        inference_mode: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        GLoraLayer.__init__(self, base_layer, name)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, paths, init_weights=init_weights, inference_mode=inference_mode)

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """``x @ W.T + b`` with the active adapters.

        Args:
            x: ``[..., in]``.
            adapter_names: one adapter a row of x, ``"__base__"`` for none; inference only.

        Returns:
            ``[..., out]``.
        """
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self._mixed_batch(x, adapter_names)
        if self.merged:
            return self.base_layer(x, *args, **kwargs)
        return self._adapted(x, self.active_adapters)

    def _mixed_batch(self, x: Tensor, adapter_names: list[str]) -> Tensor:
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        y: Tensor | None = None
        for name in dict.fromkeys(adapter_names):
            rows = [row for row, own in enumerate(adapter_names) if own == name]
            part = self._adapted(x[rows], [name])
            y = part.new_empty((len(x), *part.shape[1:])) if y is None else y
            y[rows] = part
        return self.base_layer(x) if y is None else y

    def __repr__(self) -> str:
        return "glora." + super().__repr__()


Linear = GLoraLinear
