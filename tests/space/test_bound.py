from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from glora_search import GLoraConfig, GLoraLinear, SupernetConfig
from glora_search.errors import UserError
from glora_search.files.shipped import shipped_folder
from glora_search.space.bound import BoundSpace
from glora_search.space.configs import paths_to_config
from glora_search.space.layers import Genome
from glora_search.space.schema import Choices, SearchSpace
from glora_search.vocabulary import LayerPaths

SHIPPED = sorted(file.stem for file in shipped_folder("search_spaces").glob("*.yaml"))
ARCHITECTURES = ["bert", "llama", "gpt2"]
LAYERS = {"bert": 12, "llama": 14, "gpt2": 8}

SPACES = [*itertools.product(SHIPPED, ARCHITECTURES), ("odd", "bert")]
"""Every shipped space on every architecture, and the one of conftest.py that holds whatever a space may hold."""


def sample(space: BoundSpace, seed: int = 0) -> Genome:
    return space.sample(np.random.default_rng(seed))


def built_paths(model: nn.Module) -> dict[str, LayerPaths]:
    return {
        name.removeprefix("base_model.model."): module.paths["default"]
        for name, module in model.named_modules()
        if isinstance(module, GLoraLinear)
    }


def adapter_parameters(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if "glora_" in name)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_shipped_space_loads_and_binds_to_every_architecture(name, architecture, bind, make_model):
    space, model = bind(name, architecture), make_model(architecture)
    assert space.name == name
    assert len(space.layers) == LAYERS[architecture]
    assert all("pooler" not in layer.name for layer in space.layers)
    for layer in space.layers:
        module = model.get_submodule(layer.name)
        assert layer.has_bias == (module.bias is not None)
        shape = (layer.in_features, layer.out_features)
        assert tuple(module.weight.shape) == (shape if architecture == "gpt2" else shape[::-1])


@pytest.mark.parametrize(
    ("name", "architecture", "a_layer"),
    [
        ("glora", "bert", 36),
        ("glora-paper", "bert", 432),
        ("glora", "gpt2", 36),
        ("glora-paper", "gpt2", 432),
        ("glora", "llama", 4),
        ("glora-paper", "llama", 16),
        ("lora-ranks", "llama", 5),
        ("glora-ranks", "bert", 2**4 * 4),
        ("glora-ranks", "llama", 2**2 * 4),
    ],
)
def test_the_number_of_genomes_is_the_choices_a_layer_to_the_power_of_the_layers(name, architecture, a_layer, bind):
    assert bind(name, architecture).count() == a_layer ** LAYERS[architecture]


@pytest.mark.parametrize(("name", "architecture"), SPACES)
def test_a_genomes_parameters_are_those_of_the_model_that_its_config_makes(name, architecture, bind, make_model):
    space = bind(name, architecture)
    for genome in (sample(space, 0), sample(space, 1), space.smallest, space.largest):
        model = get_peft_model(make_model(architecture), space.to_config(genome))
        assert adapter_parameters(model) == space.params(genome)
        wanted = {n: p for n, p in space.layer_paths(genome).items() if not p.empty}
        assert {n: p for n, p in built_paths(model).items() if not p.empty} == wanted


def test_what_is_left_alone_is_left_alone_even_if_its_name_ends_like_one_that_is_adapted():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))
    space = SearchSpace(targets=["0"], paths={"B": ["lora", "none"]}).bind(model)
    assert [layer.name for layer in space.layers] == ["0", "1.0"]
    genome: Genome = {"0.B": "lora", "1.0.B": "none"}
    assert space.from_config(space.to_config(genome)) == genome
    adapted = get_peft_model(model, space.to_config(genome))
    assert adapter_parameters(adapted) == space.params(genome) == 4 * (3 + 3)


