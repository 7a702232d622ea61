"""The recipes that come with the package: each is valid, and its space fits the model's architecture."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    Dinov2Config,
    LlamaConfig,
    RobertaConfig,
    ViTConfig,
)

from glora_search.files.shipped import shipped_folder
from glora_search.recipe.schema import Recipe
from glora_search.search import make_sampler
from glora_search.space.schema import SearchSpace
from glora_search.tasks import task_class

# The published models' configs; what is not said is the library's default, which is theirs.
MODELS = {
    "google/vit-base-patch16-224-in21k": (AutoModelForImageClassification, ViTConfig(num_labels=100)),
    "huggyllama/llama-7b": (AutoModelForCausalLM, LlamaConfig()),
    "FacebookAI/roberta-base": (
        AutoModelForSequenceClassification,
        RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    ),
    "runs/models/dinov2-focus": (
        AutoModelForImageClassification,
        Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14, num_labels=10),
    ),
    "runs/models/smollm2": (
        AutoModelForCausalLM,
        LlamaConfig(
            **{"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
            **{"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
        ),
    ),
}
SMOLLM2 = ("smollm2-arc", "smollm2-emotion")
VITS = {"mnist-dinov2": 12 * 6, "vtab-1k": 12 * 6}
LAYERS = {"alpaca-llama": 32 * 7, "glue-roberta": 12 * 6, **VITS, **dict.fromkeys(SMOLLM2, 30 * 7)}
LORA = {"alpaca-llama": 4_194_304, "glue-roberta": 294_912}
"""Recipe -> the parameters of LoRA of rank 8 on query and value, which is its budget."""


def names():
    return sorted(file.stem for file in (shipped_folder("experiments") / "recipes").glob("*.yaml"))


def test_the_recipes_for_real_work_are_there():
    assert names() == sorted(LAYERS)


@pytest.fixture(scope="module")
def meta():
    """``meta(model)``: the architecture, without a weight."""
    made = {}

    def build(name):
        if name not in made:
            auto, config = MODELS[name]
            with torch.device("meta"):
                made[name] = auto.from_config(config)
        return made[name]

    return build


@pytest.mark.parametrize("name", names())
def test_a_recipe_is_valid_and_its_space_fits_its_model(name, meta):
    recipe = Recipe.load(name)
    assert recipe == Recipe.load(f"experiments/recipes/{name}.yaml")
    assert recipe.name == name
    task = task_class(recipe.task.type)
    assert task.auto_class is MODELS[recipe.task.model][0]
    space = SearchSpace.load(recipe.space).bind(meta(recipe.task.model))
    assert len(space.layers) == LAYERS[name]
    assert not any("classifier" in layer.name or "head" in layer.name for layer in space.layers)
    space.check_budget(recipe.search.max_params)
    options = {**recipe.search.options}
    assert make_sampler(recipe.search.sampler, space, max_params=recipe.search.max_params, options=options) is not None


@pytest.mark.parametrize("name", LORA)
def test_a_budget_is_that_of_lora_on_query_and_value(name, meta):
    recipe = Recipe.load(name)
    layers = SearchSpace.load(recipe.space).bind(meta(recipe.task.model)).layers
    chosen = [layer for layer in layers if layer.name.endswith(("query", "value", "q_proj", "v_proj"))]
    cost = sum(8 * (layer.in_features + layer.out_features) for layer in chosen)
    assert cost == recipe.search.max_params == LORA[name]


def test_llamas_layers_have_no_bias_and_no_paths_that_would_need_one(meta):
    recipe = Recipe.load("alpaca-llama")
    space = SearchSpace.load(recipe.space).bind(meta(recipe.task.model))
    assert {gene.path for gene in space.genes} == {"A_B"}
    assert space.count() == 4**224


def test_vtab_searches_the_papers_432_choices_a_layer(meta):
    recipe = Recipe.load("vtab-1k")
    assert SearchSpace.load(recipe.space).bind(meta(recipe.task.model)).count() == 432**72


@pytest.mark.parametrize("name", [*SMOLLM2, "mnist-dinov2"])
def test_the_budget_of_a_case_study_is_that_of_lora_at_rank_1(meta, name):
    recipe = Recipe.load(name)
    layers = SearchSpace.load(recipe.space).bind(meta(recipe.task.model)).layers
    assert sum(layer.in_features + layer.out_features for layer in layers) == recipe.search.max_params
