"""How the base model is loaded: quantised or not, in which dtype, where to, and with which attention."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from glora_search.errors import invalid
from glora_search.recipe.data import Section

METHODS = {"load_in_4bit": "bitsandbytes", "load_in_8bit": "bitsandbytes", "int8_weight_only": "torchao"}
"""Key -> the package that does it."""
OF_4BIT = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")

Dtype = Literal["float32", "bfloat16", "float16"]


class Quantization(Section):
    """A base model with quantised weights.

    Exactly one of the first three keys must be true. A task's head is never quantised.

    Attributes:
        load_in_4bit, load_in_8bit: as in transformers' BitsAndBytesConfig.
        int8_weight_only: as torchao's Int8WeightOnlyConfig.
        bnb_4bit_quant_type, bnb_4bit_use_double_quant: as in transformers' BitsAndBytesConfig; only with
            ``load_in_4bit``.
        bnb_4bit_compute_dtype: dtype of the matrix products. None uses ``task.dtype`` if it is set, else float32.
        skip_modules: names of modules that are not quantised, besides the head.
    """

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    int8_weight_only: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: Dtype | None = None
    skip_modules: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        chosen = [name for name in METHODS if getattr(self, name)]
        if len(chosen) != 1:
            raise invalid("quantization", chosen, f"exactly one of {', '.join(METHODS)}")
        for name in OF_4BIT if not self.load_in_4bit else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise invalid(name, getattr(self, name), "no value without load_in_4bit")
        return self

    @property
    def method(self) -> str:
        """The key that is true."""
        return next(name for name in METHODS if getattr(self, name))

    @property
    def package(self) -> str:
        """The package that quantises."""
        return METHODS[self.method]

    def config(self, skip: list[str], dtype: str | None) -> Any:
        """The configuration of transformers.

        Args:
            skip: further modules that stay as they are.
            dtype: of the model, where it is given.

        Raises:
            UserError: the package is not installed.
        """
        import transformers

        if importlib.util.find_spec(self.package) is None:
            allowed = f"null, or the package {self.package}: pip install 'glora-search[quantized]'"
            raise invalid("task.quantization", self.method, allowed)
        skipped = [*self.skip_modules, *skip] or None
        if self.int8_weight_only:
            from torchao.quantization import Int8WeightOnlyConfig

            return transformers.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)
        if self.load_in_8bit:
            return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=self.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=self.bnb_4bit_compute_dtype or dtype or "float32",
            llm_int8_skip_modules=skipped,
        )


class Loading(Section):
    """How the base model is loaded.

    Attributes:
        quantization: quantise the base model's weights; None leaves them as they are.
        dtype: dtype of the model's weights; None is the checkpoint's. Adapters and supernets are float32.
        device_map: as in transformers, such as ``auto``, or a mapping of modules to devices. None uses one device.
        attn_implementation: as in transformers; None is the model's default.
    """

    quantization: Quantization | None = None
    dtype: Dtype | None = None
    device_map: str | dict[str, int | str] | None = None
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = (
        None
    )

    def options_of_model(self, *, skip: Sequence[str] = (), quantized: bool = True) -> dict[str, Any]:
        """What ``from_pretrained`` of a model is given.

        Args:
            skip: modules that are not quantised.
            quantized: False loads what was merged, which is plain.
        """
        found: dict[str, Any] = {
            name: value
            for name in ("dtype", "device_map", "attn_implementation")
            if (value := getattr(self, name)) is not None
        }
        if self.quantization is not None and quantized:
            found["quantization_config"] = self.quantization.config(list(skip), self.dtype)
        return found