@pytest.mark.parametrize(("name", "architecture"), SPACES)
@given(seed=st.integers(0, 2**32))
def test_a_genome_comes_back_from_its_config_as_the_same_subnet(name, architecture, seed, bind):
    space = bind(name, architecture)
    genome = sample(space, seed)
    back = space.from_config(space.to_config(genome))
    space.check(back)
    assert space.key(back) == space.key(genome)
    assert space.params(back) == space.params(genome)


def test_a_config_comes_back_after_peft_has_used_and_saved_it(bind, make_model, tmp_path):
    # Many targets: peft shortens the list of names when it injects them.
    space = bind("glora-paper")
    genome = sample(space)
    model = get_peft_model(make_model("bert"), space.to_config(genome))
    model.save_pretrained(tmp_path)
    assert space.key(space.from_config(GLoraConfig.from_pretrained(tmp_path))) == space.key(genome)


def test_a_uniform_config_by_hand_is_a_genome(bind):
    space = bind("glora")
    config = GLoraConfig(target_modules=["query", "value"], config_A_B="vector", config_C="none", config_D_E="none")
    paths = space.layer_paths(space.from_config(config))
    for name, own in paths.items():
        adapted = name.endswith(("query", "value"))
        assert own == (LayerPaths(A="vector", B="vector") if adapted else LayerPaths())


def test_a_config_that_the_space_does_not_hold_is_refused_by_the_layers_name(bind):
    with pytest.raises(UserError) as error:
        bind("glora").from_config(GLoraConfig(target_modules=["key"], r=3))
    assert "bert.encoder.layer.0.attention.self.key has A=lora(r=3)" in str(error.value)


def test_a_config_carries_further_options(bind):
    config = bind("glora").to_config(bind("glora").largest, task_type="SEQ_CLS", modules_to_save=["classifier"])
    assert (config.task_type, config.modules_to_save) == ("SEQ_CLS", ["classifier"])


def test_different_genomes_of_the_same_function_have_the_same_key(bind):
    space = bind("glora-ranks")
    plain: Genome = {gene.name: "none" if gene.path != "r" else 1 for gene in space.genes}
    other = {gene.name: "none" if gene.path != "r" else 8 for gene in space.genes}
    assert plain != other
    assert space.key(plain) == space.key(other)
    assert space.key(plain) != space.key({**plain, space.genes[0].name: "vector"})


def test_a_genome_of_nothing_is_a_config_that_adapts_nothing(bind, make_model):
    space = bind("lora-ranks")
    genome: Genome = {gene.name: 0 for gene in space.genes}
    assert space.params(genome) == 0
    model = get_peft_model(make_model("bert"), space.to_config(genome))
    assert adapter_parameters(model) == 0
    assert space.from_config(space.to_config(genome)) == genome


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda g, n: {**g, "elsewhere.A_B": "lora"}, ["elsewhere.A_B", "a gene of this space"]),
        (lambda g, n: {**g, n: "dense"}, ["'dense'", "'lora', 'vector', 'constant', 'none'", "{n}"]),
        (lambda g, n: {**g, n: None}, ["None", "'lora', 'vector', 'constant', 'none'", "{n}"]),
        (lambda g, n: {k: v for k, v in g.items() if k != n}, ["no value for {n}", "all 36 genes"]),
        (lambda g, n: {}, ["no value for {n}"]),
    ],
)
def test_a_genome_that_is_not_of_the_space_is_refused_with_gene_value_and_choices(change, parts, bind):
    space = bind("glora")
    name = space.genes[0].name
    genome = change(space.largest, name)
    for refusing in (space.check, space.to_config):
        with pytest.raises(UserError) as error:
            refusing(genome)
        for part in parts:
            assert part.format(n=name) in str(error.value)


def test_a_rank_gene_takes_no_bool(bind):
    space = bind("lora-ranks")
    name = space.genes[0].name
    with pytest.raises(UserError, match="got True"):
        space.check({**space.largest, name: True})


