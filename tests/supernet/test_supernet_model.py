from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from glora_search.errors import UserError
from glora_search.space.layers import Genome
from glora_search.space.schema import SearchSpace
from glora_search.supernet import SupernetConfig
from glora_search.supernet.layer import SHARING
from glora_search.tuners.glora import GLoraConfig

TASKS = {"bert": "SEQ_CLS", "llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM"}
SPACES = [
    ("glora", "bert"),
    ("glora-paper", "bert"),
    ("glora-ranks", "bert"),
    ("lora-ranks", "bert"),
    ("odd", "bert"),
    ("glora-paper", "llama"),
    ("glora-paper", "gpt2"),
]


@pytest.fixture(params=SHARING)
def make_supernet(request, make_model, bind, randomize):
    """``make_supernet(space, architecture)``: in float64, its weights and its head drawn at random."""

    def make(space: str = "glora-paper", architecture: str = "bert", *, seed: int | None = 0) -> PeftModel:
        base = make_model(architecture).double()
        config = SupernetConfig(space=bind(space, architecture), sharing=request.param, task_type=TASKS[architecture])
        model = get_peft_model(base, config)
        return (model if seed is None else randomize(model, seed)).eval()

    return make


def genomes(model: nn.Module, count: int = 3) -> list[Genome]:
    drawn = [model.space.sample(np.random.default_rng(seed)) for seed in range(count)]
    return [*drawn, model.space.smallest, model.space.largest]


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("space", "architecture"), SPACES)
def test_a_subnet_computes_what_its_config_with_its_weights_computes(
    space, architecture, make_supernet, make_model, logits
):
    supernet = make_supernet(space, architecture)
    base_logits = logits(make_model(architecture).double())
    for genome in genomes(supernet):
        supernet.activate(genome)
        expected = logits(supernet)
        assert not torch.allclose(expected, base_logits) or supernet.space.params(genome) == 0
        config, weights = supernet.subnet_config(genome), supernet.subnet_state_dict(genome)
        subnet = get_peft_model(make_model(architecture).double(), config).eval()
        assert weights.keys() == get_peft_model_state_dict(subnet).keys()
        assert not set_peft_model_state_dict(subnet, weights).unexpected_keys
        close(logits(subnet), expected)


@pytest.mark.parametrize(("space", "architecture"), SPACES)
def test_folded_into_the_base_weights_a_subnet_computes_the_same_and_leaves_no_trace(
    space, architecture, make_supernet, logits, weights
):
    supernet = make_supernet(space, architecture)
    before = weights(supernet)
    for genome in genomes(supernet):
        supernet.activate(genome)
        expected = logits(supernet)
        supernet.activate(supernet.space.largest)
        largest = logits(supernet)
        with supernet.folded(genome):
            assert supernet.active_genome == genome
            assert all(layer.merged for layer in supernet.layers().values())
            close(logits(supernet), expected)
        assert not any(layer.merged for layer in supernet.layers().values())
        assert all(torch.equal(value, before[name]) for name, value in weights(supernet).items())
        assert torch.equal(logits(supernet), largest)


def test_folding_leaves_no_trace_when_the_block_fails(make_supernet, weights):
    supernet = make_supernet()
    before, (first, second, *_) = weights(supernet), genomes(supernet)
    supernet.activate(first)
    with pytest.raises(RuntimeError, match="in the block"), supernet.folded(second):
        raise RuntimeError("in the block")
    assert supernet.active_genome == first
    assert all(torch.equal(value, before[name]) for name, value in weights(supernet).items())


def test_folding_in_inference_mode_leaves_memory_that_any_mode_can_use(make_supernet, logits):
    supernet = make_supernet()
    first, second, *_ = genomes(supernet)
    with torch.no_grad(), supernet.folded(second):
        expected = logits(supernet)
    supernet.train().eval()  # drops the memory
    with torch.inference_mode(), supernet.folded(first):
        pass
    with torch.no_grad(), supernet.folded(second):
        close(logits(supernet), expected)


