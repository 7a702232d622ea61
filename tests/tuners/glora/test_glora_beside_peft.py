from __future__ import annotations

import peft
import torch
from glora_models import TARGETS, close, config, glora_layers
from peft import PeftModel, get_peft_model

from glora_search import GLoraConfig

STOCK = {"r": 3, "config_A_B": "lora", "config_C": "lora", "config_D_E": "vector"}


def test_with_the_same_weights_it_equals_pefts_own_uniform_glora(make_model, randomize, logits):
    options = {**STOCK, "target_modules": TARGETS["bert"]}
    stock = randomize(get_peft_model(make_model("bert").double(), peft.GloraConfig(**options)))
    ours = get_peft_model(make_model("bert").double(), GLoraConfig(**options))
    ours.load_state_dict(stock.state_dict())
    assert logits(stock).dtype == torch.float64
    close(logits(ours), logits(stock), 1e-12)
    ids = torch.arange(1, 7).reshape(1, 6)
    gradients = []
    for model in (stock, ours):
        model(input_ids=ids).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, 1e-9)
    close(logits(ours.merge_and_unload()), logits(stock.merge_and_unload()), 1e-12)


def test_pefts_own_glora_stays_usable_beside_it(make_model, randomize, logits, tmp_path):
    ours = get_peft_model(make_model("bert"), config())
    stock = randomize(get_peft_model(make_model("bert"), peft.GloraConfig(target_modules=["query"])))
    assert isinstance(stock.base_model, peft.GloraModel)
    assert not isinstance(stock.base_model, type(ours.base_model))
    assert not glora_layers(stock)
    stock.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model("bert"), tmp_path)
    assert type(loaded.peft_config["default"]) is peft.GloraConfig
    assert torch.equal(logits(loaded), logits(stock))


def test_the_example_of_pefts_documentation_works_from_start_to_end(make_model, randomize, logits, capsys):
    model = get_peft_model(
        make_model("llama"),
        GLoraConfig(
            r=8,
            target_modules=["q_proj", "v_proj"],
            config_A_B="LoRA",
            config_C="vector",
            config_D_E="constant",
            task_type="CAUSAL_LM",
        ),
    )
    model.print_trainable_parameters()
    # Two layers of q [16, 16] and v [8, 16], A and B each; no biases, so no C, D and E.
    expected = 2 * 2 * 8 * ((16 + 16) + (16 + 8))
    assert f"trainable params: {expected:,} || all params:" in capsys.readouterr().out
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    ids = torch.arange(1, 13).reshape(2, 6)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    losses = []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval().set_adapter("default")
    expected_logits = logits(model)
    merged = model.merge_and_unload()
    assert type(merged) is type(make_model("llama"))
    close(logits(merged), expected_logits, 1e-4)
