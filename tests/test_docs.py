"""The pages say what works: their code runs, their commands and options exist, their YAML is a recipe or a space.

A page's blocks are run in their order, in one folder of its own where ``roberta-base`` and its like are tiny models and
``train.csv`` is a tiny file. YAML whose first line is a comment with a file's name is written there. Comments before a
block steer this: ``<!-- not run: reason -->``.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from tiny_models import word_tokenizer
from torch.distributed.run import get_args_parser
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from glora_search import cli
from glora_search.recipe.schema import Recipe
from glora_search.run.runner import Run
from glora_search.search import study
from glora_search.space.schema import SearchSpace

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LABELS = ("business", "entertainment", "politics", "sport", "tech")

NOT_RUN = {
    "scaling.md": ["it serves until it is stopped, beside a database server"],
}
"""Every block that is not run, with the page's own reason: one more has to be added here as well."""

PARSED_ONLY = ("--workers", "--storage", "dashboard")
"""Commands with these start processes or a server, or need one; that their options exist is checked all the same."""


@dataclass
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str
    not_run: str | None

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks, in order."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    opened, remark = None, None
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text.startswith("```") and opened is None:
            opened = (number, text[3:].strip(), len(line) - len(line.lstrip()))
        elif text == "```" and opened is not None:
            start, language, indent = opened
            code = "\n".join(row[indent:] for row in lines[start : number - 1])
            found.append(Block(page, start + 1, language, code, remark))
            opened, remark = None, None
        elif opened is None and text:
            match = re.fullmatch(r"<!-- not run: (.+) -->", text)
            remark = match and match[1]
    assert opened is None, f"{page.name}: a fence is not closed"
    return found


BLOCKS = {page.name: blocks_of(page) for page in PAGES}
ALL = [block for blocks in BLOCKS.values() for block in blocks]


def of(*languages: str) -> pytest.MarkDecorator:
    blocks = [block for block in ALL if block.language in languages]
    return pytest.mark.parametrize("block", blocks, ids=[block.where for block in blocks])


# -- what every block has to be ----------------------------------------------------------------------------------------


def test_every_block_says_what_it_is():
    assert {block.language for block in ALL} <= {"python", "bash", "yaml", "csv", "text"}


def test_what_is_not_run_is_known_with_its_reason():
    found = {name: [block.not_run for block in blocks if block.not_run] for name, blocks in BLOCKS.items()}
    assert {name: reasons for name, reasons in found.items() if reasons} == NOT_RUN


@of("python")
def test_python_is_python(block):
    ast.parse(block.code)


@of("yaml")
def test_yaml_is_a_recipe_a_part_of_one_or_a_space(block, tmp_path):
    data = yaml.safe_load(block.code)
    if "paths" in data:
        space = SearchSpace.model_validate(data)
        assert space.paths
    elif "name" in data:
        path = tmp_path / "recipe.yaml"
        path.write_text(block.code)
        Recipe.load(path)
    else:
        Recipe.load("quickstart", [f"{key}={yaml.safe_dump(value)}" for key, value in flat(data).items()])


def flat(data: dict, prefix: str = "") -> dict:
    """A part of a recipe as ``--set`` takes it; a source or a task is set as a whole."""
    found: dict = {}
    for key, value in data.items():
        whole = not isinstance(value, dict) or "source" in value or key in ("training", "lr_factors", "options")
        found |= {f"{prefix}{key}": value} if whole else flat(value, f"{prefix}{key}.")
    return found


# -- commands ----------------------------------------------------------------------------------------------------------


def commands_of(page: Path) -> Iterator[tuple[str, list[str]]]:
    """``(where, words)`` of each command: in bash blocks, in indented ones and between backticks."""
    for block in BLOCKS[page.name]:
        if block.language == "bash":
            for line in block.code.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield block.where, words
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for line in re.findall(r"^    (.+)$", text, flags=re.MULTILINE):
        if line.split()[0] in KNOWN:
            yield page.name, shlex.split(line, comments=True)
    for line in re.findall(r"`((?:glora-search|make) [^`]+)`", text):
        yield page.name, shlex.split(line)


