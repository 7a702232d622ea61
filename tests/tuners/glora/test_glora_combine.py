from __future__ import annotations

from typing import Any

import pytest
import torch
from glora_models import close, config
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model

from glora_search import GLoraConfig
from glora_search.errors import UserError
from glora_search.tuners.glora import GLoraLinear
from glora_search.vocabulary import KINDS


def added(model, names, weights) -> dict[str, Any]:
    """What the active adapters add to the base weights."""
    plain = weights(model)
    model.base_model.set_adapter(names)
    model.merge_adapter()
    merged = weights(model)
    model.unmerge_adapter()
    return {name: value - plain[name] for name, value in merged.items()}


@settings(max_examples=15)
@given(data=st.data())
def test_a_weighted_sum_adds_exactly_the_sum_whatever_the_kinds(data, make_model, randomize, weights, logits):
    def drawn(targets: list[str]) -> GLoraConfig:
        kinds = {path: data.draw(st.sampled_from(kinds), label=path) for path, kinds in KINDS.items()}
        return GLoraConfig(
            target_modules=targets, path_pattern={targets[0]: {**kinds, "r": data.draw(st.integers(1, 3))}}
        )

    model = get_peft_model(make_model("bert").double(), drawn(["query", "value"]), adapter_name="first")
    model.add_adapter("second", drawn(["query", "intermediate.dense"]))
    randomize(randomize(model, 1, "first"), 2, "second").eval()
    model.add_weighted_adapter(["first", "second"], [0.5, -2.0], "sum")
    first, second, found = (added(model, name, weights) for name in ("first", "second", "sum"))
    for name, value in found.items():
        close(value, 0.5 * first[name] - 2.0 * second[name])
    unmerged = logits(model)
    model.merge_adapter()
    close(logits(model), unmerged)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sum_on_a_model_in_half_precision_is_as_exact_as_what_is_summed(dtype, make_model, randomize):
    model = get_peft_model(make_model("bert").to(dtype), GLoraConfig(r=2, target_modules=["query"]))
    randomize(model, 1, "default")
    model.add_weighted_adapter(["default"], [1.0], "copy")
    for layer in model.modules():
        if isinstance(layer, GLoraLinear):
            for path, tensors in layer.path_tensors("default").items():
                for name, value in tensors.items():
                    assert value.dtype == torch.float32
                    torch.testing.assert_close(layer.path_tensors("copy")[path][name], value, rtol=0, atol=0)


def test_ranks_add_up_and_the_active_adapter_stays(make_model, randomize):
    only_b = {"config_A_B": "none", "config_B": "lora", "config_C": "none", "config_D_E": "none"}
    model = get_peft_model(make_model("bert"), GLoraConfig(r=2, target_modules=["query"], **only_b))
    model.add_adapter("other", GLoraConfig(r=3, target_modules=["query"], **only_b))
    before = {name for name, value in model.named_parameters() if value.requires_grad}
    model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum")
    assert {name for name, value in model.named_parameters() if value.requires_grad} == before
    paths = model.peft_config["sum"].paths_for("bert.encoder.layer.0.attention.self.query", has_bias=True)
    assert paths.describe() == "B=lora(r=5)"


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_sum_is_saved_and_loaded_as_any_adapter(architecture, make_model, randomize, logits, tmp_path):
    model = get_peft_model(make_model(architecture).double(), config(architecture), adapter_name="first")
    model.add_adapter("second", config(architecture, path_pattern={}, config_A_B="vector"))
    randomize(randomize(model, 1, "first"), 2, "second").eval()
    model.add_weighted_adapter(["first", "second"], [1.0, 1.0], "sum")
    model.base_model.set_adapter(["first", "second"])
    expected = logits(model)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(make_model(architecture).double(), tmp_path / "sum")
    close(logits(loaded), expected)


WRONG = {
    "combination_type": (["first"], [1.0], "sum", "svd"),
    "adapters": (["third"], [1.0], "sum", "linear"),
    "weights": (["first", "second"], [1.0], "sum", "linear"),
    "adapter_name": (["first"], [1.0], "second", "linear"),
}


@pytest.mark.parametrize(("key", "arguments"), WRONG.items(), ids=WRONG.keys())
def test_a_sum_that_cannot_be_made_is_refused_and_changes_nothing(key, arguments, two_adapters):
    before = set(two_adapters.state_dict())
    with pytest.raises(UserError, match=f"^{key}: got"):
        two_adapters.add_weighted_adapter(*arguments)
    assert set(two_adapters.state_dict()) == before
    assert set(two_adapters.peft_config) == {"first", "second"}


def test_adapters_with_a_trained_head_are_refused(make_model):
    config = GLoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    model = get_peft_model(make_model("bert"), config)
    with pytest.raises(UserError, match=r"^adapters: got 'default'; allowed: adapters without modules_to_save"):
        model.base_model.add_weighted_adapter(["default"], [1.0], "sum")


def test_a_sum_is_of_the_same_base_and_for_the_same_use(make_model):
    sources = config(revision="v1", inference_mode=True)
    model = get_peft_model(make_model("bert"), sources, adapter_name="first")
    model.add_adapter("second", sources)
    model.add_weighted_adapter(["first", "second"], [0.5, 0.5], "sum")
    made = model.peft_config["sum"]
    assert (made.revision, made.inference_mode) == ("v1", True)
