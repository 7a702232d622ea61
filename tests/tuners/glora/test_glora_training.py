from __future__ import annotations

from typing import Any

import pytest
import torch
from glora_models import close, config, glora_layers
from peft import PeftModel, get_peft_model
from torch import nn


def test_modules_to_save_are_trained_besides_the_adapter(make_model):
    model = get_peft_model(make_model("bert"), config(modules_to_save=["classifier"]))
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "glora_" not in name}
    assert trained == {f"base_model.model.classifier.modules_to_save.default.{name}" for name in ("weight", "bias")}


def test_bias_glora_only_trains_the_biases_of_the_adapted_layers_and_saves_them(
    make_model, randomize, logits, tmp_path
):
    model = randomize(get_peft_model(make_model("bert"), config(bias="glora_only")))
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "glora_" not in name}
    assert trained == {f"base_model.model.{name}.base_layer.bias" for name in glora_layers(model)}
    model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    gradients = [layer.base_layer.bias.grad for layer in glora_layers(model).values()]
    assert all(gradient is not None and gradient.any() for gradient in gradients[1:3])
    for layer in glora_layers(model).values():
        layer.base_layer.bias.data += 1
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(make_model("bert"), tmp_path)), logits(model))


def test_bias_all_trains_every_bias_of_the_base_model(make_model):
    model = get_peft_model(make_model("bert"), config(bias="all"))
    biases = {name for name, _ in make_model("bert").named_parameters() if name.endswith("bias")}
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "glora_" not in name}
    assert {n.removeprefix("base_model.model.").replace("base_layer.", "") for n in trained} == biases


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_gradient_checkpointing_gives_the_same_gradients(architecture, use_reentrant, make_model, randomize):
    gradients, calls = [], []
    for checkpointing in (False, True):
        base = make_model(architecture)
        for module in base.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        model = randomize(get_peft_model(base, config(architecture))).train()
        counted: list[nn.Module] = []
        for layer in glora_layers(model).values():
            layer.register_forward_pre_hook(lambda module, _, counted=counted: counted.append(module))
        model(input_ids=torch.arange(1, 13).reshape(2, 6)).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        calls.append(len(counted))
    plain, checkpointed = gradients
    assert calls[1] == 2 * calls[0]
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        close(checkpointed[name], gradient, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("paths", [{}, {"config_A": "vector"}, {"config_A_B": "vector", "config_C": "vector"}])
@pytest.mark.parametrize("autocast", [False, True])
def test_it_compiles_to_one_graph_with_the_same_gradients(paths, autocast, make_model, randomize):
    model = randomize(get_peft_model(make_model("mlp"), config("mlp", path_pattern={}, **paths)))
    model.add_adapter("other", config("mlp", r=1))
    randomize(model, 1, "other")
    model.base_model.set_adapter(["default", "other"])
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))

    def gradients(forward: Any) -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = forward(x)
        y.float().square().sum().backward()
        return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]

    expected = gradients(model)
    torch.compiler.reset()
    compiled = torch.compile(model.base_model.model, backend="aot_eager", fullgraph=True)
    assert len(expected) > 3
    for actual, wanted in zip(gradients(compiled), expected, strict=True):
        close(actual.float(), wanted.float(), 0.05 if autocast else 1e-5)
