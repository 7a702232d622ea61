"""Loading an adapter folder."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from peft import get_peft_model

from glora_search import GLoraConfig
from glora_search.adapters.load import load_adapter, subnet_to_train
from glora_search.errors import UserError

CODE = """
import glora_search.adapters.load
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known
print({str(getattr(name, "value", name)) for name in known} >= {"GLORA_PATHS", "GLORA_SUPERNET"})
"""


def test_whoever_loads_adapters_knows_both_types():
    """A process that helps a search does not make a supernet, and loads one."""
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True"


def test_an_adapter_of_another_shape_or_without_a_config_is_refused(make_model, tmp_path):
    for r in (1, 2):
        get_peft_model(make_model("bert"), GLoraConfig(r=r, target_modules=["query"])).save_pretrained(
            tmp_path / str(r)
        )
    shutil.copy(tmp_path / "1" / "adapter_model.safetensors", tmp_path / "2")
    with pytest.raises(UserError, match=r"2: not a complete adapter \(.*size mismatch.*repeat its stage"):
        load_adapter(make_model("bert"), tmp_path / "2")
    (tmp_path / "1" / "adapter_config.json").unlink()
    for start in ("inherited", "scratch"):
        with pytest.raises(UserError, match=r"1: not a complete adapter \(adapter_config.json is missing\)"):
            subnet_to_train(make_model("bert"), tmp_path / "1", start=start)
