"""The folder in which something is given wrongly, and the ways to prepare it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml
from datasets import Dataset
from transformers import BertModel

ROWS = "text,label\n" + "".join(f"a goal {row},sports\na chip {row},tech\n" for row in range(8))
NO_RUN = "a run folder, made by 'glora-search run RECIPE'"
NO_CSV = "a csv file with a header line"
NO_MODEL = "a folder with a transformers model"
SHIPPED = "a YAML file, or one of the shipped"


class World:
    """A folder with a recipe in it, and what a test does to them before the command is called."""

    def __init__(self, folder, recipe, finished):
        self.folder, self.recipe, self.source = folder, recipe, finished

    def write(self, name, content):
        """A file of this folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def run(self, *options):
        """``run`` with the recipe as it is now."""
        return ["run", self.write("recipe.yaml", yaml.safe_dump(self.recipe)), "--run-dir", "run", *options]

    def finished(self, **damage):
        """A copy of a finished run folder; ``damage``: file -> its new content, or None to remove it."""
        shutil.copytree(self.source, self.folder / "run", dirs_exist_ok=True)
        for name, content in damage.items():
            path = self.folder / "run" / name.replace("__", "/").replace("_json", ".json")
            if content is None:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            else:
                path.write_bytes(content)

    def files(self):
        """Every file and its content."""
        return {str(path): path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}


def arguments(*words):
    """A command that needs nothing on disk."""
    return lambda world: list(words)


def setting(*overrides):
    """``run`` with keys changed by ``--set``."""
    return lambda world: world.run(*(word for override in overrides for word in ("--set", override)))


def recipe_text(content):
    """``run`` with a recipe of this text."""
    return lambda world: ["run", world.write("recipe.yaml", content)]


def space(text, *overrides):
    """``run`` with a space of this text."""
    return lambda world: setting(f"space={world.write('mine.yaml', text)}", *overrides)(world)


def csv(split, content, *overrides):
    """``run`` with a split of this content."""
    return lambda world: setting(f"data.{split}={world.write('own.csv', content)}", *overrides)(world)


def after(*words, **damage):
    """A command on a finished run folder that was damaged."""

    def prepare(world):
        world.finished(**damage)
        return list(words)

    return prepare


def saved_data(*words):
    """A command beside a data set in ``saved``."""

    def prepare(world):
        Dataset.from_list([{"text": "a goal", "label": "sports"}]).save_to_disk(world.folder / "saved")
        return list(words)

    return prepare


def without_model(world):
    """A model folder without a config."""
    world.write("model/notes.txt", "nothing")
    return setting("task.model=./model")(world)


def without_tokenizer(world):
    """A model folder with a config and weights alone: transformers makes up a tokenizer that knows no word."""
    source, folder = Path(world.recipe["task"]["model"]), world.folder / "model"
    folder.mkdir()
    shutil.copy(source / "model.safetensors", folder)
    config = json.loads((source / "config.json").read_text())
    world.write("model/config.json", json.dumps({**config, "vocab_size": 30522}))
    return setting("task.model=./model")(world)


def adapter_for_model(adapter):
    """An adapter's folder in place of a model's: one of peft, or one of a run."""

    def prepare(world):
        if adapter == "peft":
            config = {"peft_type": "LORA", "base_model_name_or_path": "roberta-base", "target_modules": ["query"]}
            shutil.copytree(world.recipe["task"]["model"], world.folder / "adapter")  # one that has a config.json too
            world.write("adapter/adapter_config.json", json.dumps(config))
        else:
            shutil.copytree(world.source / "retrained", world.folder / "adapter")
        return setting("task.model=./adapter")(world)

    return prepare


def changed_model(change, *overrides):
    """A model whose folder a function has changed."""

    def prepare(world):
        shutil.copytree(world.recipe["task"]["model"], world.folder / "model")
        change(world.folder / "model")
        return setting("task.model=./model", *overrides)(world)

    return prepare


def more_layers(folder):
    """A config of more layers than the weights have."""
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 4'))


def no_numbers(folder):
    """Weights one of which is not a number."""
    model = BertModel.from_pretrained(folder)
    model.encoder.layer[0].output.dense.weight.data[0, 0] = float("nan")
    model.save_pretrained(folder)


def no_words(folder):
    """A tokenizer that knows none of the texts' words."""
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))


def broken_model(world):
    """A model whose weights are cut off."""
    shutil.copytree(world.recipe["task"]["model"], world.folder / "model")
    weights = world.folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    return setting("task.model=./model")(world)


def broken_journal(world):
    """A search whose journal has a damaged line in its middle."""
    world.finished(search__stage_json=None)
    path = world.folder / "run" / "search" / "journal.log"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"{damaged\n", *lines[4:]]))
    return ["search", "run"]


def other_folder(world):
    """A run folder's place is taken by something else."""
    world.write("run/thesis.txt", "mine")
    return world.run()


def file_for_folder(world):
    """A file where the run folder should be."""
    world.write("run", "mine")
    return world.run()


def below_a_file(world):
    """A run folder below a file."""
    world.write("notes.txt", "mine")
    return [*world.run()[:2], "--run-dir", "notes.txt/run"]


def other_recipe(world):
    """A run folder that another recipe made."""
    world.finished()
    return world.run("--set", "seed=7")
