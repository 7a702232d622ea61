from __future__ import annotations

import pytest
import torch
from glora_models import close, config, same_weights
from peft import get_peft_model
from torch import nn


def only(name: str, two: nn.Module, make_model, logits) -> torch.Tensor:
    """The logits of a model that has one of the two adapters only."""
    alone = get_peft_model(make_model("bert").double(), two.peft_config[name], adapter_name=name)
    missing = alone.load_state_dict({k: v for k, v in two.state_dict().items() if f".{name}." in k}, strict=False)
    assert not missing.unexpected_keys
    return logits(alone)


def test_adapters_can_be_added_switched_and_deleted(two_adapters, make_model, logits):
    first, second = (only(name, two_adapters, make_model, logits) for name in ("first", "second"))
    close(logits(two_adapters), first)
    two_adapters.set_adapter("second")
    close(logits(two_adapters), second)
    trained = {n for n, p in two_adapters.named_parameters() if p.requires_grad}
    assert trained
    assert all(".second." in n for n in trained)
    two_adapters.delete_adapter("first")
    assert not any(".first." in n for n, _ in two_adapters.named_parameters())
    close(logits(two_adapters), second)


def test_adapters_active_together_add_up_in_the_weights(two_adapters, make_model, logits, weights):
    plain = weights(make_model("bert").double())
    merged = {}
    for names in (["first"], ["second"], ["first", "second"]):
        two_adapters.base_model.set_adapter(names)
        two_adapters.merge_adapter()
        merged[tuple(names)] = weights(two_adapters)
        two_adapters.unmerge_adapter()
    for name, value in merged[("first", "second")].items():
        close(value, merged[("first",)][name] + merged[("second",)][name] - plain[name])
    both = logits(two_adapters)
    two_adapters.merge_adapter()
    close(logits(two_adapters), both)


def test_a_subset_of_the_adapters_can_be_merged(two_adapters, make_model, logits, weights):
    second = only("second", two_adapters, make_model, logits)
    two_adapters.base_model.set_adapter("second")
    two_adapters.merge_adapter()
    wanted = weights(two_adapters)
    two_adapters.unmerge_adapter()
    two_adapters.base_model.set_adapter(["first", "second"])
    two_adapters.merge_adapter(adapter_names=["second"])
    assert same_weights(weights(two_adapters), wanted)
    two_adapters.unmerge_adapter()
    merged = two_adapters.merge_and_unload(adapter_names=["second"])
    close(logits(merged), second)


def test_each_row_of_a_mixed_batch_takes_its_own_adapter(two_adapters, make_model, logits):
    rows = {name: only(name, two_adapters, make_model, logits) for name in ("first", "second")}
    rows["__base__"] = logits(make_model("bert").double())
    names = ["second", "__base__", "first", "second"]
    mixed = logits(two_adapters, adapter_names=names)
    for row, name in enumerate(names):
        close(mixed[row], rows[name][row])
    close(logits(two_adapters), rows["first"])


def test_a_mixed_batch_refuses_an_unknown_adapter_and_training(two_adapters, logits):
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): third"):
        logits(two_adapters, adapter_names=["first", "third", "first", "first"])
    two_adapters.train()
    with pytest.raises(ValueError, match="training mode"):
        logits(two_adapters, adapter_names=["first"] * 4)


@pytest.mark.parametrize("names", [["first", "second", "__base__", "first"], ["__base__"] * 4])
def test_each_row_of_a_mixed_batch_takes_the_head_of_its_own_adapter(names, make_model, randomize, logits):
    model = get_peft_model(make_model("bert").double(), config(task_type="SEQ_CLS"), adapter_name="first")
    model.add_adapter("second", config(task_type="SEQ_CLS", config_A_B="vector"))
    randomize(randomize(model, 1, "first"), 2, "second").eval()
    expected = {"__base__": logits(make_model("bert").double())}
    for name in ("second", "first"):
        model.set_adapter(name)
        expected[name] = logits(model)
    assert not torch.allclose(expected["first"], expected["second"])
    mixed = logits(model, adapter_names=names)
    for row, name in enumerate(names):
        close(mixed[row], expected[name][row])


def test_a_mixed_batch_can_be_generated_with_beams(make_model, randomize):
    model = randomize(get_peft_model(make_model("llama"), config("llama", task_type="CAUSAL_LM"))).eval()
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    options = {"num_beams": 2, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    mixed = model.generate(input_ids=ids, adapter_names=["default", "__base__"], **options)
    alone = model.generate(input_ids=ids[:1], **options)
    plain = make_model("llama").generate(input_ids=ids[1:], **options)
    assert torch.equal(mixed[:1, : alone.shape[1]], alone)
    assert torch.equal(mixed[1:, : plain.shape[1]], plain)
