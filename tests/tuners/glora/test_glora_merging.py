from __future__ import annotations

import warnings
import weakref
from typing import Any

import pytest
import torch
from glora_models import ARCHITECTURES, close, config, glora_layers, same_weights
from peft import get_peft_model

from glora_search import GLoraLinear
from glora_search.vocabulary import KINDS


@pytest.mark.parametrize(("path", "kind"), [(path, k) for path, kinds in KINDS.items() for k in kinds])
def test_every_kind_of_every_path_trains_and_merges(path, kind, make_model, randomize, logits):
    option = {"C": "config_C"}.get(path, f"config_{path}")
    none = {"config_A_B": "none", "config_C": "none", "config_D_E": "none"}
    base = make_model("bert").double()
    expected = logits(base)
    model = randomize(get_peft_model(base, config(path_pattern={}, **{**none, option: kind})))
    adapted = logits(model)
    assert torch.allclose(adapted, expected) == (kind == "none")
    merged = model.merge_and_unload()
    close(logits(merged), adapted)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merge_and_unload_returns_the_plain_model_with_the_same_logits(
    architecture, make_model, randomize, logits, weights
):
    base = make_model(architecture).double()
    types = {name: type(module) for name, module in base.named_modules()}
    shapes = {name: tuple(p.shape) for name, p in base.named_parameters()}
    model = randomize(get_peft_model(base, config(architecture)))
    expected = logits(model)
    assert not torch.allclose(expected, logits(make_model(architecture).double()))
    merged = model.merge_and_unload(safe_merge=True)
    assert {name: type(module) for name, module in merged.named_modules()} == types
    assert {name: tuple(p.shape) for name, p in merged.named_parameters()} == shapes
    close(logits(merged), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unload_returns_the_base_model_bit_for_bit(architecture, make_model, randomize, weights):
    base = make_model(architecture)
    before = weights(base)
    model = randomize(get_peft_model(base, config(architecture)))
    unloaded = model.unload()
    assert not glora_layers(unloaded)
    assert same_weights(weights(unloaded), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_adapter_and_unmerge_adapter_restore_every_bit(
    architecture, dtype, make_model, randomize, logits, weights
):
    base = make_model(architecture).to(dtype)
    model = randomize(get_peft_model(base, config(architecture, config_A="constant", init_weights=False)))
    for layer in glora_layers(model).values():
        for adapters in layer.glora_A.values():
            if adapters["X"].numel() == 1:
                adapters["X"].data.fill_(-1)  # 1 + A = 0: no division brings the weight back
    before, adapted = weights(model), logits(model)
    model.merge_adapter()
    assert not same_weights(weights(model), before)
    close(logits(model).float(), adapted.float(), 1e-4 if dtype == torch.float32 else 0.1)
    model.unmerge_adapter()
    assert same_weights(weights(model), before)
    assert torch.equal(logits(model), adapted)


def test_with_disable_adapter_it_is_the_base_model_exactly(make_model, randomize, logits):
    expected = logits(make_model("bert"))
    model = randomize(get_peft_model(make_model("bert"), config(modules_to_save=["classifier"])))
    adapted = logits(model)
    assert not torch.allclose(adapted, expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), adapted)
    model.merge_adapter()
    with model.disable_adapter(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(logits(model), expected)


def test_a_broken_adapter_is_refused_by_a_safe_merge_and_the_base_can_be_had_again(make_model, randomize, weights):
    base = make_model("bert")
    before = weights(base)
    model = randomize(get_peft_model(base, config()))
    list(glora_layers(model).values())[3].glora_B["default"]["Xd"].data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights\. The adapter default"):
        model.merge_adapter(safe_merge=True)
    model.unmerge_adapter()
    assert same_weights(weights(model), before)


def test_merge_and_unload_keeps_no_copy_of_the_base_weights(make_model, randomize, monkeypatch):
    kept = []
    remerge = GLoraLinear._remerge

    def watched(layer: GLoraLinear, *args: Any, **kwargs: Any) -> None:
        remerge(layer, *args, **kwargs)
        kept.append(weakref.ref(layer._unmerged[0].untyped_storage()))

    monkeypatch.setattr(GLoraLinear, "_remerge", watched)
    merged = randomize(get_peft_model(make_model("bert"), config())).merge_and_unload()
    assert len(kept) == 6
    assert not any(reference() is not None for reference in kept)
    assert merged is not None
