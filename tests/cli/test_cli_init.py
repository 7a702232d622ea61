"""``init``: the recipe that it writes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from glora_search.recipe.prompts import prompt_columns
from glora_search.recipe.schema import TASKS, BaselineTraining, Finals, Recipe, Retrain, Search, Supernet
from glora_search.recipe.template import recipe_template


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_without_options_it_writes_a_recipe_that_loads(call, tmp_path):
    code, out, err = call("init")
    assert (code, err) == (0, "")
    assert "then run: glora-search run recipe.yaml" in out
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert recipe.name == "recipe"
    assert recipe.search.max_params == 60_000


def test_the_command_that_comes_next_can_be_given_to_a_shell(call):
    assert "then run: glora-search run 'my recipe.yaml'" in call("init", "my recipe.yaml")[1]


def test_options_are_in_the_recipe(call, tmp_path, tiny_csv, tiny_model):
    options = {
        "--model": tiny_model,
        "--train": tiny_csv["train"],
        "--test": tiny_csv["test"],
        "--space": "lora-ranks",
        "--budget": 700,
        "--trials": 9,
    }
    code, out, _ = call("init", "my first: try.yaml", *(word for pair in options.items() for word in pair))
    assert code == 0
    assert "my first: try.yaml: written" in out
    recipe = Recipe.load(tmp_path / "my first: try.yaml")
    assert recipe.name == "my-first-try"
    assert recipe.task.model == str(tiny_model)
    assert (recipe.data.train, recipe.data.validation, recipe.data.test) == (tiny_csv["train"], None, tiny_csv["test"])
    assert (recipe.space, recipe.search.max_params, recipe.search.trials) == ("lora-ranks", 700, 9)


def test_the_columns_of_the_data_are_used(call, tmp_path):
    (tmp_path / "stars.csv").write_text('review,"how many: #"\nfine,5\n')
    assert call("init", "--train", "stars.csv", "--text-column", "review", "--label-column", "how many: #")[0] == 0
    assert Recipe.load("recipe.yaml").data.label_column == "how many: #"


def test_a_value_that_looks_like_a_comment_stays_as_it_is(call, tmp_path):
    (tmp_path / "my # file.csv").write_text("text,label\nfine,5\n")
    assert call("init", "--train", "my # file.csv")[0] == 0
    assert Recipe.load("recipe.yaml").data.train == "my # file.csv"
    assert "  train: 'my # file.csv'        # a csv file" in (tmp_path / "recipe.yaml").read_text()


def test_force_replaces_a_recipe(call, tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine")
    assert call("init")[0] == 2
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert call("init", "--force")[0] == 0
    assert Recipe.load("recipe.yaml").name == "recipe"


def test_what_it_writes_runs(call, tmp_path, tiny_csv, tiny_model):
    given = ("--train", tiny_csv["train"], "--model", tiny_model, "--budget", 1000)
    assert call("init", *given)[0] == 0
    assert call("prepare", "recipe.yaml", "--set", "task.max_length=16")[0] == 0
    assert (tmp_path / "runs" / "recipe" / "space.yaml").is_file()


def test_every_key_that_is_commented_out_stands_with_its_default():
    text = recipe_template("x", {})
    plain = Recipe.model_validate(yaml.safe_load(text))
    everything = re.sub(r"^( +)#(\w+:)", r"\1\2", text, flags=re.MULTILINE)
    assert everything != text
    assert Recipe.model_validate(yaml.safe_load(everything)) == plain


@pytest.mark.parametrize("section", [Recipe, Supernet, Search, Retrain, Finals, BaselineTraining])
def test_every_key_of_a_section_is_in_it(section):
    keys = {field.alias or name for name, field in section.model_fields.items()}
    text = yaml.safe_load(re.sub(r"^(\s*)#( *\w+:)", r"\1\2", recipe_template("x", {}), flags=re.MULTILINE))
    parts = {Supernet: "supernet", Search: "search", Retrain: "retrain", Finals: "finals", BaselineTraining: "baseline"}
    part = parts.get(section)
    assert set(text if part is None else text[part]) == keys


# -- what the data tells -----------------------------------------------------------------------------------------------

TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "We."}]
KINDS = {
    "conversations": ({"id": "a", "messages": TURNS}, "causal-lm", {"messages_column": "messages"}),
    "conversations by another name": ({"chat": TURNS}, "causal-lm", {"messages_column": "chat"}),
    "prompts of messages": (
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        "causal-lm",
        {"text_column": "prompt", "response_column": "completion"},
    ),
    "alpaca": ({"instruction": "a", "input": "", "output": "b"}, "causal-lm", {"response_column": "output"}),
    "answers": (
        {"prompt": "a", "completion": "b"},
        "causal-lm",
        {"text_column": "prompt", "response_column": "completion"},
    ),
    "texts": ({"text": "a", "url": "b"}, "causal-lm", {"text_column": "text"}),
    "classes": ({"review": "a", "stars": 3}, "text-classification", {"text_column": "review", "label_column": "stars"}),
    "numbers": ({"text": "a", "score": 0.5}, "text-regression", {"text_column": "text", "label_column": "score"}),
    "several": ({"text": "a", "labels": ["x", "y"]}, "multi-label", {"text_column": "text", "label_column": "labels"}),
    "pairs": (
        {"premise": "a", "hypothesis": "b", "label": "x"},
        "text-classification",
        {"text_column": "premise", "text_pair_column": "hypothesis", "label_column": "label"},
    ),
    "tags": (
        {"tokens": ["a"], "ner_tags": ["O"]},
        "token-classification",
        {"text_column": "tokens", "label_column": "ner_tags"},
    ),
}


def write_splits(folder: str, **splits: list[dict[str, Any]]) -> None:
    """A folder with a file for each split, as it is on the hub."""
    Path(folder).mkdir()
    for split, rows in splits.items():
        (Path(folder) / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("format_", ["json", "jsonl", "parquet", "saved", "folder"])
@pytest.mark.parametrize(("row", "type_", "columns"), KINDS.values(), ids=KINDS.keys())
def test_task_and_columns_are_told_by_the_data_in_every_format(call, format_, row, type_, columns):
    rows = [row] * 3
    if format_ == "saved":
        DatasetDict({"train": Dataset.from_list(rows), "dev": Dataset.from_list(rows)}).save_to_disk("rows")
        path, source = "rows", {"source": "saved", "folder": "rows", "validation": "dev"}
    elif format_ == "folder":
        write_splits("rows", train=rows, dev=rows)
        path, source = "rows", {"source": "hub", "name": "rows", "validation": "validation"}
    else:
        path = f"rows.{format_}"
        source = {"source": format_.removesuffix("l"), "train": path}
        if format_ == "parquet":
            pd.DataFrame(rows).to_parquet(path)
        else:
            Path(path).write_text(json.dumps(rows) if format_ == "json" else "\n".join(map(json.dumps, rows)))
    code, out, err = call("init", "--train", path)
    assert code == 0, err
    assert type_ in out
    recipe = Recipe.load("recipe.yaml")
    assert recipe.task.type == type_
    data = recipe.data.model_dump()
    assert {key: data[key] for key in {**source, **columns}} == {**source, **columns}
    assert bool(recipe.task.prompts) is ("instruction" in row)
    if type_ == "causal-lm":
        assert recipe.task.model.startswith("HuggingFaceTB/SmolLM2")
        assert recipe.task.model.endswith("Instruct") is ("messages_column" in columns)


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set, ``owner/rows``, which has the configuration ``de``; its test rows have no labels."""
    labelled, hidden = [{"text": "a", "label": "x"}] * 3, [{"text": "a", "label": ""}] * 3
    write_splits("hub", train=[{**row, "note": "b"} for row in labelled], valid=labelled, test=hidden)
    load = datasets.load_dataset

    def load_dataset(name: str, config: str | None = None, **options: Any) -> Any:
        if (name, config) == ("owner/rows", "de"):
            return load("hub", **options)
        raise ValueError(f"Config name is missing.\nPlease pick one among the available configs: {['de']}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.usefixtures("hub")
def test_a_data_set_on_the_hub_has_its_splits_but_for_one_without_labels(call):
    code, out, err = call("init", "--train", "owner/rows", "--config", "de")
    assert code == 0, err
    data = Recipe.load("recipe.yaml").data
    assert (data.source, data.name, data.config, data.label_column) == ("hub", "owner/rows", "de", "label")
    assert (data.train, data.validation, data.test) == ("train", "validation", None)
    assert "test: the split test of owner/rows is left out, since its label is not known" in " ".join(out.split())


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--train", "owner/rows"), "pick one among the available configs: ['de']"),
        (("--train", "owner/rows", "--config", "de", "--test", "test"), "owner/rows has its own splits"),
        (("--train", "hub/train.jsonl", "--config", "de"), "is no data set on the hub"),
        (("--config", "de"), "nothing without --train"),
    ],
)
def test_what_a_data_set_on_the_hub_does_not_have_is_refused(call, options, message):
    code, out, err = call("init", *options)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(("hidden", "kept"), [(-1, False), (-1.0, False), (0, True)])