def test_folding_uses_the_same_memory_again_and_training_frees_it(make_supernet):
    supernet = make_supernet()
    layer = next(iter(supernet.layers().values()))

    def where(number: int) -> int:
        with supernet.folded(genomes(supernet)[number]):
            return layer.base_layer.weight.data_ptr()

    own = layer.base_layer.weight.data_ptr()
    assert where(-1) == where(-1) == layer._spare.data_ptr() != own
    supernet.eval()
    assert layer._spare is not None
    supernet.train()
    assert layer._spare is None
    with supernet.folded(supernet.space.largest):
        held = layer.base_layer.weight.clone()
        supernet.train()
        torch.testing.assert_close(layer.base_layer.weight.data, held, rtol=0, atol=0)
    assert layer.base_layer.weight.data_ptr() == own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folding_leaves_no_trace_in_lower_precision(dtype, make_model, bind, randomize, logits, weights):
    config = SupernetConfig(space=bind("glora-paper"), task_type="SEQ_CLS")
    supernet = randomize(get_peft_model(make_model("bert").to(dtype), config)).eval()
    before = weights(supernet)
    with supernet.folded(supernet.space.sample(np.random.default_rng(0))):
        logits(supernet)
    assert all(torch.equal(value, before[name]) for name, value in weights(supernet).items())


@pytest.mark.parametrize(("space", "architecture"), SPACES)
def test_a_subnets_parameters_are_those_that_the_space_counts(space, architecture, make_supernet, make_model):
    supernet = make_supernet(space, architecture)
    for genome in genomes(supernet):
        weights = supernet.subnet_state_dict(genome)
        adapter = sum(value.numel() for name, value in weights.items() if "glora_" in name)
        assert adapter == supernet.space.params(genome)
        model = get_peft_model(make_model(architecture), supernet.subnet_config(genome))
        assert adapter == sum(p.numel() for name, p in model.named_parameters() if "glora_" in name)


def test_a_subnets_weights_are_copies(make_supernet):
    supernet = make_supernet()
    weights = supernet.subnet_state_dict(supernet.space.largest)
    before = {name: p.detach().clone() for name, p in supernet.named_parameters()}
    for value in weights.values():
        value.fill_(7)
    assert all(torch.equal(p, before[name]) for name, p in supernet.named_parameters())
    assert not any(value.requires_grad for value in weights.values())


@pytest.mark.parametrize(("space", "architecture"), SPACES)
def test_a_subnet_saved_as_safetensors_loads_as_an_adapter(
    space, architecture, make_supernet, make_model, logits, tmp_path
):
    supernet = make_supernet(space, architecture)
    genome = genomes(supernet)[0]
    supernet.activate(genome)
    supernet.subnet_config(genome).save_pretrained(tmp_path)
    save_file(supernet.subnet_state_dict(genome), tmp_path / "adapter_model.safetensors")
    loaded = PeftModel.from_pretrained(make_model(architecture).double(), tmp_path)
    assert type(loaded.peft_config["default"]) is GLoraConfig
    close(logits(loaded), logits(supernet))
    merged = loaded.merge_and_unload()
    assert type(merged) is type(make_model(architecture))
    close(logits(merged), logits(supernet))


def test_the_config_of_a_subnet_inherits_the_task_and_the_head(make_supernet):
    supernet = make_supernet()
    config = supernet.subnet_config(supernet.space.largest)
    assert config.task_type == "SEQ_CLS"
    assert "classifier" in config.modules_to_save
    assert supernet.subnet_config(supernet.space.largest, modules_to_save=["x"]).modules_to_save == ["x"]


def test_the_head_is_trained_and_is_no_part_of_a_subnets_size(make_supernet):
    supernet = make_supernet()
    trained = {name for name, p in supernet.named_parameters() if p.requires_grad and "supernet_" not in name}
    assert trained == {f"base_model.model.classifier.modules_to_save.default.{n}" for n in ("weight", "bias")}
    weights = supernet.subnet_state_dict(supernet.space.smallest)
    assert set(weights) == {f"base_model.model.classifier.{n}" for n in ("weight", "bias")}
    assert supernet.space.params(supernet.space.smallest) == 0


@pytest.mark.parametrize(("space", "architecture"), SPACES)
def test_a_new_supernet_is_the_base_model_for_every_genome(space, architecture, make_supernet, make_model, logits):
    supernet = make_supernet(space, architecture, seed=None)
    expected = logits(make_model(architecture).double())
    for genome in genomes(supernet):
        supernet.activate(genome)
        close(logits(supernet), expected)


def test_a_new_supernet_has_its_largest_subnet_active(make_supernet, logits):
    supernet = make_supernet()
    assert supernet.active_genome == supernet.space.largest
    before = logits(supernet)
    supernet.activate(supernet.space.largest)
    assert torch.equal(logits(supernet), before)