def check_glora_search(words: list[str], group: Any = None) -> None:
    """Parse it as the command line does, without doing anything."""
    group = group or typer.main.get_command(cli.app)
    if words == ["--help"]:
        return
    context = typer.Context(group, info_name="glora-search")
    name, command, rest = group.resolve_command(context, words)
    if hasattr(command, "resolve_command"):
        check_glora_search(rest, command)
    elif rest:  # a bare name is a command that a page speaks of
        command.make_context(name, rest, parent=context)


def check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[0] == "install"
    for word in words[1:]:
        match = re.fullmatch(r"(?:glora-search|\.)(?:\[([\w,]+)\])?", word)
        assert match or word in ("-e", "--editable")
        assert not match or set((match[1] or "").split(",")) - {""} <= set(extras)


def check_python(words: list[str]) -> None:
    if words[0] in ("-m", "-c"):
        return
    script = (ROOT / words[0]).read_text()
    for option in (word for word in words[1:] if word.startswith("--")):
        assert f'"{option}"' in script


def check_torchrun(words: list[str]) -> None:
    get_args_parser().parse_args(words)


def check_accelerate(words: list[str]) -> None:
    assert words[0] == "launch"
    launch_command_parser().parse_args(words[1:])


KNOWN: dict[str, Callable[[list[str]], None]] = {
    "accelerate": check_accelerate,
    "glora-search": check_glora_search,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "torchrun": check_torchrun,
}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_commands_exist_with_their_options(page):
    for where, (program, *words) in commands_of(page):
        assert program in KNOWN, f"{where}: {program}"
        try:
            KNOWN[program](words)
        except Exception as error:
            pytest.fail(f"{where}: {program} {' '.join(words)}: {type(error).__name__}: {error}")


# -- running a page ----------------------------------------------------------------------------------------------------


