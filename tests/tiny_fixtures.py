"""Tiny models, built once a session; what a test gets are copies of its own."""

from __future__ import annotations

import copy
import functools
import gc
import shutil
import sys
from collections.abc import Callable
from typing import Any

import hypothesis
import jinja2
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from glora_search import cli
from glora_search.progress import console, set_up
from glora_search.recipe.schema import Recipe
from glora_search.report import write_report
from glora_search.run import runner
from glora_search.run.runner import Run
from glora_search.space.bound import BoundSpace
from glora_search.space.schema import Choices, SearchSpace

torch.set_num_threads(1)  # the tensors are tiny

# The same examples in every run, and no folder of old ones.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="module", autouse=True)
def _short_collections():
    """Each Trainer collects garbage, which takes long where the libraries' modules are looked at each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _templates_compiled_once():
    """peft writes a card each time it saves, and compiles its template anew for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", functools.lru_cache(64)(jinja2.Environment.compile))
        yield


TINY_ENCODER = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_labels": 3,
}


def _bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(**TINY_ENCODER, max_position_embeddings=16))


def _roberta() -> nn.Module:
    return RobertaForSequenceClassification(RobertaConfig(**TINY_ENCODER, max_position_embeddings=18))


def _llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            max_position_embeddings=16,
        )
    )


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], nn.Module]:
    """``make_model("bert" | "roberta" | "llama" | "gpt2" | "mlp")``: a fresh copy, of the same weights, in eval mode.

    Biases and norms are not at their initial zeros and ones, so that nothing of an adapter stays hidden.
    """
    templates: dict[str, nn.Module] = {}
    builders = {"bert": _bert, "roberta": _roberta, "llama": _llama, "gpt2": _gpt2, "mlp": _mlp}

    def make(name: str) -> nn.Module:
        if name not in templates:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = builders[name]()
                for parameter in model.parameters():
                    parameter.data += 0.1 * torch.randn_like(parameter)
                templates[name] = model.eval()
        return copy.deepcopy(templates[name])

    return make


# A rank gene, kinds without none, rank 0, tied and free paths, overrides: whatever a space may hold.
ODD = SearchSpace(
    name="odd",
    targets=["query", "value", "output.dense"],
    paths={"A": ["vector", "lora", "none"], "B": ["lora"], "C": ["vector", "none"], "D_E": ["constant", "vector"]},
    ranks=[0, 1, 3],
    overrides={
        "value": Choices(paths={"A_B": ["lora", "constant"]}, ranks=[2]),
        r"layer\.1\.output\.dense": Choices(paths={"D_E": ["none"]}, ranks=[5, 4]),
    },
)


@pytest.fixture(scope="session")
def bind(make_model) -> Callable[..., BoundSpace]:
    """``bind(space, architecture="bert")``: a shipped space's name, ``"odd"``, or a space; bound once a session."""
    known: dict[tuple[str, str], BoundSpace] = {}

    def bound(space: str | SearchSpace, architecture: str = "bert") -> BoundSpace:
        if isinstance(space, SearchSpace):
            return space.bind(make_model(architecture))
        if (space, architecture) not in known:
            loaded = ODD if space == "odd" else SearchSpace.load(space)
            known[space, architecture] = loaded.bind(make_model(architecture))
        return known[space, architecture]

    return bound


@pytest.fixture(scope="session")
def logits() -> Callable[..., Tensor]:
    """``logits(model, **kwargs)``: the model's output on a fixed batch of 4, without gradients."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (4, 6), generator=generator)
    features = torch.randn(4, 5, generator=generator)

    @torch.no_grad()
    def run(model: nn.Module, **kwargs: Any) -> Tensor:
        if hasattr(model, "config"):
            output = model(input_ids=ids, **kwargs)
            if hasattr(output, "logits"):
                return output.logits
        return model(features.to(next(model.parameters()).dtype), **kwargs)

    return run


@pytest.fixture(scope="session")
def randomize() -> Callable[..., nn.Module]:
    """``randomize(model, seed=0, adapter="default")``: draw the adapter's parameters anew, trained head included."""

    def draw(model: nn.Module, seed: int = 0, adapter: str = "default") -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if f".{adapter}." in name:
                parameter.data = (0.3 * torch.randn(parameter.shape, generator=generator)).to(parameter)
        return model

    return draw


@pytest.fixture(scope="session")
def weights() -> Callable[[nn.Module], dict[str, Tensor]]:
    """``weights(model)``: copies of the base model's weights under the plain model's names, adapters left out."""

    def read(model: nn.Module) -> dict[str, Tensor]:
        return {
            name.removeprefix("base_model.model.").replace("base_layer.", "").replace("original_module.", ""): v.clone()
            for name, v in model.state_dict().items()
            if not any(part in name for part in ("glora_", "supernet_", "lora_", "modules_to_save"))
        }

    return read


# -- a tiny model and tiny data on disk, for everything that runs from a recipe ---------------------------------------

WORDS = {"sports": ["goal", "match", "team", "coach"], "tech": ["chip", "code", "phone", "data"]}
FILLER = ["the", "a", "new", "old", "big", "of", "and", "says"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a tiny random BERT and a tokenizer, as a hub model's folder has."""
    folder = tmp_path_factory.mktemp("model") / "tiny-bert"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLER, *WORDS["sports"], *WORDS["tech"]]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def write_csv(path, rows, seed):
    """A csv file of two classes that differ by one word."""
    rng = np.random.default_rng(seed)
    lines = ["text,label"]
    for index in range(rows):
        label = ["sports", "tech"][index % 2]
        words = [*rng.choice(FILLER, 3), rng.choice(WORDS[label]), *rng.choice(FILLER, int(rng.integers(1, 4)))]
        lines.append(f"{' '.join(words)},{label}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="session")
def tiny_csv(tmp_path_factory):
    """Split -> path of a csv file."""
    folder = tmp_path_factory.mktemp("data")
    sizes = {"train": 64, "validation": 24, "test": 24}
    return {split: write_csv(folder / f"{split}.csv", rows, seed) for seed, (split, rows) in enumerate(sizes.items())}


@pytest.fixture(scope="session")
def tiny_recipe(tiny_model, tiny_csv):
    """A recipe, as data, whose every stage takes a moment."""
    training = {"num_train_epochs": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 16, "use_cpu": True}
    return {
        "name": "tiny",
        "task": {"type": "text-classification", "model": str(tiny_model), "max_length": 16},
        "data": {"source": "csv", **tiny_csv},
        "space": "glora-ranks",
        "supernet": {"training": dict(training)},
        "search": {
            "trials": 12,
            "max_params": 1000,
            "options": {"n_random": 3, "n_parents": 2},
        },
        "retrain": {"from": "inherited", "training": {**training, "num_train_epochs": 1}},
        "baselines": ["lora"],
    }


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch, capsys):
    """``call("run", ...)``: exit code, what was printed, and what went to stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["glora-search", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        return exit_.value.code or 0, printed.out, printed.err

    yield run
    set_up(console)  # no test is as quiet as the last command of the one before


@pytest.fixture
def impatient(monkeypatch):
    """A run folder that another process works in is refused without a wait."""
    monkeypatch.setattr(runner, "LOCK_SECONDS", 0)


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    return path


@pytest.fixture(scope="session")
def _finished(tiny_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    Run.create(Recipe.model_validate(tiny_recipe), folder).all_stages()
    write_report(folder)
    return folder


@pytest.fixture
def finished(_finished, tmp_path):
    """A copy of a run folder with every stage done."""
    return shutil.copytree(_finished, tmp_path / "finished")