def test_switching_genomes_and_back_gives_the_same_logits(make_supernet, logits):
    supernet = make_supernet()
    outputs = []
    for genome in [*genomes(supernet), *genomes(supernet)]:
        supernet.activate(genome)
        assert supernet.active_genome == genome
        outputs.append(logits(supernet))
    half = len(outputs) // 2
    assert all(torch.equal(first, again) for first, again in zip(outputs[:half], outputs[half:], strict=True))
    for i in range(half):
        assert not any(torch.allclose(outputs[i], other) for other in outputs[i + 1 : half])


def test_a_genome_of_another_space_is_refused_and_the_active_one_stays(make_supernet, bind, logits):
    supernet = make_supernet()
    before, active = logits(supernet), supernet.active_genome
    name = supernet.space.genes[0].name
    for wrong in (bind("glora").largest, {**active, name: "dense"}, {**active, "x.A": "none"}, {}):
        for refusing in (supernet.activate, supernet.subnet_config, lambda genome: supernet.folded(genome).__enter__()):
            with pytest.raises(UserError, match="genome"):
                refusing(wrong)
        assert supernet.active_genome == active
        assert torch.equal(logits(supernet), before)


def test_the_active_genome_is_a_copy(make_supernet):
    supernet = make_supernet()
    genome = dict(supernet.space.largest)
    supernet.activate(genome)
    genome.clear()
    assert supernet.active_genome == supernet.space.largest


def uniform(supernet: PeftModel, **kinds: Any) -> Genome:
    """The genome with these kinds (and rank) in every layer, and none elsewhere."""
    return {
        gene.name: kinds.get(gene.path, gene.choices[0] if gene.path == "r" else "none")
        for gene in supernet.space.genes
    }


def test_training_a_subnet_changes_those_that_share_a_kind_and_no_other(make_supernet, logits):
    supernet = make_supernet("glora-ranks")
    trained = uniform(supernet, B="lora", r=2)
    sharing = [uniform(supernet, B="lora", r=r) for r in (1, 2, 4)] + [uniform(supernet, A="vector", B="lora", r=1)]
    apart = [uniform(supernet, A="vector"), uniform(supernet, D="vector", E="vector"), uniform(supernet)]

    def outputs(subnets: list[Genome]) -> list[torch.Tensor]:
        found = []
        for genome in subnets:
            supernet.activate(genome)
            found.append(logits(supernet))
        return found

    before_sharing, before_apart = outputs(sharing), outputs(apart)
    supernet.activate(trained)
    adapter = {name: p for name, p in supernet.named_parameters() if "supernet_" in name}
    supernet(input_ids=torch.arange(1, 13).reshape(2, 6)).logits.square().sum().backward()
    used = {name for name, p in adapter.items() if p.grad is not None}
    assert used == {name for name in adapter if "supernet_B" in name}
    torch.optim.AdamW(adapter.values(), lr=0.1, weight_decay=0.1).step()
    for now, before in zip(outputs(sharing), before_sharing, strict=True):
        assert not torch.allclose(now, before)
    for now, before in zip(outputs(apart), before_apart, strict=True):
        assert torch.equal(now, before)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_gives_the_subnets_gradients(make_model, bind, randomize):
    gradients = []
    for checkpointing in (False, True):
        base = make_model("llama")
        if checkpointing:
            base.gradient_checkpointing_enable()
        model = randomize(get_peft_model(base, SupernetConfig(space=bind("glora-paper", "llama"))))
        model.activate(model.space.sample(np.random.default_rng(1)))
        model.train()
        model(input_ids=torch.arange(1, 13).reshape(2, 6)).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, 1e-5)


def test_a_supernet_saved_and_loaded_again_gives_the_same_subnets(make_supernet, make_model, logits, tmp_path):
    supernet = make_supernet("odd")
    supernet.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model("bert").double(), tmp_path)
    assert loaded.space == supernet.space
    assert loaded.peft_config["default"].sharing == supernet.peft_config["default"].sharing
    for genome in genomes(supernet):
        supernet.activate(genome)
        loaded.activate(genome)
        assert torch.equal(logits(loaded), logits(supernet))
        ours, theirs = supernet.subnet_state_dict(genome), loaded.subnet_state_dict(genome)
        assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "GLORA_SUPERNET"
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == sum(p.requires_grad for p in supernet.parameters())


