from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from glora_search import GLoraConfig
from glora_search.errors import UserError
from glora_search.tuners.registry import GLoraSearchType
from glora_search.vocabulary import LayerPaths

QUERY = "bert.encoder.layer.0.attention.self.query"


def paths(config: GLoraConfig, name: str = QUERY, *, has_bias: bool = True) -> LayerPaths:
    return config.paths_for(name, has_bias=has_bias)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("r", 4),
        ("target_modules", None),
        ("exclude_modules", None),
        ("layers_to_transform", None),
        ("layers_pattern", None),
        ("config_A_B", "lora"),
        ("config_C", "lora"),
        ("config_D_E", "constant"),
        ("config_A", None),
        ("config_B", None),
        ("config_D", None),
        ("config_E", None),
        ("path_pattern", {}),
        ("bias", "none"),
        ("modules_to_save", None),
        ("init_weights", True),
        ("peft_type", GLoraSearchType.GLORA_PATHS),
    ],
)
def test_the_default_of_every_option(option, value):
    assert getattr(GLoraConfig(), option) == value


def test_the_defaults_are_low_rank_weight_paths_and_constant_bias_paths():
    assert paths(GLoraConfig()) == LayerPaths("lora", "lora", "lora", "constant", "constant", r=4)


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title, str.swapcase])
def test_kinds_may_be_written_in_any_letter_case(change: Callable[[str], str]):
    config = GLoraConfig(
        config_A_B=change("LoRA"),
        config_C=change("vector"),
        config_D_E=change("constant"),
        config_B=change("none"),
        path_pattern={"value": {"A": change("Vector")}},
    )
    assert (config.config_A_B, config.config_C, config.config_D_E, config.config_B) == (
        "lora",
        "vector",
        "constant",
        "none",
    )
    assert paths(config) == LayerPaths("lora", "none", "vector", "constant", "constant", r=4)
    assert paths(config, "value").A == "vector"


def test_a_paths_own_option_wins_over_its_tied_one():
    config = GLoraConfig(config_A="vector", config_B="none", config_D="none", config_E="vector", config_C="none")
    assert paths(config) == LayerPaths(A="vector", E="vector")
    assert paths(GLoraConfig(config_A="constant")) == LayerPaths("constant", "lora", "lora", "constant", "constant", 4)


def test_a_layer_without_a_bias_has_no_bias_paths():
    assert paths(GLoraConfig(), has_bias=False) == LayerPaths("lora", "lora", r=4)


def test_a_pattern_sets_what_it_names_and_leaves_the_rest_to_the_options():
    config = GLoraConfig(r=4, config_D="vector", path_pattern={"query": {"A": "vector", "C": "none", "r": 2}})
    assert paths(config) == LayerPaths("vector", "lora", "none", "vector", "constant", r=2)
    assert paths(config, "value") == LayerPaths("lora", "lora", "lora", "vector", "constant", r=4)


def test_a_patterns_tied_setting_wins_over_the_options_of_both_paths():
    config = GLoraConfig(config_A="vector", path_pattern={"query": {"A_B": "constant", "B": "none", "D_E": "none"}})
    assert paths(config) == LayerPaths(A="constant", C="lora", r=4)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("query", QUERY, True),
        ("self.query", QUERY, True),
        (QUERY, QUERY, True),
        (r".*\.layer\.[01]\..*", QUERY, True),
        (r"layer\.0\..*", QUERY, True),
        ("query", "query", True),
        ("uery", QUERY, False),
        ("attention", QUERY, False),
        (r"layer\.1\..*", QUERY, False),
        ("query", "a.my_query", False),
    ],
)
def test_a_pattern_matches_the_end_of_a_name_from_a_dot_on_as_in_rank_pattern(pattern, name, matches):
    config = GLoraConfig(config_A_B="none", path_pattern={pattern: {"A": "vector"}})
    assert (paths(config, name).A == "vector") is matches


def test_the_first_pattern_that_matches_is_taken():
    config = GLoraConfig(path_pattern={"self.query": {"A": "vector"}, "query": {"A": "none"}})
    assert paths(config).A == "vector"
    config = GLoraConfig(path_pattern={"query": {"A": "none"}, "self.query": {"A": "vector"}})
    assert paths(config).A == "none"


