from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from glora_search import GLoraConfig
from glora_search.adapters.export import export_stock


class Processor:
    """What is saved beside an adapter."""

    def save_pretrained(self, folder):
        pass


OFF = {"config_A_B": "none", "config_C": "none", "config_D_E": "none", "config_B": "lora"}
ONE = "in all layers, which every reader of LoRA scales alike"
MANY = "2 to 3, by layer (`rank_pattern`, `alpha_pattern`); for llama.cpp, and others that do not know these patterns"
CARDS = {
    "a rank by layer": (GLoraConfig(r=2, **OFF, path_pattern={"value": {"r": 3}}), False, MANY),
    "padded": (GLoraConfig(r=2, **OFF, path_pattern={"value": {"r": 3}}), True, f"3 {ONE}"),
    "one rank": (GLoraConfig(r=2, **OFF), False, f"2 {ONE}"),
    "a LoRA that has won": (LoraConfig(r=2, lora_alpha=4), True, f"2 {ONE}"),
}


@pytest.mark.parametrize(("config", "pad", "said"), CARDS.values(), ids=CARDS.keys())
def test_the_card_of_a_lora_says_which_readers_need_one_rank(config, pad, said, make_model, tmp_path):
    config.target_modules = {"query", "value"}
    model, folder = get_peft_model(make_model("bert"), config), tmp_path / "lora"
    export_stock(model, "lora", folder, base_model="base", facts={}, processor=Processor(), pad=pad)
    assert f"| rank | {said}" in (folder / "README.md").read_text()
    assert type(PeftConfig.from_pretrained(folder)) is LoraConfig


@pytest.mark.parametrize("form", ["lora", "peft"])
def test_the_card_says_how_large_a_padded_adapter_is(form, make_model, tmp_path):
    config = GLoraConfig(r=1, **OFF, path_pattern={"value": {"r": 3}}, target_modules=["query", "value"])
    model = get_peft_model(make_model("bert"), config)
    own = f"{model.get_nb_trainable_parameters()[0]:,}"
    facts = {"adapter parameters": own}
    export_stock(model, form, tmp_path, base_model="base", facts=facts, processor=Processor(), pad=form == "lora")
    padded = PeftModel.from_pretrained(make_model("bert"), tmp_path, is_trainable=True).get_nb_trainable_parameters()[0]
    assert f"| adapter parameters | {own}, and {padded:,} with padding |" in (tmp_path / "README.md").read_text()


def test_a_lora_that_has_won_is_what_plain_peft_loads_in_either_format(make_model, tmp_path):
    model = get_peft_model(make_model("bert"), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    saved = {}
    for form in ("peft", "lora"):
        export_stock(model, form, tmp_path / form, base_model="base", facts={}, processor=Processor())
        assert type(PeftConfig.from_pretrained(tmp_path / form)) is LoraConfig
        saved[form] = load_file(tmp_path / form / "adapter_model.safetensors")
    assert saved["peft"].keys() == saved["lora"].keys()
    assert all(torch.equal(value, saved["lora"][name]) for name, value in saved["peft"].items())
