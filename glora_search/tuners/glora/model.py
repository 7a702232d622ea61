"""How GLoRA layers get into a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from glora_search.compat import TRANSFORMERS_MODELS_TO_GLORA_TARGET_MODULES_MAPPING, AuxiliaryTrainingWrapper
from glora_search.errors import invalid
from glora_search.tuners.glora.combine import weighted_sum
from glora_search.tuners.glora.config import GLoraConfig, paths_to_config
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

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """As in peft; a pattern of ``path_pattern`` that holds for no layer is warned of."""
        found = super().inject_adapter(model, adapter_name, *args, **kwargs)
        config = self.peft_config[adapter_name]
        layers = [
            name
            for name, module in model.named_modules()
            if isinstance(module, GLoraLayer) and module.has_adapter(adapter_name)
        ]
        unused = sorted({*config.path_pattern} - {config.pattern_of(name) for name in layers})
        if unused:
            example = f", e.g. {layers[0]}" if layers else ""
            warnings.warn(
                f"path_pattern: {', '.join(unused)} hold for none of the adapted layers{example}", stacklevel=2
            )
        return found

    @torch.no_grad()
    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """Add an adapter that is the weighted sum of others, exactly; `set_adapter` makes it the active one.

        A path has the largest of their kinds, and ranks add up. Biases are not combined.

        Args:
            adapters (`list`): names of adapters.
            weights (`list`): a weight for each of them.
            adapter_name (`str`): the new adapter's name.
            combination_type (`str`): ``linear``; peft's other types lose something.

        Raises:
            UserError: an unknown adapter or type, another number of weights, a name that is taken, or an adapter with
                a trained head, which a sum cannot have.
        """
        if combination_type != "linear":
            raise invalid("combination_type", combination_type, ["linear"])
        if not adapters or any(name not in self.peft_config for name in adapters):
            raise invalid("adapters", adapters, f"names among {', '.join(self.peft_config)}")
        if len(weights) != len(adapters) or len(set(adapters)) != len(adapters):
            raise invalid("weights", weights, f"one weight for each of {len(adapters)} different adapters")
        if adapter_name in self.peft_config:
            raise invalid("adapter_name", adapter_name, f"a name that is none of {', '.join(self.peft_config)}")
        if (name := next((name for name in adapters if self.peft_config[name].modules_to_save), None)) is not None:
            heads = ", ".join(self.peft_config[name].modules_to_save or ())
            raise invalid("adapters", name, f"adapters without modules_to_save; a sum has no {heads}")
        modules = [name for name, _ in self.model.named_modules()]
        sums = {
            name: weighted_sum(module, dict(zip(adapters, weights, strict=True)))
            for name, module in self.model.named_modules()
            if isinstance(module, GLoraLinear) and any(module.has_adapter(adapter) for adapter in adapters)
        }
        first = self.peft_config[adapters[0]]
        paths = {name: own for name, (own, _) in sums.items()}
        self.peft_config[adapter_name] = paths_to_config(
            paths,
            modules,
            **{
                name: getattr(first, name)
                for name in ("task_type", "base_model_name_or_path", "revision", "inference_mode")
            },
        )
        self.inject_adapter(self.model, adapter_name)
        for name, (_, tensors) in sums.items():
            layer = self.model.get_submodule(name)
            for path, made in layer.path_tensors(adapter_name).items() if layer.has_adapter(adapter_name) else ():
                for tensor, value in made.items():
                    value.data = tensors[path][tensor].to(value.device)  # in the dtype of what is summed

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
