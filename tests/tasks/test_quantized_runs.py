"""Recipes with a quantised base model, from the recipe to the merged model."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from glora_search import GLoraConfig, SearchSpace
from glora_search.adapters.load import load_adapter
from glora_search.errors import UserError
from glora_search.files.text import read_json
from glora_search.recipe.loading import Quantization
from glora_search.recipe.schema import Recipe
from glora_search.run.runner import Run
from glora_search.scoring import evaluate
from glora_search.tuners.quantized import quantization_of

METHODS = {"load_in_4bit": "bitsandbytes", "load_in_8bit": "bitsandbytes", "int8_weight_only": "torchao"}
INSTALLED = [
    pytest.param(
        method, marks=pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is missing")
    )
    for method, package in METHODS.items()
]


def quantized_layers(model):
    return [name for name, module in model.named_modules() if quantization_of(module) is not None]


@pytest.mark.slow
@pytest.mark.parametrize("method", INSTALLED)
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_recipe_with_a_quantised_base_goes_from_the_supernet_to_a_plain_model(
    tiny, recipe, make, tmp_path, capsys, architecture, method
):
    kind = {"llama": "causal-lm", "bert": "text-classification"}[architecture]
    source = {"source": "json", "train": make.json(tmp_path / "rows.jsonl", make.rows(24))}
    made = recipe(tiny(architecture), source, type=kind, quantization={method: True})
    if architecture == "bert" or method == "load_in_4bit":
        training = {**made.pop("retrain")["training"], "num_train_epochs": 4}
        made["finals"] = {"subnets": 1, "methods": ["lora"], "rates": [1.0], "teacher": 2, "training": training}
        del made["baselines"]
    run = Run.create(Recipe.model_validate(made), tmp_path / "run")
    metrics = run.all_stages()
    assert "quantised layers are dequantised to torch.float32" in capsys.readouterr().out
    assert METHODS[method] in read_json(run.folder / "environment.json")["versions"]

    task = run.context.task
    base = task.model()
    assert quantized_layers(base)
    assert not run.context.load("supernet").folding_fits()  # subnets are scored unfolded, without a dense copy
    assert not any(name.startswith(("classifier", "lm_head")) for name in quantized_layers(base))
    adapted = load_adapter(base, run.folder / run.view.result("merged")["source"]).eval()
    assert evaluate(adapted, run.context.validation, task).metric == pytest.approx(
        metrics["final"]["validation"], rel=1e-4
    )
    merged = task.auto_class.from_pretrained(run.folder / "merged").eval()
    assert not quantized_layers(merged)
    assert getattr(merged.config, "quantization_config", None) is None
    assert all(type(module.weight.data) is torch.Tensor for module in merged.modules() if isinstance(module, nn.Linear))
    assert metrics["merged"]["test"] == pytest.approx(metrics["final"]["test"], rel=0.05)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "exactly one of load_in_4bit, load_in_8bit, int8_weight_only"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exactly one of"),
        ({"load_in_8bit": True, "bnb_4bit_quant_type": "fp4"}, "no value without load_in_4bit"),
    ],
)
def test_a_quantisation_that_is_no_or_more_than_one_method_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        Quantization(**keys)


def test_a_missing_package_is_named_before_anything_is_loaded(task, make, monkeypatch):
    made = task("llama", "causal-lm", make.rows(8), quantization={"load_in_4bit": True})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"task.quantization: .*bitsandbytes: pip install 'glora-search\[quantized\]'"):
        made.model()


def test_the_dtype_and_the_attention_of_a_recipe_are_the_models(task, make):
    made = task("llama", "causal-lm", make.rows(8), dtype="bfloat16", attn_implementation="eager")
    model = made.model()
    assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")


def four_bit(folder, **options):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(load_in_4bit=True, **options)
    return AutoModelForSequenceClassification.from_pretrained(folder, quantization_config=config)


def test_in_python_an_adapter_on_a_quantised_base_is_saved_loaded_and_merged(tiny, tmp_path):
    keep = {"llm_int8_skip_modules": ["classifier"]}
    model = get_peft_model(four_bit(tiny("bert"), **keep), GLoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    batch = {"input_ids": torch.arange(4, 12)[None]}
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(four_bit(tiny("bert"), **keep), tmp_path).eval()
        torch.testing.assert_close(loaded(**batch).logits, expected)
        merged = loaded.merge_and_unload()
        assert not quantized_layers(merged)
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_quantised_head_is_refused_when_a_space_is_bound(tiny):
    model = four_bit(tiny("bert"), llm_int8_skip_modules=["nothing"])
    with pytest.raises(UserError, match=r"modules_to_save: got 'classifier'.*llm_int8_skip_modules"):
        SearchSpace.load("glora").bind(model)
