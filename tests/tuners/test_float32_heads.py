"""Modules that are trained as they are, in models of half precision."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from glora_search.tuners.heads import train_in_float32

BATCH = {"input_ids": torch.arange(4, 12)[None], "labels": torch.tensor([1])}


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_head_is_float32_and_so_are_its_logits_and_the_loss(make_model, half):
    plain = make_model("bert").to(half)
    model = copy.deepcopy(plain)
    train_in_float32(model, ["classifier"])
    assert {name for name, own in model.named_parameters() if own.dtype == torch.float32} == {
        "classifier.weight",
        "classifier.bias",
    }
    with torch.no_grad():
        found, expected = model.eval()(**BATCH), plain.eval()(**BATCH)
    assert (found.logits.dtype, found.loss.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(found.logits, expected.logits.float(), rtol=0, atol=1e-2)


def test_small_steps_do_not_round_away(make_model):
    model = make_model("bert").bfloat16()
    train_in_float32(model, ["classifier"])
    adapted = get_peft_model(model, LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    trained = [own for own in adapted.parameters() if own.requires_grad]
    assert {own.dtype for own in trained} == {torch.float32}
    optimizer = torch.optim.SGD(trained, lr=1e-4)
    before = [own.clone() for own in trained]
    adapted(**BATCH).loss.backward()
    optimizer.step()
    moved = [own for own, old in zip(trained, before, strict=True) if not torch.equal(own, old)]
    assert any(own.shape == model.classifier.weight.shape for own in moved)


def test_what_follows_a_module_inside_of_the_model_is_given_what_it_was(make_model):
    model = make_model("bert").bfloat16()
    train_in_float32(model, ["pooler"])
    assert model.bert.pooler.dense.weight.dtype == torch.float32
    seen = []
    model.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.no_grad():
        model(**BATCH)
    assert seen == [torch.bfloat16]


def test_a_float32_model_stays_as_it_is(make_model):
    model = make_model("bert")
    train_in_float32(model, ["classifier", "pooler"])
    assert not model.classifier._forward_pre_hooks
    assert not model.bert.pooler._forward_hooks
