"""Tiny random models of many architectures, each a folder with what a hub model's folder has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, processors

from glora_search.recipe.schema import Recipe
from glora_search.tasks import make_task

WORDS = {"sports": ["goal", "match", "team", "coach"], "tech": ["chip", "code", "phone", "data"]}
FILLER = ["the", "a", "new", "old", "big", "of", "and", "says"]
VOCABULARY = [*FILLER, *WORDS["sports"], *WORDS["tech"]]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DECODER = {**SIZES, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
MODELS = {
    "bert": ("BertModel", "BertConfig", {**SIZES, "max_position_embeddings": 32}),
    "roberta": ("RobertaModel", "RobertaConfig", {**SIZES, "max_position_embeddings": 40}),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 32},
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", DECODER),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**DECODER, "num_local_experts": 2, "num_experts_per_tok": 1, "output_router_logits": True},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    ),
    "bart": (
        "BartForSequenceClassification",
        "BartConfig",
        {
            **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
            **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64},
            "num_labels": 3,
        },
    ),
    "vit": ("ViTModel", "ViTConfig", {**SIZES, "image_size": 16, "patch_size": 8}),
}
"""Architecture -> class of the checkpoint, of its config, and the config's fields; encoders come without a head,
BART with one of three classes."""


def word_tokenizer(architecture):
    """A tokenizer of whole words that ends (T5) or begins (the rest) a text as the architecture's own does."""
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*special, *VOCABULARY])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "$A </s>" if architecture == "t5" else "<s> $A"
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 2), ("</s>", 3)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if architecture != "t5":
        del names["pad_token"]  # as Llama's: what pads has to be found
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def bpe_tokenizer(architecture):
    """The architecture's own tokenizer, with a small vocabulary."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if architecture == "roberta" else ["<|endoftext|>"]
    classes = {"roberta": transformers.RobertaTokenizer, "gpt2": transformers.GPT2Tokenizer}
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([" ".join(VOCABULARY)] * 5, vocab_size=320, special_tokens=special)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return classes.get(architecture, transformers.Qwen2Tokenizer)(vocab=model["vocab"], merges=merges)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tiny_model):
    """``tiny(architecture)``: the folder of a tiny model with its tokenizer or image processor."""
    made = {}

    def build(architecture):
        folder = tmp_path_factory.mktemp("tiny") / architecture
        model_class, config_class, fields = MODELS[architecture]
        tokens = {}
        if architecture == "vit":
            from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

            ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
        else:
            if architecture in ("bert", "distilbert"):
                tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
            elif architecture in ("roberta", "gpt2", "qwen2", "qwen3"):
                tokenizer = bpe_tokenizer(architecture)
            else:
                tokenizer = word_tokenizer(architecture)
            tokenizer.save_pretrained(folder)
            names = ("bos_token_id", "eos_token_id", "pad_token_id")
            tokens = {name: found for name in names if (found := getattr(tokenizer, name)) is not None}
            tokens["vocab_size"] = len(tokenizer)
        torch.manual_seed(0)
        config = getattr(transformers, config_class)(**{**tokens, **fields})
        getattr(transformers, model_class)(config).save_pretrained(folder)
        return folder

    def tiny_(architecture):
        if architecture not in made:
            made[architecture] = build(architecture)
        return made[architecture]

    return tiny_


class Make:
    """Writes small data sets."""

    filler = FILLER

    @staticmethod
    def sentences(rows, seed=0):
        """Texts of four to six words, one of them of a class, with their class."""
        rng = np.random.default_rng(seed)
        labels = [["sports", "tech"][index % 2] for index in range(rows)]
        return [
            (" ".join([*rng.choice(FILLER, rng.integers(2, 5)), rng.choice(WORDS[label]), rng.choice(FILLER)]), label)
            for label in labels
        ]

    @classmethod
    def rows(cls, count=20):
        """Sentences as rows."""
        return [{"text": text, "label": label} for text, label in cls.sentences(count)]

    @staticmethod
    def json(path, rows):
        """A file of json lines."""
        Path(path).write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        return str(path)

    @staticmethod
    def images(folder, count, seed=0):
        """Darker and lighter images, in a folder for each class."""
        from PIL import Image

        rng = np.random.default_rng(seed)
        for number in range(count):
            label = ["dark", "light"][number % 2]
            (folder / label).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 120, (12, 20, 3)) + (0 if label == "dark" else 120)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number}.png")
        return str(folder)


@pytest.fixture(scope="session")
def make():
    """See `Make`."""
    return Make


@pytest.fixture
def recipe():
    """``recipe(model, data, **task)``: a recipe, as data, whose every stage takes a moment."""

    def make(model, data, **task):
        training = {"num_train_epochs": 1, "learning_rate": 5e-3, "per_device_train_batch_size": 8, "use_cpu": True}
        return {
            "name": "tiny",
            "task": {"model": str(model), "max_length": 24, **task},
            "data": data,
            "space": "glora",
            "supernet": {"training": dict(training)},
            "search": {"sampler": "random", "trials": 3, "max_params": 1200, "batch_size": 8},
            "retrain": {"training": dict(training)},
            "baselines": ["lora"],
        }

    return make


@pytest.fixture
def task(tiny, recipe, make, tmp_path):
    """``task(architecture or folder, type, rows, data={}, **options)``: a task over rows of json."""

    def build(model, type_, rows, data=None, **options):
        source = {"source": "json", "train": make.json(tmp_path / "rows.jsonl", rows), **(data or {})}
        folder = model if isinstance(model, Path) else tiny(model)
        return make_task(Recipe.model_validate(recipe(folder, source, type=type_, **options)))

    return build
