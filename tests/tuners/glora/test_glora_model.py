from __future__ import annotations

import json
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from glora_search import GLoraConfig, GLoraLinear
from glora_search.errors import UserError
from glora_search.vocabulary import KINDS, LayerPaths

BERT_LINEARS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "mlp": ["0", "2"],
}
MIXED = {
    "bert": {"value": {"A_B": "vector", "r": 1}, "layer.1.intermediate.dense": {"A": "none", "D_E": "vector"}},
    "llama": {"v_proj": {"A": "constant", "B": "lora", "r": 3}, "down_proj": {"A_B": "vector"}},
    "gpt2": {"c_fc": {"A": "vector", "E": "none"}},
    "mlp": {"2": {"A_B": "vector"}},
}
ARCHITECTURES = list(TARGETS)


def config(architecture: str = "bert", **options: Any) -> GLoraConfig:
    """Different paths and ranks in different layers."""
    defaults = {"r": 2, "target_modules": TARGETS[architecture], "path_pattern": MIXED[architecture]}
    return GLoraConfig(**{**defaults, **options})


def glora_layers(model: nn.Module) -> dict[str, GLoraLinear]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, GLoraLinear)
    }


def same_weights(now: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> bool:
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_printed_count_is_the_sum_over_the_layers_paths(architecture, make_model, capsys):
    model = get_peft_model(make_model(architecture), config(architecture))
    layers = glora_layers(model)
    expected = sum(layer.paths["default"].params(layer.in_features, layer.out_features) for layer in layers.values())
    model.print_trainable_parameters()
    assert f"trainable params: {expected:,} ||" in capsys.readouterr().out
    assert model.get_nb_trainable_parameters()[0] == expected
    assert all("glora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_every_layer_gets_the_paths_of_its_pattern(make_model):
    model = get_peft_model(make_model("bert"), config())
    paths = {name: layer.paths["default"] for name, layer in glora_layers(model).items()}
    assert len(paths) == 6
    full = LayerPaths("lora", "lora", "lora", "constant", "constant", r=2)
    for index in (0, 1):
        prefix = f"bert.encoder.layer.{index}."
        assert paths[prefix + "attention.self.query"] == full
        assert paths[prefix + "attention.self.value"] == LayerPaths(
            "vector", "vector", "lora", "constant", "constant", r=1
        )
    assert paths["bert.encoder.layer.0.intermediate.dense"] == full
    assert paths["bert.encoder.layer.1.intermediate.dense"] == LayerPaths(
        "none", "lora", "lora", "vector", "vector", r=2
    )


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
def test_a_new_adapter_changes_nothing_unless_its_weights_are_drawn(architecture, make_model, logits):
    expected = logits(make_model(architecture))
    started = get_peft_model(make_model(architecture), config(architecture))
    close(logits(started), expected, 1e-6)
    drawn = get_peft_model(make_model(architecture), config(architecture, init_weights=False))
    assert not torch.allclose(logits(drawn), expected, atol=1e-6)


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


@pytest.fixture
def two_adapters(make_model, randomize):
    """``first`` on three layers, ``second`` on other layers too, of other kinds."""
    model = get_peft_model(make_model("bert").double(), config(), adapter_name="first")
    second = config(target_modules=["query", "key"], config_A_B="vector", config_C="vector", config_D_E="vector")
    model.add_adapter("second", second)
    return randomize(randomize(model, 1, "first"), 2, "second").eval()


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


def test_a_broken_adapter_is_refused_by_a_safe_merge_and_the_base_can_be_had_again(make_model, randomize, weights):
    base = make_model("bert")
    before = weights(base)
    model = randomize(get_peft_model(base, config()))
    list(glora_layers(model).values())[3].glora_B["default"]["Xd"].data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights\. The adapter default"):
        model.merge_adapter(safe_merge=True)
    model.unmerge_adapter()
    assert same_weights(weights(model), before)


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


def test_a_fresh_process_that_imports_the_package_loads_the_same_logits(fresh_process):
    close(torch.tensor(fresh_process["logits"]), fresh_process["expected"], 1e-6)


def test_a_fresh_process_with_peft_alone_refuses_the_adapter_by_its_name(fresh_process):
    assert fresh_process["error"] == ["KeyError", "'GLORA_PATHS'"]


def test_another_type_of_layer_is_refused_by_the_modules_name(make_model):
    with pytest.raises(UserError) as error:
        get_peft_model(make_model("bert"), config(target_modules=["word_embeddings"], path_pattern={}))
    assert "bert.embeddings.word_embeddings" in str(error.value)
    assert "'Embedding'" in str(error.value)


def test_all_linear_adapts_every_linear_layer_but_the_head(make_model):
    model = get_peft_model(make_model("bert"), config(target_modules="all-linear", task_type="SEQ_CLS"))
    wanted = {name for name, m in make_model("bert").named_modules() if isinstance(m, nn.Linear)} - {"classifier"}
    assert set(glora_layers(model)) == wanted
    model = get_peft_model(make_model("gpt2"), config("gpt2", target_modules="all-linear"))
    assert set(glora_layers(model)) == {n for n, m in make_model("gpt2").named_modules() if isinstance(m, Conv1D)}


def test_excluded_modules_stay_as_they_are(make_model):
    model = get_peft_model(make_model("bert"), config(exclude_modules=["layer.0.attention.self.query", "value"]))
    assert set(glora_layers(model)) == {
        "bert.encoder.layer.1.attention.self.query",
        "bert.encoder.layer.0.intermediate.dense",
        "bert.encoder.layer.1.intermediate.dense",
    }


@pytest.mark.parametrize("pattern", [None, "layer", ["layer"]])
@pytest.mark.parametrize(("indexes", "found"), [([1], {1}), (1, {1}), (0, {0}), ([0, 1], {0, 1})])
def test_layers_to_transform_picks_layers_by_index(pattern, indexes, found, make_model):
    model = get_peft_model(make_model("bert"), config(layers_to_transform=indexes, layers_pattern=pattern))
    assert {int(name.split(".")[3]) for name in glora_layers(model)} == found
    assert len(glora_layers(model)) == 3 * len(found)


def test_without_target_modules_the_architectures_default_is_taken(make_model):
    model = get_peft_model(make_model("llama"), GLoraConfig(task_type="CAUSAL_LM"))
    assert {name.rpartition(".")[2] for name in glora_layers(model)} == {"q_proj", "v_proj"}


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


def test_injected_into_a_model_it_computes_the_same_as_a_peft_model(make_model, randomize, logits):
    peft_model = randomize(get_peft_model(make_model("bert"), config()))
    injected = inject_adapter_in_model(config(), make_model("bert"))
    assert type(injected) is type(make_model("bert"))
    keys = {name.removeprefix("base_model.model."): v for name, v in peft_model.state_dict().items()}
    injected.load_state_dict(keys)
    assert torch.equal(logits(injected), logits(peft_model))


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_without_a_bias_have_no_bias_paths(architecture, make_model):
    model = get_peft_model(make_model(architecture), config(architecture))
    for name, layer in glora_layers(model).items():
        has_bias = getattr(make_model(architecture).get_submodule(name), "bias", None) is not None
        if not has_bias:
            assert set(layer.path_tensors("default")) <= {"A", "B"}
    assert any(layer.paths["default"].C != "none" for layer in glora_layers(model).values()) == (
        architecture != "llama"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_gets_float32_adapters_that_save_and_load(dtype, make_model, randomize, logits, tmp_path):
    model = randomize(get_peft_model(make_model("bert").to(dtype), config()))
    adapters = [p for name, p in model.named_parameters() if "glora_" in name]
    assert {p.dtype for p in adapters} == {torch.float32}
    assert logits(model).dtype == dtype
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(make_model("bert").to(dtype), tmp_path)), logits(model))


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


def test_the_files_of_an_adapter_hold_only_the_adapter(make_model, tmp_path):
    from safetensors.torch import load_file

    model = get_peft_model(make_model("bert"), config())
    model.save_pretrained(tmp_path)
    saved = load_file(Path(tmp_path) / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == model.get_nb_trainable_parameters()[0]


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


def test_a_trained_bias_is_saved_as_it_was_trained_also_while_merged(make_model, randomize, logits, tmp_path):
    model = randomize(get_peft_model(make_model("bert").double(), config(bias="glora_only")))
    for name, parameter in model.named_parameters():
        if name.endswith("base_layer.bias"):
            parameter.data += 1
    expected = logits(model)
    model.merge_adapter()
    model.save_pretrained(tmp_path)
    close(logits(PeftModel.from_pretrained(make_model("bert").double(), tmp_path)), expected)


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
