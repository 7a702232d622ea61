"""Whatever is given wrongly: one message that says what is allowed, exit code 2, and nothing on disk changes."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

ERRORS = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")


class World:
    """A folder with a recipe in it, and what a test does to them before the command is called."""

    def __init__(self, folder, recipe, finished):
        self.folder, self.recipe, self._finished = folder, recipe, finished

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
        shutil.copytree(self._finished, self.folder / "run", dirs_exist_ok=True)
        for name, content in damage.items():
            path = self.folder / "run" / name.replace("__", "/").replace("_json", ".json")
            if content is None:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            else:
                path.write_bytes(content)

    def files(self):
        """Every file and its content."""
        return {str(path): path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}


@pytest.fixture
def world(tmp_path, monkeypatch, tiny_recipe, _finished):
    monkeypatch.chdir(tmp_path)
    return World(tmp_path, copy.deepcopy(tiny_recipe), _finished)


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


ROWS = "text,label\n" + "".join(f"a goal {row},sports\na chip {row},tech\n" for row in range(8))
QUICK = ["run", "quickstart", "--set"]
NO_RUN = "a run folder, made by 'glora-search run RECIPE'"
NO_CSV = "a csv file with a header line"
NO_MODEL = "a folder with a transformers model"
SHIPPED = "a YAML file, or one of the shipped"

# What is done -> (what prepares it and gives the command, the part of the message that docs/errors.md explains, more
# words of the message).
WRONG = {
    # recipes
    "a recipe that is not there": (arguments("run", "nothing.yaml"), SHIPPED, ["recipe", "nothing.yaml", "quickstart"]),
    "a folder for a recipe": (arguments("run", "."), SHIPPED, ["recipe", "'.'"]),
    "no recipe's name": (arguments("run", ""), SHIPPED, ["recipe"]),
    "a recipe with broken YAML": (recipe_text("name: ["), "not valid YAML", ["recipe.yaml"]),
    "a recipe that is a list": (recipe_text("[1, 2]"), "a mapping of keys to values", ["recipe.yaml", "[1, 2]"]),
    "an empty recipe": (recipe_text(""), "a mapping of keys to values", ["recipe.yaml", "None"]),
    "a recipe that is no text": (recipe_text(b"\xff\xfe\x00\x81"), "not valid YAML", ["recipe.yaml"]),
    "a recipe that builds objects": (
        recipe_text("name: !!python/object/apply:os.getcwd []"), "not valid YAML", ["recipe.yaml"],
    ),
    "an unknown key": (setting("sede=1"), "no such key", ["sede", "did you mean seed", "got 1"]),
    "an unknown key of a section": (setting("search.trails=5"), "no such key", ["search.trails", "trials"]),
    "a missing section": (recipe_text("name: x\nspace: glora\n"), ": missing", ["task: missing", "data: missing"]),
    "a scalar for a section": (setting("search=3"), "search: got 3; allowed:", ["dictionary"]),
    "a word for a number": (setting("search.trials=many"), "allowed: a valid integer", ["search.trials", "many"]),
    "no trials": (setting("search.trials=0"), "allowed: greater than or equal to", ["search.trials", "0"]),
    "a negative number of calibration steps": (
        setting("search.calibration_steps=-1"), "allowed: greater than or equal to", ["search.calibration_steps", "-1"]
    ),
    "a negative budget": (setting("search.max_params=-1"), "allowed: greater than or equal to", ["max_params", "-1"]),
    "a negative seed": (setting("seed=-1"), "allowed: greater than or equal to", ["seed", "-1"]),
    "a fraction above 1": (setting("data.test_fraction=2"), "allowed: less than", ["data.test_fraction", "2"]),
    "a name that is no folder's": (setting("name=a/b"), "name: got", ["a/b", "pattern"]),
    "an unknown sampler": (
        setting("search.sampler=annealing"), "search.sampler: got", ["annealing", "evolution", "nsga2", "import path"],
    ),
    "a sampler that cannot be imported": (
        setting("search.sampler=nothing.Sampler"), "search.sampler: got", ["nothing.Sampler", "nothing"],
    ),
    "an option that the sampler has not": (
        setting("search.options={parents: 3}"), "search.options", ["parents", "n_parents"],
    ),
    "a front by a sampler for one objective": (
        setting("search.objective=front"), "a sampler for several objectives", ["search.sampler", "nsga2"],
    ),
    "an unknown sampling": (
        setting("supernet.sampling=magic"), "supernet.sampling: got", ["magic", "sizes", "sandwich"],
    ),
    "a sampling that is no Sampling": (
        setting("supernet.sampling=os.path.join"), "supernet.sampling: got", ["os.path.join"],
    ),
    "an option that the sampling has not": (
        setting("supernet.sampling_options={share: 3}"), "supernet.sampling_options", ["share"],
    ),
    "an unknown task": (setting("task.type=poetry"), "task.type", ["poetry", "text-classification"]),
    "an unknown source": (setting("data.source=ftp"), "data.source", ["ftp", "csv", "hub"]),
    "no source": (setting("data={train: a.csv}"), "data.source", ["None", "one of"]),
    "an unknown training argument": (
        setting("supernet.training.num_epochs=3"), "a field of transformers.TrainingArguments", ["num_train_epochs"],
    ),
    "the training's output_dir": (
        setting("supernet.training.output_dir=x"), "a field of transformers.TrainingArguments", ["output_dir"],
    ),
    "a training argument of another type": (
        setting("retrain.training.learning_rate=fast"), "retrain.training.learning_rate", ["fast", "number"],
    ),
    "a batch of no rows": (
        setting("supernet.training.per_device_train_batch_size=0"), "per_device_train_batch_size", ["got 0", ">= 1"],
    ),
    "a learning rate that is no number": (
        setting("supernet.training.learning_rate=.nan"), "learning_rate", ["nan", ">= 0"],
    ),
    "less than no epochs": (setting("retrain.training.num_train_epochs=-1"), "num_train_epochs", ["-1", "above 0"]),
    "a training argument that needs another": (
        setting("supernet.training.load_best_model_at_end=true"), "what transformers.TrainingArguments takes",
        ["supernet.training", "load_best_model_at_end"],
    ),
    "a learning rate's unknown kind": (setting("supernet.lr_factors={loar: 2}"), "lr_factors", ["loar", "lora"]),
    "an unknown baseline": (setting("baselines=[magic]"), "baselines.0: got", ["magic", "lora"]),
    # --set
    "--set without a value": (setting("nonsense"), "key.sub=value", ["--set", "nonsense"]),
    "--set without a key": (setting("=3"), "key.sub=value", ["--set", "=3"]),
    "--set below a value": (setting("name.sub=3"), "a key below a mapping", ["--set", "name.sub=3"]),
    "--set with broken YAML": (setting("search=["), "not valid YAML", ["--set search", "["]),
    # spaces
    "an unknown space": (setting("space=nothing"), SHIPPED, ["space", "nothing", "glora-paper"]),
    "a kind that a path cannot take": (space("paths: {C: [constant]}"), "paths.C: got", ["constant", "vector"]),
    "a path that is none": (space("paths: {F: [lora]}"), "paths: got", ["F", "A_B"]),
    "no paths": (space("paths: {}"), "at least one path", ["paths"]),
    "a path without kinds": (space("paths: {B: []}"), "at least one kind", ["paths.B"]),
    "a tie and its member": (space("paths: {A_B: [lora], A: [none]}"), "(tied) or", ["A_B", "A and B"]),
    "a rank that is no number": (space("paths: {B: [lora]}\nranks: [true]"), "ranks", ["True", "integer"]),
    "a negative rank": (space("paths: {B: [lora]}\nranks: [-2]"), "a list of ints >= 0", ["ranks", "-2"]),
    "an unknown key of a space": (space("paths: {B: [lora]}\nrank: [2]"), "no such key", ["rank", "ranks"]),
    "a pattern that is none": (
        space("targets: '*query'\npaths: {B: [lora, none]}"), "a regular expression", ["targets", "*query"],
    ),
    "targets of another type": (space("targets: {a: 1}\npaths: {B: [lora]}"), "module names", ["targets"]),
    "targets that match no layer": (
        space("targets: [nothing]\npaths: {B: [lora]}"), "names that match a layer", ["space.targets", "nothing"],
    ),
    "a target that cannot be adapted": (
        space("targets: [word_embeddings]\npaths: {B: [lora]}"), "word_embeddings", ["Embedding"],
    ),
    "an override that matches no layer": (
        space("paths: {B: [lora, none]}\noverrides: {qeury: {ranks: [1]}}"), "patterns that match a layer", ["qeury"],
    ),
    "a budget below the cheapest subnet": (
        space("paths: {B: [lora]}\nranks: [2]", "search.max_params=9"), "the parameters of the cheapest subnet",
        ["search.max_params", "9", "at least"],
    ),
    # data
    "data that is not there": (setting("data.train=none.csv"), "a csv file that exists", ["data.train", "none.csv"]),
    "a folder for data": (setting("data.train=."), "a csv file that exists", ["data.train"]),
    "an empty file": (csv("train", ""), NO_CSV, ["data.train", "own.csv"]),
    "a header and nothing else": (csv("train", "text,label\n"), "rows that each have a label", ["no rows"]),
    "no header": (csv("train", ROWS.partition("\n")[2]), "a column of", ["data.text_column", "a goal 0, sports"]),
    "a missing column": (setting("data.text_column=body"), "a column of", ["data.text_column", "body", "text, label"]),
    "one column for both": (setting("data.text_column=label"), "another column than text_column", ["label_column"]),
    "one label": (csv("train", ROWS.replace("tech", "sports"), "data.validation=null", "data.test=null"),
        "at least 2 different labels", ["data.label_column", "sports"],
    ),
    "a row without a label": (
        csv("train", ROWS + "a song,\n"), "rows that each have a label", ["data.train", "no label in row 17"],
    ),
    "a label that only the test has": (
        csv("test", ROWS + "a song,music\n"), "labels that train has", ["data.test", "music", "sports, tech"],
    ),
    "a label that only the validation has": (
        csv("validation", ROWS + "a song,music\n"), "labels that train has", ["data.validation", "music"],
    ),
    "the same file twice": (
        lambda world: setting(f"data.test={world.recipe['data']['validation']}")(world), "another split than",
        ["data.test", "validation"],
    ),
    "another encoding": (csv("train", ROWS.replace("a", "\xe4").encode("latin-1")), NO_CSV, ["data.train", "utf-8"]),
    "a binary file": (csv("train", b"PAR1\x15\x04\x15\xb0\x00\x00\xff" * 9), NO_CSV, ["data.train", "own.csv"]),
    "rows of different lengths": (csv("train", ROWS + "a,b,c,d\n"), NO_CSV, ["data.train", "line 18"]),
    "too few rows": (
        csv("train", "text,label\na goal,sports\na chip,tech\n", "data.validation=null", "data.test=null"),
        "enough rows to cut", ["data"],
    ),
    "fewer rows than labels": (setting("data.max_train_rows=1"), "one for every label", ["data.max_train_rows", "1"]),
    "data that no hub has": (
        setting("data={source: hub, name: owner/none}"), "a data set that datasets.load_dataset can load",
        ["data.name", "owner/none"],
    ),
    # models
    "a model that is not there": (setting("task.model=./none"), "a folder that exists", ["task.model", "./none"]),
    "a folder without a model": (without_model, NO_MODEL, ["task.model", "./model"]),
    "a model without its tokenizer": (without_tokenizer, "a model with its tokenizer", ["task.model", "30,522"]),
    "weights that are cut off": (broken_model, NO_MODEL, ["task.model", "./model"]),
    "a model that no hub has": (setting("task.model=owner/none"), NO_MODEL, ["task.model", "owner/none", "hub"]),
    "inputs longer than the model's": (setting("task.max_length=600"), "the model's longest input", ["max_length"]),
    # run folders
    "a run that is not there": (arguments("search", "nowhere"), NO_RUN, ["run", "nowhere"]),
    "a folder that is no run": (lambda world: [world.run() and "merge", "."], NO_RUN, ["run", "'.'"]),
    "a folder of something else": (other_folder, "a new or empty folder, or a run folder", ["run-dir"]),
    "a file for a folder": (file_for_folder, "a folder, not a file", ["run-dir"]),
    "a folder below a file": (below_a_file, "Not a directory", ["notes.txt"]),
    "a folder of another recipe": (other_recipe, "was made from another recipe", ["seed is 7 here and was 0"]),
    "a run folder's broken recipe": (after("search", "run", **{"recipe.yaml": b"a: ["}), "not valid YAML", ["recipe"]),
    "a stage's broken result": (after("search", "run", supernet__stage_json=b"{"), "not valid JSON", ["stage.json"]),
    "a broken result, looked at": (after("status", "run", merged__stage_json=b""), "not valid JSON", ["stage.json"]),
    "a supernet without weights": (
        after("export", "run", best__stage_json=None, **{"supernet/adapter_model.safetensors": None}),
        "not a whole adapter", ["supernet", "--again"],
    ),
    "a supernet whose weights are cut off": (
        after("export", "run", best__stage_json=None, **{"supernet/adapter_model.safetensors": b"\x00" * 50}),
        "not a whole adapter", ["supernet", "--again"],
    ),
    "a journal with a damaged line": (broken_journal, "is damaged", ["journal.log", "line 5"]),
    # order
    "search before the supernet": (
        after("search", "run", supernet=None, search=None), "run first: glora-search", ["train-supernet run"],
    ),
    "export before the search": (
        after("export", "run", search=None, best=None), "run first: glora-search", ["glora-search search run"],
    ),
    "retrain before the export": (
        after("retrain", "run", best=None, retrained=None), "run first: glora-search", ["glora-search export run"],
    ),
    "merge before the export": (
        after("merge", "run", best=None, merged=None), "run first: glora-search", ["glora-search export run"],
    ),
    "evaluate before the merge": (
        after("evaluate", "run", merged=None, metrics_json=None), "run first: glora-search", ["glora-search merge run"],
    ),
    "predict before the merge": (
        after("predict", "run", "a goal", merged=None), "run first: glora-search", ["glora-search merge run"],
    ),
    "the dashboard before the search": (
        after("dashboard", "run", search=None), "run first: glora-search", ["glora-search search run"],
    ),
    # options
    "an unknown command": (arguments("serach", "run"), "No such command", ["serach"]),
    "an unknown option": (arguments("search", "run", "--worker", "2"), "No such option", ["--worker"]),
    "no run": (arguments("search"), "Missing argument", ["RUN", "glora-search search --help"]),
    "no workers": (arguments("search", "run", "--workers", "0"), "--workers: got 0; allowed: 1 or more", []),
    "a word for workers": (arguments("search", "run", "--workers", "two"), "Invalid value for", ["--workers", "two"]),
    "an unknown format": (after("export", "run", "--format", "onnx"), "--format: got", ["onnx", "peft", "lora"]),
    "--again for what is always new": (
        after("export", "run", "--format", "peft", "--again"), "which is written anew each time", ["--again", "peft"],
    ),
    # storages
    "an unknown storage": (
        after("search", "run", "--storage", "ftp://host/x", search__stage_json=None), "the file of a journal, or a URL",
        ["storage", "ftp", "postgresql://"],
    ),
    "a server that is not there": (
        after("search", "run", "--storage", "postgresql://me:secret@127.0.0.1:1/x", search__stage_json=None),
        "a storage that can be reached", ["storage", "127.0.0.1"],
    ),
    "a database in no folder": (
        after("search", "run", "--storage", "sqlite:///none/x.db", search__stage_json=None),
        "a storage that can be reached", ["storage", "sqlite"],
    ),
    "a shared search that has not begun": (
        after("status", "run", "--storage", "sqlite:///:memory:"), "has not begun in this storage", ["run"],
    ),
    # looking at runs
    "the status of no run": (arguments("status", "nowhere"), NO_RUN, ["nowhere"]),
    "a comparison with no run": (after("compare", "run", "nowhere"), NO_RUN, ["nowhere"]),
    "a comparison with another recipe.yaml": (
        after("compare", "run", **{"recipe.yaml": b"name: soup"}),
        "it is no run folder's recipe", ["run/recipe.yaml", "task: missing"],
    ),
    "nothing to predict": (after("predict", "run"), "at least one text", ["TEXT"]),
    "texts that are not there": (after("predict", "run", "--file", "none.txt"), "a text file in UTF-8", ["none.txt"]),
    "texts in another encoding": (
        lambda world: ["predict", "run", "--file", world.write("own.txt", b"\xff\xfe\x81")], "a text file in UTF-8",
        ["own.txt"],
    ),
    "a merged model that is cut off": (
        after("predict", "run", "a goal", **{"merged/model.safetensors": b"\x00" * 50}), "cannot be used", ["merged"],
    ),
    # beginning
    "a recipe over another file": (
        lambda world: ["init", world.write("own.yaml", "mine")], "--force replaces it", ["FILE", "own.yaml"],
    ),
    "a recipe into no folder": (arguments("init", "none/own.yaml"), "a file in a folder that exists", ["none/"]),
    "a recipe for no file": (arguments("init", "own.yaml", "--train", "none.csv"), NO_CSV, ["--train", "none.csv"]),
    "a recipe for an empty file": (
        lambda world: ["init", "own.yaml", "--train", world.write("own.csv", "")], "a column of", ["it is empty"],
    ),
    "a recipe for a missing column": (
        lambda world: ["init", "own.yaml", "--train", world.write("own.csv", ROWS), "--label-column", "stars"],
        "a column of", ["--label-column", "stars", "text, label"],
    ),
    "a recipe for no model": (arguments("init", "--model", "./none"), "a folder that exists", ["--model", "./none"]),
    "a recipe for a folder without a model": (
        lambda world: [world.write("model/notes.txt", "") and "init", "--model", "model"], NO_MODEL, ["config.json"],
    ),
    "a recipe for no space": (arguments("init", "--space", "nothing"), SHIPPED, ["--space", "nothing", "glora-paper"]),
    "a recipe for a negative budget": (
        arguments("init", "--budget", "-3"), "allowed: greater than or equal to", ["search.max_params", "-3"],
    ),
    "a space to show that is none": (arguments("spaces", "show", "nothing"), SHIPPED, ["nothing", "glora-ranks"]),
    "a space for no model": (
        arguments("spaces", "show", "glora", "--model", "owner/none"), NO_MODEL, ["--model", "owner/none"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("prepare", "stable", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_input_is_a_message_and_exit_code_2_and_changes_nothing(world, call, prepare, stable, words):
    command = prepare(world)
    before = world.files()
    code, out, err = call(*command)
    assert code == 2, err
    assert err.startswith("error: ")
    assert "Traceback" not in out + err
    for word in [stable, *words]:
        assert word in err
    after = world.files()
    after.pop(str(world.folder / "run" / ".lock"), None)
    before.pop(str(world.folder / "run" / ".lock"), None)
    assert after == before


@pytest.mark.parametrize("stable", sorted({stable for _, stable, _ in WRONG.values()}))
def test_the_documentation_explains_the_message(stable):
    assert stable.rstrip(":") in ERRORS


def test_a_password_is_never_shown(world, call):
    world.finished(search__stage_json=None)
    _, out, err = call("search", "run", "--storage", "postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in out + err


def test_a_run_folder_in_use_is_refused(world, call):
    world.finished(merged=None)
    before = world.files()
    with FileLock(world.folder / "run" / ".lock"):
        code, _, err = call("merge", "run")
    assert code == 2
    assert "a run folder that no other process works in" in err
    assert "a run folder that no other process works in" in ERRORS
    assert world.files() == before


def test_several_processes_for_one_run_are_refused(world, call, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = call(*world.run())
    assert code == 2
    assert "WORLD_SIZE: got '2'" in err
    assert "WORLD_SIZE: got" in ERRORS


@pytest.mark.parametrize("name", ["a recipe that is not there", "a run that is not there", "an unknown command"])
def test_a_process_of_its_own_ends_the_same_way(world, name):
    prepare, stable, _ = WRONG[name]
    package = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "glora_search", *prepare(world)],
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert stable in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
