"""Sources: each format gives the same rows, and says what it lacks."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset

from glora_search.errors import UserError
from glora_search.files.samples import sample
from glora_search.recipe.data import Files, Hub, Saved
from glora_search.tasks.sources import DatasetFiles, open_source
from glora_search.tasks.splits import load_data

ROWS = [{"text": f"text {index}", "label": ["x", "y"][index % 2], "more": index} for index in range(20)]


def load(data, inputs=("text",), target="label", kind="label"):
    return load_data(
        data,
        0,
        inputs=[("data.text_column", name) for name in inputs],
        targets=[("data.label_column", target)] if target else [],
        target=kind,
    )


def write(kind, folder, rows, name="train"):
    path = folder / f"{name}.{kind}"
    if kind == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif kind == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif kind == "list.json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def source(kind):
    return kind if kind in ("csv", "parquet") else "json"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "list.json", "parquet", "saved"])
def test_every_source_gives_the_same_splits(kind, tmp_path):
    reference = load(Files(source="csv", train=write("csv", tmp_path, ROWS, "reference")))
    if kind == "saved":
        DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
        data = load(Saved(source="saved", folder=str(tmp_path / "saved")))
    else:
        data = load(Files(source=source(kind), train=write(kind, tmp_path, ROWS)))
    for found, expected in (
        (data.train, reference.train),
        (data.validation, reference.validation),
        (data.read_test(), reference.read_test()),
    ):
        assert found.to_dict() == expected.to_dict()
    assert set(data.train.column_names) == {"text", "label"}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_test_file_is_read_at_the_end_and_only_its_labels_before(kind, tmp_path, monkeypatch):
    read = []
    original = DatasetFiles.read
    monkeypatch.setattr(DatasetFiles, "read", lambda *a: (read.append(a[1:]), original(*a))[1])
    test = write(kind, tmp_path, [{"text": "new", "label": "x", "more": 0}], "test")
    data = load(Files(source=source(kind), train=write(kind, tmp_path, ROWS), test=test))
    assert [columns for split, columns in read if split == "test"] == [["label"]]
    assert list(data.read_test()["text"]) == ["new"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_label_that_train_does_not_have_and_a_column_that_is_missing_are_named(kind, tmp_path):
    train = write(kind, tmp_path, ROWS)
    other = write(kind, tmp_path, [{"text": "new", "label": "z", "more": 0}], "other")
    with pytest.raises(UserError, match=r"data\.test: got \"label 'z'\".*x, y"):
        load(Files(source=source(kind), train=train, test=other))
    with pytest.raises(UserError, match=r"data\.text_column: got 'body'; allowed: a column of .*text, label, more"):
        load(Files(source=source(kind), train=train), inputs=("body",))


def test_a_file_that_is_broken_or_missing_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{broken")
    for path in (tmp_path / "a.json", tmp_path / "b.json"):
        with pytest.raises(UserError, match=rf"data\.train.*{path.name}"):
            load(Files(source="json", train=str(path)))
    with pytest.raises(UserError, match=r"data\.folder.*save_to_disk"):
        load(Saved(source="saved", folder=str(tmp_path)))


def test_numbered_classes_are_read_as_their_names_in_rows_and_in_lists(tmp_path):
    names = ClassLabel(names=["O", "B-X"])
    rows = {"words": [["a", str(index)] for index in range(10)], "tags": [[0, 1]] * 10, "kind": [0, 1] * 5}
    features = Features({"words": List(Value("string")), "tags": List(names), "kind": names})
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    data = Saved(source="saved", folder=str(tmp_path / "saved"))
    tagged = load(data, inputs=("words",), target="tags", kind="tags")
    assert tagged.labels == ["O", "B-X"]
    assert tagged.train["tags"][0] == ["O", "B-X"]
    single = load(data, inputs=("words",), target="kind")
    assert set(single.train["kind"]) == {"O", "B-X"}


def test_rows_without_labels_need_none_and_equal_inputs_stay_together(tmp_path):
    rows = [{"one": f"a {n % 5}", "two": f"b {n % 10}", "answer": str(n)} for n in range(40)]
    data = load(
        Files(source="json", train=write("jsonl", tmp_path, rows)),
        inputs=("one", "two"),
        target="answer",
        kind=None,
    )
    assert data.labels == []
    splits = [
        set(zip(part["one"], part["two"], strict=True)) for part in (data.train, data.validation, data.read_test())
    ]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 10
    assert set(data.train.column_names) == {"one", "two", "answer"}


def test_equal_inputs_stay_together_where_a_rare_label_has_to_stay_in_train(tmp_path):
    rows = [{"text": f"text {n}", "label": "x"} for n in range(10)]
    rows += [{"text": text, "label": label} for text in (None, "rare") for label in ("x", f"only {text}")]
    rows.append({"text": "", "label": "x"})  # the same input as a missing one
    path = write("jsonl", tmp_path, rows)
    for seed in range(12):
        data = load_data(
            Files(source="json", train=path), seed, inputs=[("data.text_column", "text")], targets=[("y", "label")]
        )
        parts = (data.train, data.validation, data.read_test())
        splits = [{text or "" for text in part["text"]} for part in parts]
        assert sum(map(len, splits)) == len(set.union(*splits)) == 12


def test_equal_images_stay_together_and_a_class_is_its_folders_name(make, tmp_path):
    make.images(tmp_path / "a", 20)
    for number in range(0, 20, 2):  # each dark image twice
        path = tmp_path / "a" / "dark" / f"{number}.png"
        (path.parent / f"again-{number}.png").write_bytes(path.read_bytes())
    data = load(Files(source="imagefolder", train=str(tmp_path / "a")), inputs=("image",))
    assert data.labels == ["dark", "light"]
    parts = [data.train, data.validation, data.read_test()]
    splits = [{image.tobytes() for image in part["image"]} for part in parts]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 20
    assert sum(map(len, parts)) == 30


def test_images_without_a_folder_for_each_class_are_refused(make, tmp_path):
    with pytest.raises(UserError, match=r"data\.train.*a folder of images that exists"):
        load(Files(source="imagefolder", train=str(tmp_path / "nothing")), inputs=("image",))
    make.images(tmp_path / "a", 2)
    with pytest.raises(UserError, match=r"each image in the folder of its class"):
        load(Files(source="imagefolder", train=str(tmp_path / "a" / "dark")), inputs=("image",))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dark/one.heic", "images of a kind that datasets reads"),
        ("dark/one", "images of a kind that datasets reads"),
        ("one.png", "each image in the folder of its class"),
        ("dark/Thumbs.db", None),
        ("dark/LICENSE", None),
        (".cache/one", None),
        ("README.md", None),
    ],
)
def test_images_that_would_be_left_out_or_would_make_a_class_are_refused(make, tmp_path, name, words):
    make.images(tmp_path / "a", 20)
    (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
    image = (tmp_path / "a" / "dark" / "0.png").read_bytes()
    (tmp_path / "a" / name).write_bytes(b"no image" if name.isupper() or name.endswith("LICENSE") else image)
    data = Files(source="imagefolder", train=str(tmp_path / "a"))
    if words is None:
        assert load(data, inputs=("image",)).labels == ["dark", "light"]
        return
    with pytest.raises(UserError, match=rf"data\.train: got '.*{name}'; allowed: {words}"):
        load(data, inputs=("image",))


def test_images_without_labels_need_no_folders(make, tmp_path):
    make.images(tmp_path / "a", 20)
    source = open_source(Files(source="imagefolder", train=str(tmp_path / "a" / "dark")))
    assert len(source.read("train", ["image"])) == 10


def test_a_split_of_a_saved_data_set_that_is_missing_is_named(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"data\.test: got 'holdout'.*train"):
        load(Saved(source="saved", folder=str(tmp_path / "saved"), test="holdout"))


@pytest.mark.parametrize("format_", ["torch", "numpy", "pandas"])
def test_a_saved_data_set_is_read_without_its_format(tmp_path, format_):
    rows = [{"text": ["a", str(n)], "label": n % 12, "tags": ["O", f"B-{n % 2}"]} for n in range(48)]
    saved = Dataset.from_list(rows).with_format(format_)
    saved.save_to_disk(tmp_path / "one")
    DatasetDict({"train": saved}).save_to_disk(tmp_path / "splits")
    for folder in ("one", "splits"):
        data = Saved(source="saved", folder=str(tmp_path / folder))
        assert load(data).labels == [str(n) for n in range(12)]
        assert load(data, target="tags", kind="tags").labels == ["B-0", "B-1", "O"]
        assert load(data, target="tags", kind="labels").labels == ["B-0", "B-1", "O"]


def test_nan_is_missing_in_inputs_too_and_in_what_is_learned(tmp_path):
    rows = [{"text": f"text {n % 30}", "number": float("nan") if n % 3 else n % 30 / 2} for n in range(60)]
    train = write("jsonl", tmp_path, [{**row, "answer": n / 2} for n, row in enumerate(rows)])
    data = load(Files(source="json", train=train), inputs=("text", "number"), target="answer", kind=None)
    parts = (data.train, data.validation, data.read_test())
    assert {number is None for part in parts for number in part["number"]} == {True, False}
    assert sum(len(set(part["text"])) for part in parts) == 30  # equal inputs stay together
    with pytest.raises(UserError, match=r"data\.label_column: got 'number'.*value in every row: row 2 of .* has none"):
        load(Files(source="json", train=train), target="number", kind=None)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_missing_image_is_named_with_its_row(make, tmp_path, split):
    make.images(tmp_path / "a", 20)
    whole = load_dataset("imagefolder", data_dir=str(tmp_path / "a"), split="train")
    lacking = whole.map(lambda row, n: {"image": None if n == 3 else row["image"]}, with_indices=True)
    DatasetDict({"train": whole, "validation": whole, split: lacking}).save_to_disk(tmp_path / "saved")
    data = Saved(source="saved", folder=str(tmp_path / "saved"), validation="validation")
    with pytest.raises(UserError, match=rf"value in every row: row 4 of .*, split {split} has none"):
        load(data, inputs=("image",))


def test_a_hub_folder_of_json_lines_is_read_too(tmp_path):
    write("jsonl", tmp_path, ROWS)
    assert load(Hub(source="hub", name=str(tmp_path))).labels == ["x", "y"]


def test_dates_that_jsons_reader_makes_times_of_are_refused_and_csv_keeps_them(tmp_path):
    rows = [{"text": f"text {n}", "label": f"2020-01-0{n % 2 + 1}"} for n in range(8)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(Files(source="json", train=str(tmp_path / "a.jsonl")))
    with pytest.raises(UserError, match=r"data\.train: got '.*a\.jsonl, column label'; allowed: text other than dates"):
        source.read("train", ["text", "label"])
    assert source.read("train", ["text"])["text"] == [row["text"] for row in rows]
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    kept = open_source(Files(source="csv", train=str(tmp_path / "a.csv"))).read("train", ["label"])
    assert kept["label"] == [row["label"] for row in rows]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_is_the_one_that_its_name_says_whatever_characters_it_has(kind, tmp_path):
    write(kind, tmp_path, ROWS[:6], "rows1")  # which `rows[1]` matches as a pattern
    path = write(kind, tmp_path, ROWS, "rows[1]")
    found = open_source(Files(source=source(kind), train=path))
    assert found.read("train", ["text"])["text"] == [row["text"] for row in ROWS]
    assert found.columns("train") == ["text", "label", "more"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_that_was_replaced_is_read_anew_whatever_its_time(kind, tmp_path):
    for rows in (ROWS, [{**row, "text": "new"} for row in ROWS]):
        path = write(kind, tmp_path, rows)
        os.utime(path, (1e9, 1e9))
        assert open_source(Files(source=source(kind), train=path)).read("train", ["text"])[0]["text"] == rows[0]["text"]


def test_a_folder_of_images_is_read_whole_whatever_its_names(tmp_path, make):
    folder = tmp_path / "images [1]"
    make.images(folder, 4)
    (folder / "dark").rename(folder / "__background__")
    (folder / "__empty").mkdir()
    rows = open_source(Files(source="imagefolder", train=str(folder))).read("train", ["label"])
    assert rows.features["label"].names == ["__background__", "light"]
    assert sorted(rows["label"]) == [0, 0, 1, 1]


def test_a_data_folder_that_is_a_pattern_of_other_folders_is_refused(tmp_path):
    for name in ("part [1]", "part 1", "all*", "star*"):
        (tmp_path / name).mkdir()
        write("csv", tmp_path / name, ROWS)
    (tmp_path / "all of them").mkdir()
    for name in ("part [1]", "all*"):
        folder = str(tmp_path / name)
        for read in (lambda: load(Hub(source="hub", name=folder)), lambda: sample("--train", folder)):  # noqa: B023
            with pytest.raises(UserError, match=r"a folder without \*, \? and \["):
                read()
    assert load(Hub(source="hub", name=str(tmp_path / "star*"))).labels == ["x", "y"]


TEXTS = ["007", '"quoted"', "true", "null", "[1, 2]", '{"a": 1}', "2019"]
"""Texts that are json too."""


@pytest.mark.parametrize("kind", ["jsonl", "list.json"])
@pytest.mark.parametrize("odd", ["42", "NaN", "1e3", "true"])
def test_texts_beside_numbers_are_read_as_they_are_written(kind, odd, tmp_path):
    rows = [*({"text": text, "label": "01"} for text in TEXTS), {"text": "ODD", "label": 2}]
    path = tmp_path / "train.json"
    path.write_text(Path(write(kind, tmp_path, rows)).read_text().replace('"ODD"', odd))
    read = DatasetFiles(Files(source="json", train=str(path))).read("train", ["text", "label"])
    assert list(read["text"]) == [*TEXTS, None if odd == "NaN" else odd]
    assert list(read["label"]) == [*["01"] * len(TEXTS), "2"]


def test_single_labels_beside_lists_of_them_are_lists(tmp_path):
    rows = [{"text": str(n), "label": label} for n, label in enumerate(["a", ["a", "b"], 7, None])]
    read = DatasetFiles(Files(source="json", train=write("jsonl", tmp_path, rows))).read("train", ["label"])
    assert list(read["label"]) == [["a"], ["a", "b"], ["7"], None]


@pytest.mark.parametrize("kind", ["parquet", "gz", "folder"])
def test_conversations_whose_turns_have_other_keys_are_read_from_every_source(kind, tmp_path):
    turns = [{"role": "user", "content": "007"}, {"role": "assistant", "content": "5", "more": [1]}]
    rows, path = [{"turns": turns}, {"turns": turns[:1]}], tmp_path / "train.jsonl"
    Path(write("jsonl", tmp_path, rows))
    if kind == "folder":
        read = open_source(Hub(source="hub", name=str(tmp_path))).read("train", ["turns"])
    elif kind == "gz":
        (tmp_path / "packed.gz").write_bytes(gzip.compress(path.read_bytes()))
        read = DatasetFiles(Files(source="json", train=str(tmp_path / "packed.gz"))).read("train", ["turns"])
    else:
        load_dataset("json", data_files=str(path), split="train").to_parquet(tmp_path / "train.parquet")
        read = DatasetFiles(Files(source="parquet", train=str(tmp_path / "train.parquet"))).read("train", ["turns"])
    assert [[turn["content"] for turn in turns] for turns in read["turns"]] == [["007", "5"], ["007"]]


def test_lists_of_texts_beside_numbers_and_conversations_are_read_as_they_are_written(tmp_path):
    turns = [{"role": "user", "content": "007"}, {"role": "assistant", "content": "5", "more": [1]}]
    rows = [{"choices": ["01", "x"], "turns": turns}, {"choices": ["y", 2], "turns": turns[:1]}]
    read = DatasetFiles(Files(source="json", train=write("jsonl", tmp_path, rows))).read("train", ["choices", "turns"])
    assert list(read["choices"]) == [["01", "x"], ["y", "2"]]
    assert [[turn["content"] for turn in turns] for turns in read["turns"]] == [["007", "5"], ["007"]]


def test_texts_beside_numbers_in_a_data_set_whose_splits_have_names_are_refused(tmp_path):
    write("jsonl", tmp_path, [*ROWS, {"text": 7, "label": "x", "more": 0}])
    with pytest.raises(
        UserError, match=r"^data\.train: got '.*column text'; allowed: values of one kind, such as text"
    ):
        load(Hub(source="hub", name=str(tmp_path)))


def test_a_folder_that_changes_with_its_time_kept_is_read_anew(tmp_path):
    path = write("jsonl", tmp_path, ROWS)
    then = os.stat(path)
    assert load(Hub(source="hub", name=str(tmp_path))).labels == ["x", "y"]
    write("jsonl", tmp_path, [{**row, "label": row["label"].replace("x", "z")} for row in ROWS])
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert load(Hub(source="hub", name=str(tmp_path))).labels == ["y", "z"]


@pytest.mark.parametrize(("encoding", "words"), [("cp1252", "maybe Windows-1252"), ("utf-16", "this is UTF-16")])
def test_json_that_is_not_utf8_is_refused(encoding, words, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(
        "\n".join(json.dumps({**row, "text": "café"}, ensure_ascii=False) for row in ROWS).encode(encoding)
    )
    for data in (Files(source="json", train=str(path)), Hub(source="hub", name=str(tmp_path))):
        with pytest.raises(UserError, match=rf"^data\.\w+: got .*train\.jsonl'; allowed: .*UTF-8 \(line 1: .*{words}"):
            load(data)


@pytest.mark.parametrize("packer", [gzip, bz2, lzma], ids=lambda packer: packer.__name__)
def test_packed_json_is_read(packer, tmp_path):
    packed = tmp_path / "packed"
    packed.write_bytes(packer.compress(Path(write("jsonl", tmp_path, ROWS)).read_bytes()))
    assert load(Files(source="json", train=str(packed))).labels == ["x", "y"]