def test_a_model_holds_one_supernet_at_a_time(make_supernet, bind, logits):
    supernet = make_supernet()
    before = logits(supernet)
    with pytest.raises(ValueError, match="one supernet at a time"):
        supernet.add_adapter("second", SupernetConfig(space=bind("glora")))
    assert list(supernet.peft_config) == ["default"]
    assert torch.equal(logits(supernet), before)


def test_a_space_is_bound_to_the_model_when_the_supernet_is_made(make_model, bind):
    for space in ("glora", SearchSpace.load("glora")):
        model = get_peft_model(make_model("bert"), SupernetConfig(space=space))
        assert model.space == bind("glora")
        assert set(model.layers()) == {layer.name for layer in bind("glora").layers}


@pytest.mark.parametrize("saved", [["intermediate.dense"], ["layer.1"], ["attention.self.query", "output.dense"]])
@pytest.mark.parametrize("as_it_is_given", ["a name", "a space", "a bound space"])
def test_a_module_of_the_space_that_is_trained_as_it_is_is_not_adapted(
    saved, as_it_is_given, make_model, bind, randomize, logits
):
    space = {"a name": "glora", "a space": SearchSpace.load("glora"), "a bound space": bind("glora")}[as_it_is_given]
    config = SupernetConfig(space=space, modules_to_save=list(saved), task_type="SEQ_CLS")
    supernet = randomize(get_peft_model(make_model("bert").double(), config)).eval()
    left = {layer.name for layer in bind("glora").layers if not any(f".{name}." in f".{layer.name}." for name in saved)}
    assert 0 < len(left) < len(bind("glora").layers)
    assert set(supernet.layers()) == {layer.name for layer in supernet.space.layers} == left
    trained = {name for name, p in supernet.named_parameters() if p.requires_grad and "supernet_" not in name}
    for name in (*saved, "classifier"):
        assert any(f".{name}.modules_to_save.default." in parameter for parameter in trained)
    genome = supernet.space.sample(np.random.default_rng(0))
    supernet.activate(genome)
    subnet = get_peft_model(make_model("bert").double(), supernet.subnet_config(genome)).eval()
    assert not set_peft_model_state_dict(subnet, supernet.subnet_state_dict(genome)).unexpected_keys
    close(logits(subnet), logits(supernet))


def test_a_supernet_with_a_trained_module_of_the_space_saves_and_loads(make_model, randomize, logits, tmp_path):
    config = SupernetConfig(space="glora", modules_to_save=["intermediate.dense"])
    supernet = randomize(get_peft_model(make_model("bert"), config)).eval()
    supernet.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model("bert"), tmp_path)
    assert loaded.space == supernet.space
    assert torch.equal(logits(loaded), logits(supernet))


def test_a_supernet_of_which_all_layers_are_trained_as_they_are_is_refused(make_model, bind):
    config = SupernetConfig(space=bind("glora"), modules_to_save=["encoder"])
    with pytest.raises(UserError, match=r"modules_to_save: got \['encoder'\]; allowed: modules that leave the space"):
        get_peft_model(make_model("bert"), config)


def test_a_module_that_ends_like_a_layer_of_the_space_stays_as_it_is():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))
    space = SearchSpace(targets="0", paths={"B": ["lora", "none"]}).bind(model)
    assert [layer.name for layer in space.layers] == ["0"]
    assert set(get_peft_model(model, SupernetConfig(space=space)).layers()) == {"0"}


def test_an_unknown_sharing_is_refused():
    with pytest.raises(UserError, match="sharing: got 'tied'; allowed: one of 'separate', 'nested'"):
        SupernetConfig(space="glora", sharing="tied")


@pytest.mark.parametrize("space", [None, 3, ["glora"]])
def test_a_supernet_without_a_space_is_refused(space):
    with pytest.raises(UserError) as error:
        SupernetConfig(space=space)
    assert str(error.value).startswith(f"space: got {space!r}; allowed: a SearchSpace")


def test_a_supernet_of_a_missing_space_is_refused_with_the_shipped_names():
    with pytest.raises(UserError, match=r"got 'nowhere'; allowed: .*glora-paper"):
        SupernetConfig(space="nowhere")


def test_unloaded_it_is_the_base_model_bit_for_bit(make_supernet, make_model, weights):
    plain = weights(make_model("bert").double())
    unloaded = make_supernet().unload()
    assert type(unloaded) is type(make_model("bert"))
    now = weights(unloaded)
    assert all(torch.equal(now[name], value) for name, value in plain.items() if not name.startswith("classifier"))