def write_rows(path: Path, count: int, seed: int) -> None:
    """Texts in five classes that differ by one word."""
    rng = np.random.default_rng(seed)
    words = ["goal", "match", "chip", "code", "team"]
    filler = ["the", "a", "new", "old", "big", "of", "and", "says"]
    rows = [f"{' '.join(rng.choice(filler, 4))} {words[i % 5]},{LABELS[i % 5]}" for i in range(count)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")


CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_chats(folder: Path, model: Path) -> None:
    """Chats of one and two turns, a question, and a tiny model whose tokenizer has a chat template."""
    tokenizer = word_tokenizer("llama")
    tokenizer.add_tokens([f"<|{name}|>" for name in ("system", "user", "assistant")], special_tokens=True)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "num_attention_heads": 2}
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **tokens)).save_pretrained(model)
    words = ["goal", "match", "chip", "code", "team"]
    turns = [
        [{"role": "user", "content": f"the new {word}"}, {"role": "assistant", "content": f"the {word} says"}]
        for word in words
    ]
    chats = [{"messages": turns[n % 5] + (turns[n // 5 % 5] if n % 2 else [])} for n in range(25)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (folder / "questions.txt").write_text("the new goal\n")


@pytest.fixture(scope="module")
def stock(tiny_model, tmp_path_factory):
    """A folder with what pages speak of: models, data, and the run folders of a finished search."""
    folder = tmp_path_factory.mktemp("stock")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    roberta = RobertaConfig(**sizes, num_attention_heads=2, type_vocab_size=2, pad_token_id=0)
    models = {"my-model": BertModel(BertConfig(**sizes, num_attention_heads=2)), "roberta-base": RobertaModel(roberta)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / name)
    llama = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))
    llama.save_pretrained(folder / "Qwen" / "Qwen3-0.6B")
    write_chats(folder, folder / "HuggingFaceTB" / "SmolLM2-135M-Instruct")
    for seed, (name, count) in enumerate({"train": 80, "validation": 25, "test": 25}.items()):
        write_rows(folder / f"{name}.csv", count, seed)
    (folder / "reviews.yaml").write_text(next(b.code for b in BLOCKS["README.md"] if b.language == "yaml"))
    training = {"num_train_epochs": 1}
    recipe = {
        "name": "quickstart",
        "task": {"model": str(folder / "roberta-base"), "max_length": 16},
        "data": {"source": "csv", **{split: str(folder / f"{split}.csv") for split in ("train", "test")}},
        "space": "glora-ranks",
        "supernet": {"training": training},
        "search": {"trials": 6, "max_params": 1000},
        "finals": {"subnets": 1, "rates": [1], "teacher": 2, "training": training},
    }
    run = Run.create(Recipe.model_validate(recipe), folder / "runs" / "quickstart")
    run.all_stages()
    shutil.copytree(run.folder, folder / "runs" / "reviews")
    return folder


@pytest.fixture
def workplace(stock, tmp_path, monkeypatch):
    """``workplace(page)``: a copy of the stock, as current folder; what the page itself makes is not there yet."""

    def make(page: Path) -> Path:
        shutil.copytree(stock, tmp_path, symlinks=True, dirs_exist_ok=True)
        for name in re.findall(r"^name: ([\w-]+)", page.read_text(), flags=re.MULTILINE):
            shutil.rmtree(tmp_path / "runs" / name, ignore_errors=True)
        return tmp_path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield make
    for name, module in list(sys.modules.items()):  # the page's own
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def briefly(monkeypatch):
    """Searches are short, and so are trainings from a recipe."""
    load, full = Recipe.load.__func__, study.search
    cuts = ["search.trials=6", "supernet.training.num_train_epochs=1", "retrain.training.num_train_epochs=1"]

    @functools.wraps(full)
    def short(*args, trials=1000, **options):
        return full(*args, trials=min(trials, 8), **options)

    def cut(cls, path, given=()):
        recipe = load(cls, path, [*given, *cuts])
        ending = ["finals.training.num_train_epochs=1"] if recipe.finals else []
        return load(cls, path, [*given, *cuts, *ending])

    monkeypatch.setattr(Recipe, "load", classmethod(cut))
    for module in ("", ".search", ".search.study", ".find.adapter", ".run.search"):
        monkeypatch.setattr(importlib.import_module(f"glora_search{module}"), "search", short)


def call(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command in this process."""
    monkeypatch.setattr(sys, "argv", ["glora-search", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, f"glora-search {' '.join(words)}"


def search_page(names: dict) -> None:
    """What `search.md` has from the page before it."""
    model = AutoModelForSequenceClassification.from_pretrained("roberta-base")
    names["space"] = SearchSpace.load("lora-ranks").bind(model)
    names["evaluate"] = lambda genome: float(sum(genome.values()))


GIVEN: dict[str, Callable[[dict], None]] = {"search.md": search_page}
"""The names that a page takes from the reader; all others make their own."""

RUN = [page for page in PAGES if {block.language for block in BLOCKS[page.name]} & {"python", "bash"}]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=[page.name for page in RUN])
def test_the_code_of_a_page_runs(page, workplace, briefly, monkeypatch):
    folder, names = workplace(page), {"__name__": "__main__"}
    GIVEN.get(page.name, dict)(names)
    monkeypatch.syspath_prepend(folder)
    for block in BLOCKS[page.name]:
        first = re.match(r"# ([\w-]+\.(?:yaml|csv|py))\n", block.code)
        if first:
            (folder / first[1]).write_text(block.code)
            if block.language == "python":
                importlib.import_module(first[1].removesuffix(".py"))
        if block.not_run or (first and block.language != "bash"):
            continue
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(block.page), "exec"), names)
        for line in block.code.replace("\\\n", " ").splitlines() if block.language == "bash" else ():
            words = shlex.split(line, comments=True)
            if words[:1] == ["glora-search"] and not set(words) & set(PARSED_ONLY):
                call(words[1:], monkeypatch)


# -- what is written from elsewhere ------------------------------------------------------------------------------------


def test_the_reference_of_recipes_is_up_to_date():
    path = ROOT / "docs" / "recipe_reference.py"
    spec = importlib.util.spec_from_file_location("recipe_reference", path)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert (ROOT / "docs" / "recipe.md").read_text() == reference.page(), "make docs writes it anew"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target
