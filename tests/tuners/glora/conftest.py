"""A model with two adapters."""

from __future__ import annotations

import pytest
from glora_models import config
from peft import get_peft_model


@pytest.fixture
def two_adapters(make_model, randomize):
    """``first`` on three layers, ``second`` on other layers too, of other kinds."""
    model = get_peft_model(make_model("bert").double(), config(), adapter_name="first")
    second = config(target_modules=["query", "key"], config_A_B="vector", config_C="vector", config_D_E="vector")
    model.add_adapter("second", second)
    return randomize(randomize(model, 1, "first"), 2, "second").eval()
