"""Adapters and supernets in the replicas of ``nn.DataParallel``, two of them on the CPU."""

from __future__ import annotations

import importlib

import pytest
import torch
from peft import get_peft_model

from glora_search import GLoraConfig, SupernetConfig

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.fixture
def replicas(monkeypatch):
    """``replicas(model)``: torch's own two replicas; only the copy from device to device is replaced."""
    module = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(module, "_get_device_index", lambda device, optional=False: device)
    monkeypatch.setattr(
        module,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [
            [value.detach() if detach else value * 1 for value in tensors] for _ in devices
        ],
    )
    return lambda model: module.replicate(model, [0, 1])


def check(model, replicas, trained):
    """Both replicas compute what the model does, and send gradients to the parameters that it trains."""
    expected = model(input_ids=IDS, labels=torch.tensor([0, 1]))
    for replica in replicas(model):
        model.zero_grad()
        found = replica(input_ids=IDS, labels=torch.tensor([0, 1]))
        torch.testing.assert_close(found.logits, expected.logits)
        found.loss.backward()
        reached = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
        assert reached == trained


@pytest.mark.parametrize("kind", ["lora", "vector", "constant"])
def test_an_adapter_computes_and_learns_in_each_replica(kind, make_model, randomize, replicas):
    bias = {"config_C": "vector" if kind == "constant" else kind, "config_D_E": "constant" if kind == "lora" else kind}
    config = GLoraConfig(target_modules=["query", "value"], config_A_B=kind, **bias, task_type="SEQ_CLS")
    model = randomize(get_peft_model(make_model("bert"), config)).eval()
    own = {name for name, value in model.named_parameters() if value.requires_grad}
    assert any("glora_C" in name for name in own)
    check(model, replicas, own)


def test_a_supernet_computes_the_active_subnet_in_each_replica(make_model, bind, randomize, replicas):
    space = bind("glora")
    model = randomize(get_peft_model(make_model("bert"), SupernetConfig(space=space, task_type="SEQ_CLS"))).eval()
    seen = []
    for genome in (space.largest, space.smallest, *space.uniform_methods().values()):
        model.activate(genome)
        model.zero_grad()
        model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
        own = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
        check(model, replicas, own)
        seen.append(frozenset(own))
    assert len(set(seen)) > 3
    with model.folded(space.largest):
        folded = [replica(input_ids=IDS).logits for replica in replicas(model)]
    model.activate(space.largest)
    torch.testing.assert_close(folded, [model(input_ids=IDS).logits] * 2)