def test_an_override_changes_the_layers_of_its_pattern_only(bind):
    space = bind("odd")
    layers = {layer.name: layer.settings for layer in space.layers}
    prefix = "bert.encoder.layer."
    plain = {
        "A": ("vector", "lora", "none"),
        "B": ("lora",),
        "C": ("vector", "none"),
        "D_E": ("constant", "vector"),
        "r": (0, 1, 3),
    }
    assert layers[prefix + "0.attention.self.query"] == plain
    assert layers[prefix + "1.attention.self.query"] == plain
    assert layers[prefix + "0.output.dense"] == plain
    tied = {"A_B": ("lora", "constant"), "C": ("vector", "none"), "D_E": ("constant", "vector"), "r": (2,)}
    assert layers[prefix + "0.attention.self.value"] == layers[prefix + "1.attention.self.value"] == tied
    assert layers[prefix + "1.output.dense"] == {**plain, "D_E": ("none",), "r": (4, 5)}


def test_an_override_of_one_path_of_a_tied_pair_leaves_the_others_kinds(bind):
    space = SearchSpace(
        paths={"A_B": ["lora", "none"], "D_E": ["vector", "none"]},
        overrides={"query": {"paths": {"A": ["vector"], "E": ["none"]}}},
    )
    paths, ranks = space.choices_for("layer.0.query")
    assert paths == {"A": ["vector"], "B": ["lora", "none"], "D": ["vector", "none"], "E": ["none"]}
    assert ranks == [4]
    assert space.choices_for("layer.0.key") == (space.paths, [4])


def test_an_overrides_exact_name_comes_before_its_patterns():
    space = SearchSpace(paths={"B": ["lora"]}, overrides={"query": {"ranks": [1]}, "layer.0.query": {"ranks": [2]}})
    assert space.choices_for("layer.0.query")[1] == [2]
    assert space.choices_for("layer.1.query")[1] == [1]
    assert space.choices_for("layer.1.value")[1] == [4]


def test_settings_with_one_choice_are_no_genes(bind):
    space = bind("odd")
    assert {gene.path for gene in space.genes if "self.query" in gene.layer} == {"A", "C", "D_E", "r"}
    assert {gene.path for gene in space.genes if "self.value" in gene.layer} == {"A_B", "C", "D_E"}
    assert all(len(gene.choices) > 1 for gene in space.genes)


def test_rank_0_turns_a_low_rank_path_off(bind):
    space = bind("lora-ranks")
    genome = {**space.largest, space.genes[0].name: 0}
    assert space.layer_paths(genome)[space.layers[0].name] == LayerPaths()
    assert space.params(space.largest) - space.params(genome) == 8 * (16 + 16)


def test_a_bound_space_comes_back_from_plain_data(bind):
    space = bind("odd")
    data = yaml.safe_load(yaml.safe_dump(space.to_dict()))
    assert BoundSpace.from_dict(data) == space
    assert BoundSpace.from_dict(data).genes == space.genes


def lora_parameters(model: nn.Module, modules: list[str], rank: int) -> int:
    lora = get_peft_model(model, peft.LoraConfig(r=rank, target_modules=modules))
    return sum(p.numel() for name, p in lora.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "ranks"), [("glora-paper", [4]), ("glora-ranks", [1, 2, 4, 8]), ("lora-ranks", [1, 2, 4, 8])]
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_the_uniform_lora_of_a_rank_costs_what_pefts_lora_of_that_rank_costs(
    name, ranks, architecture, bind, make_model
):
    space = bind(name, architecture)
    methods = space.uniform_methods()
    assert {label for label in methods if label.startswith("LoRA")} == {
        f"LoRA r={rank}{where}" for rank in ranks for where in ("", " on query+value")
    }
    everything = [layer.name for layer in space.layers]
    attention = [layer for layer in everything if layer.endswith(("query", "value", "q_proj", "v_proj", "c_attn"))]
    assert len(attention) == (2 if architecture == "gpt2" else 4)
    for rank in ranks:
        for label, modules in ((f"LoRA r={rank}", everything), (f"LoRA r={rank} on query+value", attention)):
            assert space.params(methods[label]) == lora_parameters(make_model(architecture), modules, rank)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ia3_and_bitfit_are_one_vector_a_layer(architecture, bind):
    space = bind("glora-paper", architecture)
    methods = space.uniform_methods()
    assert set(space.layer_paths(methods["(IA)3"]).values()) == {LayerPaths(A="vector")}
    assert ("BitFit" in methods) == (architecture != "llama")
    if "BitFit" in methods:
        assert set(space.layer_paths(methods["BitFit"]).values()) == {LayerPaths(E="vector")}


