from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from glora_models import close, config
from peft import PeftModel, get_peft_model


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_saved_and_loaded_again_it_gives_the_same_logits(
    architecture, low_cpu_mem_usage, make_model, randomize, logits, tmp_path
):
    head = ["classifier"] if architecture == "bert" else None
    model = randomize(get_peft_model(make_model(architecture), config(architecture, modules_to_save=head)))
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(architecture), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), expected)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(p.is_meta for p in loaded.parameters())


def test_a_saved_adapter_loads_beside_another_and_trains_on_where_it_is_asked_to(
    two_adapters, make_model, logits, tmp_path
):
    two_adapters.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model("bert").double(), tmp_path / "first", "first", is_trainable=True)
    loaded.load_adapter(tmp_path / "second", "second")
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == {
        name for name, p in loaded.named_parameters() if "glora_" in name and ".first." in name
    }
    for name in ("first", "second"):
        loaded.set_adapter(name)
        two_adapters.set_adapter(name)
        assert torch.equal(logits(loaded), logits(two_adapters))


FRESH_PROCESS = """
import json, sys
import torch
from peft import PeftModel
from transformers import BertForSequenceClassification

base, adapter = sys.argv[1:]
assert not any(name.startswith("glora_search") for name in sys.modules)
def load():
    return PeftModel.from_pretrained(BertForSequenceClassification.from_pretrained(base), adapter)
try:
    load()
    error = None
except Exception as raised:
    error = [type(raised).__name__, str(raised)]

import glora_search

ids = torch.arange(12).reshape(2, 6)
with torch.no_grad():
    logits = load().eval()(input_ids=ids).logits
print(json.dumps({"error": error, "logits": logits.tolist()}))
"""


@pytest.fixture(scope="module")
def fresh_process(make_model, randomize, tmp_path_factory) -> dict[str, Any]:
    """What a new interpreter makes of a saved adapter, first with peft alone, then with this package."""
    folder = tmp_path_factory.mktemp("fresh")
    base = make_model("bert")
    base.save_pretrained(folder / "base")
    model = randomize(get_peft_model(base, config(modules_to_save=["classifier"])))
    model.save_pretrained(folder / "adapter")
    command = [sys.executable, "-c", FRESH_PROCESS, str(folder / "base"), str(folder / "adapter")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model(input_ids=torch.arange(12).reshape(2, 6)).logits
    return {**json.loads(done.stdout.splitlines()[-1]), "expected": expected}


@pytest.mark.slow
def test_a_fresh_process_that_imports_the_package_loads_the_same_logits(fresh_process):
    close(torch.tensor(fresh_process["logits"]), fresh_process["expected"], 1e-6)


@pytest.mark.slow
def test_a_fresh_process_with_peft_alone_refuses_the_adapter_by_its_name(fresh_process):
    assert fresh_process["error"] == ["KeyError", "'GLORA_PATHS'"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_gets_float32_adapters_that_save_and_load(dtype, make_model, randomize, logits, tmp_path):
    model = randomize(get_peft_model(make_model("bert").to(dtype), config()))
    adapters = [p for name, p in model.named_parameters() if "glora_" in name]
    assert {p.dtype for p in adapters} == {torch.float32}
    assert logits(model).dtype == dtype
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(make_model("bert").to(dtype), tmp_path)), logits(model))


def test_the_files_of_an_adapter_hold_only_the_adapter(make_model, tmp_path):
    from safetensors.torch import load_file

    model = get_peft_model(make_model("bert"), config())
    model.save_pretrained(tmp_path)
    saved = load_file(Path(tmp_path) / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == model.get_nb_trainable_parameters()[0]


def test_a_trained_bias_is_saved_as_it_was_trained_also_while_merged(make_model, randomize, logits, tmp_path):
    model = randomize(get_peft_model(make_model("bert").double(), config(bias="glora_only")))
    for name, parameter in model.named_parameters():
        if name.endswith("base_layer.bias"):
            parameter.data += 1
    expected = logits(model)
    model.merge_adapter()
    model.save_pretrained(tmp_path)
    close(logits(PeftModel.from_pretrained(make_model("bert").double(), tmp_path)), expected)