def test_a_split_whose_labels_are_all_minus_one_is_left_out(call, hidden, kept):
    write_splits("rows", train=[{"text": "a", "label": 1}], test=[{"text": "b", "label": hidden}])
    assert call("init", "--train", "rows")[0] == 0
    assert (Recipe.load("recipe.yaml").data.test == "test") is kept


def test_a_cloned_data_set_is_no_folder_of_images(call):
    write_splits("rows", train=[{"text": "a", "label": "x"}])
    for name in ("rows/.git/HEAD", "rows/README.md", "rows/data/LICENSE"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    assert call("init", "--train", "rows")[0] == 0
    assert Recipe.load("recipe.yaml").data.source == "hub"


def test_a_home_folder_is_read(call, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_splits("rows", train=[{"text": "a", "label": "x"}])
    assert call("init", "--train", "~/rows")[0] == 0
    assert Recipe.load("recipe.yaml").data.name == str(tmp_path / "rows")


def test_a_recipe_for_a_folder_of_splits_runs(call, tmp_path, tiny_csv, tiny_model):
    Path("rows").mkdir()
    for split in ("train", "test"):
        shutil.copy(tiny_csv[split], Path("rows") / f"{split}.csv")
    assert call("init", "--train", "rows", "--model", tiny_model, "--budget", 1000)[0] == 0
    code, _, err = call("prepare", "recipe.yaml", "--set", "task.max_length=16")
    assert code == 0, err


def test_alpacas_prompt_takes_rows_with_and_without_an_input(call):
    Path("rows.json").write_text(json.dumps([{"instruction": "a", "input": "{x}", "output": "b"}] * 2))
    assert call("init", "--train", "rows.json")[0] == 0
    prompts = Recipe.load("recipe.yaml").task.prompts
    assert [prompt_columns(prompt) for prompt in prompts] == [["instruction", "input"], ["instruction"]]
    assert prompts[1] == "### Instruction:\n{instruction}\n\n### Response:\n"


def test_a_tab_separates_the_columns_of_a_tsv_file(call):
    Path("rows.tsv").write_text("text\tlabel, of it\na, b\tx\n")
    assert call("init", "--train", "rows.tsv", "--label-column", "label, of it")[0] == 0
    data = Recipe.load("recipe.yaml").data
    assert (data.source, data.separator, data.label_column) == ("csv", "\t", "label, of it")


def test_folders_of_images_are_classes_of_images(call):
    for name in ("train/dark/a.png", "train/light/b.png", "test/dark/c.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    assert call("init", "--train", "train", "--test", "test")[0] == 0
    recipe = Recipe.load("recipe.yaml")
    assert (recipe.task.type, recipe.data.source) == ("image-classification", "imagefolder")
    assert (recipe.data.train, recipe.data.test) == ("train", "test")


@pytest.mark.parametrize("type_", TASKS)
def test_a_recipe_of_every_task_is_valid_without_data(call, type_):
    code, out, err = call("init", "--task", type_)
    assert code == 0, err
    assert "is an example" in out
    assert Recipe.load("recipe.yaml").task.type == type_


def test_a_task_that_reads_the_same_columns_can_be_chosen(call):
    Path("rows.jsonl").write_text(json.dumps({"text": "a", "response": "b", "label": "1"}))
    assert call("init", "--train", "rows.jsonl", "--task", "seq2seq-lm")[0] == 0
    assert Recipe.load("recipe.yaml").task.type == "seq2seq-lm"
    assert call("init", "--train", "rows.jsonl", "--task", "text-regression", "--force")[0] == 0
    assert Recipe.load("recipe.yaml").task.type == "text-regression"


WRONG = {
    "columns that say nothing": ({"a": "x", "b": "y"}, (), "data whose columns say what is learned"),
    "a task that they do not fit": ({"text": "x", "label": "y"}, ("--task", "token-classification"), "--label-column"),
    "many columns": ({f"column {n}": "x" * 999 for n in range(999)}, (), "and 979 more"),
    "long names": ({"x" * 9999: "a", "y": "b"}, (), "xxx..."),
    "marks for labels": ({"text": "x", "labels": [1, 0, 1]}, (), "--label-column: got [1, 0, 1]; allowed: lists"),
    "another column": ({"text": "x", "label": "y"}, ("--messages-column", "chat"), "--messages-column: got 'chat'"),
}


@pytest.mark.parametrize(("row", "options", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_told_is_a_short_message(call, row, options, message):
    Path("rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row))
    code, out, err = call("init", "--train", "rows.jsonl", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err) < 1500
    assert not Path("recipe.yaml").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("rows.csv", "\n\ntext,label\na,x\n"),
        ("rows.json", ' \n[{"text": "a", "label": "x"}]'),
        ("rows.jsonl", '\n\n{"text": "a", "label": "x"}\n'),
    ],
)
def test_white_space_before_the_first_row_is_none(call, file, content):
    Path(file).write_text(content)
    code, _, err = call("init", "--train", file)
    assert code == 0, err
    assert Recipe.load("recipe.yaml").task.type == "text-classification"


@pytest.mark.parametrize(("file", "content"), [("rows.csv", "text,label\n"), ("rows.json", "[]"), ("rows.jsonl", "\n")])
def test_data_without_rows_is_said_to_have_none(call, file, content):
    Path(file).write_text(content)
    code, _, err = call("init", "--train", file)
    assert (code, "it has no rows" in err) == (2, True)


def test_json_that_is_nested_without_end_is_refused(call):
    Path("rows.json").write_text("[" * 100_000)
    code, _, err = call("init", "--train", "rows.json")
    assert (code, "allowed: a json file" in err) == (2, True)


def test_a_row_of_no_class_does_not_hide_the_others(call):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [-1, 0]}, features=features).save_to_disk("rows")
    code, _, err = call("init", "--train", "rows")
    assert code == 0, err
    assert Recipe.load("recipe.yaml").task.type == "text-classification"


def test_texts_beside_a_column_of_classes_are_no_corpus_unless_it_is_said(call):
    rows = [{"text": f"text {n}", "mood": ["good", "bad"][n % 2], "lang": ["en", "de"][n % 2]} for n in range(8)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, _, err = call("init", "--train", "rows.jsonl")
    assert code == 2
    assert "--label-column" in err
    assert call("init", "--train", "rows.jsonl", "--label-column", "mood")[0] == 0
    assert Recipe.load("recipe.yaml").task.type == "text-classification"
    assert call("init", "--train", "rows.jsonl", "--task", "causal-lm", "--force")[0] == 0
    assert Recipe.load("recipe.yaml").task.type == "causal-lm"


@pytest.mark.parametrize(("topic", "type_"), [("{0}", "text-classification"), ("{0} of {1}", "causal-lm")])
def test_a_column_called_topic_is_one_of_labels_where_it_has_classes(call, topic, type_):
    rows = [{"text": f"text {n}", "topic": topic.format("ab"[n % 2], n), "lang": "en"} for n in range(8)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert call("init", "--train", "rows.jsonl")[0] == 0
    assert Recipe.load("recipe.yaml").task.type == type_


def test_a_label_that_is_missing_does_not_make_classes_numbers(call):
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(20)] + [{"text": "more", "label": float("nan")}]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert call("init", "--train", "rows.jsonl")[0] == 0
    assert Recipe.load("recipe.yaml").task.type == "text-classification"