def test_where_a_path_is_tied_the_uniform_method_says_so_and_sets_the_pair(bind):
    methods = bind("glora").uniform_methods()
    assert set(methods) == {
        label + where
        for label in ("LoRA as A_B=lora r=4", "(IA)3 as A_B=vector", "BitFit as D_E=vector")
        for where in ("", " on query+value")
    }
    pairs = set(bind("glora").layer_paths(methods["LoRA as A_B=lora r=4"]).values())
    assert pairs == {LayerPaths(A="lora", B="lora", r=4)}


@pytest.mark.parametrize(("name", "architecture"), SPACES)
def test_every_uniform_method_is_a_genome_of_one_path_at_most(name, architecture, bind):
    space = bind(name, architecture)
    for genome in space.uniform_methods().values():
        space.check(genome)
        assert len(set(space.layer_paths(genome).values()) - {LayerPaths()}) == 1


def test_a_space_that_cannot_turn_its_other_paths_off_holds_no_uniform_method(bind):
    space = bind(SearchSpace(paths={"A": ["vector"], "B": ["lora", "none"], "E": ["vector"]}))
    assert space.uniform_methods() == {}


@pytest.mark.parametrize(("name", "architecture"), SPACES)
@given(seed=st.integers(0, 2**32))
def test_no_genome_is_smaller_than_the_smallest_or_larger_than_the_largest(name, architecture, seed, bind):
    space = bind(name, architecture)
    space.check(space.smallest)
    space.check(space.largest)
    assert space.params(space.smallest) <= space.params(sample(space, seed)) <= space.params(space.largest)


def test_smallest_and_largest_are_the_extremes_of_all_genomes():
    # Wide and narrow layers, where a vector is now cheaper and now dearer than a low-rank path.
    model = nn.Sequential(nn.Linear(40, 2), nn.Linear(2, 40, bias=False))
    space = SearchSpace(
        targets=["0", "1"],
        paths={"A": ["vector", "lora"], "B": ["constant", "vector"], "C": ["lora", "vector"], "E": ["vector"]},
        ranks=[1, 2],
    ).bind(model)
    choices = [[(gene.name, choice) for choice in gene.choices] for gene in space.genes]
    sizes = [space.params(dict(genome)) for genome in itertools.product(*choices)]
    assert len(sizes) == space.count() == 16 * 8
    assert space.params(space.smallest) == min(sizes)
    assert space.params(space.largest) == max(sizes)


@pytest.mark.parametrize("name", ["glora", "glora-ranks", "lora-ranks", "odd"])
@given(seed=st.integers(0, 2**32), share=st.floats(0, 1), grow=st.booleans())
def test_a_resized_genome_meets_the_budget(name, seed, share, grow, bind):
    space, rng = bind(name), np.random.default_rng(seed)
    low, high = space.params(space.smallest), space.params(space.largest)
    budget = low + int(share * (high - low))
    start = space.sample(rng)
    before = dict(start)
    result = space.resize(start, budget, rng, grow=grow)
    space.check(result)
    assert start == before
    assert space.params(result) <= budget
    if not grow and space.params(start) <= budget:
        assert result == start


def test_a_genome_that_meets_the_budget_to_the_last_parameter_stays(bind):
    space = bind("glora-ranks")
    for seed in range(10):
        genome = sample(space, seed)
        assert space.resize(genome, space.params(genome), np.random.default_rng(seed)) == genome