def test_an_exact_name_comes_before_every_pattern():
    config = GLoraConfig(path_pattern={"query": {"A": "none"}, QUERY: {"A": "vector"}})
    assert paths(config).A == "vector"
    assert paths(config, QUERY.replace("0", "1")).A == "none"


@pytest.fixture
def full_config() -> GLoraConfig:
    return GLoraConfig(
        task_type="SEQ_CLS",
        r=3,
        target_modules=["query", "value"],
        exclude_modules=["layer.0.attention.self.query"],
        layers_to_transform=[1],
        layers_pattern="layer",
        config_A_B="Vector",
        config_C="none",
        config_D_E="vector",
        config_B="lora",
        path_pattern={"value": {"A_B": "LoRA", "r": 5}, r"layer\.1\..*": {"E": "none"}},
        bias="glora_only",
        modules_to_save=["classifier"],
        init_weights=False,
    )


@pytest.mark.parametrize("loader", [GLoraConfig, PeftConfig])
def test_saved_and_loaded_again_it_is_the_same(loader, full_config, tmp_path):
    full_config.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is GLoraConfig
    assert loaded == full_config
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "GLORA_PATHS"


def test_saving_leaves_the_config_as_it_was(full_config, tmp_path):
    before = dict(vars(full_config))
    full_config.save_pretrained(tmp_path)
    assert vars(full_config) == before


@pytest.mark.parametrize(
    ("options", "key", "value", "allowed"),
    [
        ({"r": 0}, "r", 0, "an int >= 1"),
        ({"r": -1}, "r", -1, "an int >= 1"),
        ({"r": True}, "r", True, "an int >= 1"),
        ({"r": 2.0}, "r", 2.0, "an int >= 1"),
        ({"r": "4"}, "r", "4", "an int >= 1"),
        ({"config_A_B": "dense"}, "config_A_B", "dense", "'lora', 'vector', 'constant', 'none'"),
        ({"config_A_B": None}, "config_A_B", None, "'lora', 'vector', 'constant', 'none'"),
        ({"config_C": "constant"}, "config_C", "constant", "'lora', 'vector', 'none'"),
        ({"config_D_E": "lora"}, "config_D_E", "lora", "'vector', 'constant', 'none'"),
        ({"config_A": "x"}, "config_A", "x", "'lora', 'vector', 'constant', 'none'"),
        ({"config_B": 1}, "config_B", 1, "'lora', 'vector', 'constant', 'none'"),
        ({"config_D": "lora"}, "config_D", "lora", "'vector', 'constant', 'none'"),
        ({"config_E": "lora"}, "config_E", "lora", "'vector', 'constant', 'none'"),
        ({"bias": "lora_only"}, "bias", "lora_only", "'none', 'all', 'glora_only'"),
        ({"layers_pattern": "layer"}, "layers_pattern", "layer", "only together with layers_to_transform"),
        (
            {"layers_to_transform": [0], "target_modules": ".*query"},
            "layers_to_transform",
            [0],
            "not where target_modules is a string",
        ),
        ({"path_pattern": {"q": "lora"}}, "path_pattern['q']", "lora", "a dict of path -> kind, and r"),
        ({"path_pattern": {"q": {"F": "lora"}}}, "path_pattern['q']", "F", "'A_B', 'D_E', 'A', 'B', 'C', 'D', 'E'"),
        ({"path_pattern": {"q": {"C": "constant"}}}, "path_pattern['q']['C']", "constant", "'lora', 'vector', 'none'"),
        ({"path_pattern": {"q": {"D_E": "lora"}}}, "path_pattern['q']['D_E']", "lora", "'vector', 'constant'"),
        ({"path_pattern": {"q": {"r": 0}}}, "path_pattern['q']['r']", 0, "an int >= 1"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_what_is_allowed(options, key, value, allowed):
    with pytest.raises(UserError) as error:
        GLoraConfig(**options)
    assert str(error.value).startswith(f"{key}: got {value!r}; allowed: ")
    assert allowed in str(error.value)


def test_peft_knows_the_config_by_its_type():
    assert PEFT_TYPE_TO_CONFIG_MAPPING["GLORA_PATHS"] is GLoraConfig
