"""How GLoRA layers get into a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from glora_search.compat import TRANSFORMERS_MODELS_TO_GLORA_TARGET_MODULES_MAPPING, AuxiliaryTrainingWrapper
from glora_search.tuners.glora.config import GLoraConfig
from glora_search.tuners.glora.layer import GLoraLayer, GLoraLinear, base_linear
from glora_search.tuners.heads import AnyHead


class GLoraModel(AnyHead):
    """A model with GLoRA adapters, made by ``get_peft_model(model, GLoraConfig(...))``.

    Args:
        model (`torch.nn.Module`): the model to adapt.
        config (`GLoraConfig`): the first adapter's configuration.
        adapter_name (`str`): its name.
    """

    prefix: str = "glora_"
    tuner_layer_cls = GLoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_GLORA_TARGET_MODULES_MAPPING

    def _create_and_replace(
        self,
        peft_config: GLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        base = base_linear(target, current_key)
        paths = peft_config.paths_for(current_key, has_bias=getattr(base, "bias", None) is not None)
        options: dict[str, Any] = {
            "init_weights": peft_config.init_weights,
            "inference_mode": peft_config.inference_mode,
        }
        if isinstance(target, GLoraLinear):
            layer = target
            layer.update_layer(adapter_name, paths, **options)
        else:
            layer = GLoraLinear(target, adapter_name, paths, name=current_key, **options)
            self._replace_module(parent, target_name, layer, target)
        if adapter_name not in self.active_adapters:
            layer.set_requires_grad(adapter_name, False)  # type: ignore[operator]

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand ``adapter_names`` of a mixed batch to every layer, and to every head, for the time of one call."""
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        layers = [module for module in self.modules() if isinstance(module, GLoraLinear)]
        known = {name for layer in layers for name in layer.paths} | {"__base__"}
        unknown = sorted(set(adapter_names) - known)
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        # Beam search repeats every row; an encoder still sees the rows as they were given.
        beams = kwargs.get("num_beams")
        repeated = [name for name in adapter_names for _ in range(beams if isinstance(beams, int) else 1)]
        two_parts = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        once = {id(module) for module in self.model.get_encoder().modules()} if two_parts else set()
        handles = [
            module.register_forward_pre_hook(
                partial(_pass_adapter_names, adapter_names=adapter_names if id(module) in once else repeated),
                with_kwargs=True,
            )
            for module in self.modules()
            if isinstance(module, (GLoraLinear, AuxiliaryTrainingWrapper))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _pass_adapter_names(module: nn.Module, args: Any, kwargs: Any, adapter_names: list[str]) -> tuple[Any, Any]:
    return args, {**kwargs, "adapter_names": adapter_names}