@pytest.mark.parametrize("name", ["glora", "glora-paper"])
def test_growing_comes_close_to_the_budget(name, bind):
    space = bind(name)
    largest = space.layer_paths(space.largest)
    largest_layer = max(layer.params(largest[layer.name]) for layer in space.layers)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        result = space.resize(space.smallest, 2000, rng, grow=True)
        assert 2000 - largest_layer < space.params(result) <= 2000


def test_shrinking_changes_no_more_than_it_has_to(bind):
    space = bind("lora-ranks")
    changed = space.resize(space.largest, space.params(space.largest) - 1, np.random.default_rng(0))
    assert sum(changed[name] != space.largest[name] for name in changed) == 1


def test_a_budget_below_the_cheapest_subnet_is_refused(bind):
    space = bind(SearchSpace(paths={"E": ["vector", "constant"]}))
    assert space.params(space.smallest) == 13
    for refusing in (
        lambda: space.check_budget(12, key="search.max_params"),
        lambda: space.resize(space.smallest, 12, np.random.default_rng(0)),
    ):
        with pytest.raises(UserError, match=r"max_params: got 12; allowed: at least 13"):
            refusing()
    space.check_budget(13)
    space.check_budget(None)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"paths": {"F": ["lora"]}}, ["paths", "'F'", "'A_B', 'D_E', 'A', 'B', 'C', 'D', 'E'"]),
        ({"paths": {"C": ["constant"]}}, ["paths.C", "'constant'", "'lora', 'vector', 'none'"]),
        ({"paths": {"A": []}}, ["paths.A", "[]", "at least one kind"]),
        ({"paths": {}}, ["paths", "{}", "at least one path"]),
        ({"ranks": [4]}, ["paths", "missing"]),
        ({"paths": {"B": ["lora"]}, "ranks": [4, -1]}, ["ranks", "[4, -1]", "ints >= 0"]),
        ({"paths": {"B": ["lora"]}, "ranks": []}, ["ranks", "[]", "ints >= 0"]),
        ({"paths": {"B": ["lora"]}, "ranks": ["many"]}, ["ranks", "'many'", "integer"]),
        ({"paths": {"B": ["lora"]}, "ranks": [2.5]}, ["ranks", "2.5", "integer"]),
        ({"paths": {"A_B": ["lora"], "B": ["none"]}}, ["paths", "'A_B'", "either A_B (tied) or A and B (free)"]),
        ({"paths": {"D": ["vector"], "D_E": ["none"]}}, ["paths", "'D_E'", "either D_E (tied) or D and E (free)"]),
        ({"paths": {"B": ["lora"]}, "rank": [4]}, ["rank", "[4]", "ranks"]),
        (
            {"paths": {"B": ["lora"]}, "overrides": {"query": {"paths": {"D": ["lora"]}}}},
            ["overrides.query.paths.D", "'lora'", "'vector', 'constant', 'none'"],
        ),
        (
            {"paths": {"B": ["lora"]}, "overrides": {"query": {"targets": ["x"]}}},
            ["overrides.query.targets", "['x']", "paths, ranks"],
        ),
        ([1, 2], ["[1, 2]", "a mapping"]),
    ],
)
def test_a_wrong_space_file_is_refused_with_file_key_value_and_what_is_allowed(content, parts, tmp_path):
    file = Path(tmp_path) / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as error:
        SearchSpace.load(file)
    assert str(error.value).startswith(f"{file}: ")
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "search_spaces/nowhere.yaml", "/nowhere/glora.yaml"])
def test_a_missing_space_file_is_refused_with_the_shipped_names(name):
    with pytest.raises(UserError) as error:
        SearchSpace.load(name)
    assert repr(name) in str(error.value)
    assert ", ".join(SHIPPED) in str(error.value)


