"""How a supernet gets into a model, and how its subnets are activated and read out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from glora_search.compat import AuxiliaryTrainingWrapper
from glora_search.space.binding import without_saved
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Choice, Genome
from glora_search.space.schema import SearchSpace
from glora_search.supernet.config import SupernetConfig
from glora_search.supernet.layer import SupernetLayer, SupernetLinear
from glora_search.supernet.memory import folding_fits as fits_folded
from glora_search.tuners.glora import GLoraConfig
from glora_search.tuners.heads import AnyHead


class SupernetModel(AnyHead):
    """A model that holds every subnet of a search space, made by ``get_peft_model(model, SupernetConfig(space))``.

    One subnet is active at a time; a new supernet has its largest one active. All methods below can be called on
    the ``PeftModel``.

    Attributes:
        active_genome: the genome of the active subnet.
    """

    prefix: str = "supernet_"
    tuner_layer_cls = SupernetLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _pre_injection_hook(self, model: nn.Module, config: SupernetConfig, adapter_name: str) -> None:
        saved = config.modules_to_save or ()
        if isinstance(config.space, SearchSpace):
            config.set_bound(config.space.bind(model, saved))
        else:
            config.set_bound(without_saved(config.bound, model, saved))
        self.space: BoundSpace = config.bound

    def _check_new_adapter_config(self, config: SupernetConfig) -> None:
        # peft calls the hook above for the first adapter only.
        if len(self.peft_config) > 1:
            raise ValueError("A model holds one supernet at a time.")

    def _post_injection_hook(self, model: nn.Module, config: SupernetConfig, adapter_name: str) -> None:
        self.activate(self.space.largest)

    def _create_and_replace(
        self,
        peft_config: SupernetConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        space = next(layer for layer in self.space.layers if layer.name == current_key)
        layer = SupernetLinear(target, adapter_name, space, sharing=peft_config.sharing, name=current_key)
        self._replace_module(parent, target_name, layer, target)

    def layers(self) -> dict[str, SupernetLinear]:
        """Layer name -> module."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, SupernetLinear)}

    def activate(self, genome: Mapping[str, Choice]) -> None:
        """Make a subnet the one that the next forward computes.

        Raises:
            UserError: the space does not hold this genome.
        """
        self.space.check(genome)
        layers = self.layers()
        for name, paths in self.space.layer_paths(genome).items():
            layers[name].activate(paths)
        self.active_genome: Genome = dict(genome)

    @contextmanager
    def folded(self, genome: Mapping[str, Choice]) -> Iterator[None]:
        """Run a subnet at the bare model's speed: its paths are folded into the base weights for this block.

        Afterwards, the base weights are the same, bit for bit, and the subnet that was active before is active again.
        The next block writes to the same memory: of the folded weights, clone what you keep.
        """
        with self._active(genome):
            self.merge_adapter()
            try:
                yield
            finally:
                self.unmerge_adapter()

    @contextmanager
    def _active(self, genome: Mapping[str, Choice]) -> Iterator[None]:
        before = self.active_genome
        self.activate(genome)
        try:
            yield
        finally:
            self.activate(before)

    @contextmanager
    def scored(self, genome: Mapping[str, Choice], fold: bool = True) -> Iterator[None]:
        """Run a subnet for this block: folded, or as it is trained, in less memory and more time.

        Unfolded, a layer's paths are added to its output, or to one layer's weight at a time.
        """
        with self.folded(genome) if fold else self._active(genome):
            yield

    def folding_fits(self) -> bool:
        """Whether the device has the memory for a second copy of the adapted weights, which folding needs.

        Layers that still hold that of an earlier subnet need no more. Of quantised weights it would be a dense one, for
        whose memory they were quantised.
        """
        layers: list[Any] = list(self.layers().values())
        if any(layer.quantized for layer in layers):
            return False
        return fits_folded(layer.get_base_layer().weight for layer in layers if layer._spare is None)

    def subnet_config(self, genome: Mapping[str, Choice], **kwargs: Any) -> GLoraConfig:
        """The fixed configuration of a subnet, see `BoundSpace.to_config`."""
        config = self.peft_config[self.active_adapters[0]]
        names = ("task_type", "modules_to_save", "base_model_name_or_path", "revision")
        inherited = {name: getattr(config, name) for name in names}
        if inherited["modules_to_save"]:  # peft adds the classifier each time that it loads a config
            inherited["modules_to_save"] = list(dict.fromkeys(inherited["modules_to_save"]))
        return self.space.to_config(genome, **{**inherited, **kwargs})

    def subnet_state_dict(self, genome: Mapping[str, Choice]) -> dict[str, Tensor]:
        """The weights that a subnet inherits, the head included, in the names of an adapter's saved file.

        Returns:
            ``base_model.model.<layer>.glora_<path>.<tensor>`` -> a copy of its part of the shared tensors.
        """
        adapter_name = self.active_adapters[0]
        layers = self.layers()
        weights = {
            f"base_model.model.{name}.glora_{path}.{tensor}": value
            for name, paths in self.space.layer_paths(genome).items()
            for path, tensors in layers[name].subnet_tensors(paths, adapter_name).items()
            for tensor, value in tensors.items()
        }
        for name, module in self.model.named_modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                saved = module.adapter_state_dict(adapter_name, module.state_dict())
                weights |= {f"base_model.model.{name}.{key}": value for key, value in saved.items()}
        return {key: value.detach().clone().contiguous() for key, value in weights.items()}