def test_a_shipped_space_loads_by_its_name_and_by_its_path():
    assert SearchSpace.load("glora") == SearchSpace.load("search_spaces/glora.yaml")
    assert SearchSpace.load("glora").name == "glora"


def test_a_file_of_ones_own_is_called_after_its_file_unless_it_has_a_name(tmp_path):
    for content, name in (({}, "mine"), ({"name": "other"}, "other")):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"paths": {"B": ["LoRA", "none"]}, **content}))
        space = SearchSpace.load(tmp_path / "mine.yaml")
        assert space.name == name
        assert space.paths == {"B": ["lora", "none"]}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"targets": ["nothing"]}, ["space.targets", "['nothing']", "bert.encoder.layer.0.attention.self.query"]),
        ({"exclude": ".*"}, ["space.targets", "'all-linear'", "exclude is '.*'"]),
        ({"targets": ["word_embeddings"]}, ["bert.embeddings.word_embeddings", "'Embedding'", "Linear", "Conv1D"]),
    ],
)
def test_a_space_that_fits_no_layer_of_the_model_is_refused(options, parts, bind):
    with pytest.raises(UserError) as error:
        bind(SearchSpace(paths={"B": ["lora"]}, **options))
    for part in parts:
        assert part in str(error.value)


def test_targets_and_exclude_have_pefts_semantics(bind, make_model):
    options: dict[str, Any] = {"targets": r".*layer\.1\..*(query|key)", "exclude": ["self.key"]}
    space = bind(SearchSpace(paths={"B": ["lora"]}, **options))
    lora = peft.LoraConfig(target_modules=options["targets"], exclude_modules=options["exclude"])
    model = get_peft_model(make_model("bert"), lora)
    assert [layer.name for layer in space.layers] == model.targeted_module_names


def test_paths_make_a_config_of_exactly_these_paths(make_model):
    wanted = {
        "bert.encoder.layer.0.attention.self.query": LayerPaths(A="lora", E="vector", r=3),
        "bert.encoder.layer.1.attention.self.query": LayerPaths(B="lora", r=5),
        "bert.encoder.layer.1.attention.self.key": LayerPaths(),
    }
    model = get_peft_model(make_model("bert"), paths_to_config(wanted))
    assert built_paths(model) == {name: paths for name, paths in wanted.items() if not paths.empty}


SIZE = {"vocab_size": 50, "num_labels": 3}
BERT_SIZE = {**SIZE, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
CLASSIFIERS = {
    "RoBERTa": (RobertaForSequenceClassification, RobertaConfig(**BERT_SIZE, pad_token_id=0), 6),
    "ELECTRA": (ElectraForSequenceClassification, ElectraConfig(**BERT_SIZE, embedding_size=16), 6),
    "DistilBERT": (DistilBertForSequenceClassification, DistilBertConfig(**SIZE, dim=16, n_layers=1, n_heads=2), 6),
    "DeBERTa": (DebertaV2ForSequenceClassification, DebertaV2Config(**BERT_SIZE), 6),
}


@pytest.mark.parametrize(("model_cls", "config", "layers"), CLASSIFIERS.values(), ids=CLASSIFIERS.keys())
def test_a_classifier_of_several_layers_is_the_head_and_is_not_adapted(model_cls, config, layers):
    model = model_cls(config)
    space = SearchSpace.load("glora").bind(model)
    assert len(space.layers) == layers
    assert not any("classifier" in layer.name for layer in space.layers)
    assert any("query+value" in name for name in space.uniform_methods())
    supernet = get_peft_model(model, SupernetConfig(space=space, task_type="SEQ_CLS"))
    with torch.no_grad():
        assert supernet(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3)


def test_an_override_that_matches_no_layer_is_refused(make_model):
    space = SearchSpace(paths={"B": ["lora", "none"]}, overrides={"qeury": Choices(ranks=[1])})
    with pytest.raises(UserError, match="qeury"):
        space.bind(make_model("bert"))
