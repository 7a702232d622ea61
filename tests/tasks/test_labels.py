"""Labels: the contract that holds for every task that has them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from glora_search.errors import UserError
from glora_search.recipe.data import Files, Saved
from glora_search.tasks.labels import folded, in_order, in_order_of, read_targets
from glora_search.tasks.splits import load_data

INPUTS, TARGETS = [("data.text_column", "text")], [("data.label_column", "label")]


def load(data, target="label"):
    return load_data(data, 0, inputs=INPUTS, targets=TARGETS, target=target)


def csv(path, rows, header="text,label"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def rows(count, labels=("x", "y"), start=0):
    return [f"text {index},{labels[index % len(labels)]}" for index in range(start, start + count)]


def read(path, labels, times=4, target="label"):
    """The labels of a file of json with each of these so many times."""
    lines = [{"text": f"text {n}", "label": label} for n, label in enumerate(list(labels) * times)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return load(Files(source="json", train=str(path)), target)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_label_that_train_does_not_have_is_named(tmp_path, split):
    other = csv(tmp_path / "o.csv", rows(10, labels=("x", "z"), start=50))
    with pytest.raises(UserError, match=rf"data\.{split}.*'z'.*x, y"):
        load(Files(source="csv", train=csv(tmp_path / "a.csv", rows(20)), **{split: other}))


@pytest.mark.parametrize("target", ["label", "labels", "number"])
def test_a_single_label_or_number_is_refused(tmp_path, target):
    train = csv(tmp_path / "a.csv", rows(20, labels=("1",)))
    with pytest.raises(UserError, match=r"data\.label_column.*at least 2 different"):
        load(Files(source="csv", train=train), target)


@pytest.mark.parametrize(("lines", "word"), [([], "no rows"), (["a text,"], "no label in row 1")])
def test_rows_without_a_label_and_files_without_rows_are_refused(tmp_path, lines, word):
    with pytest.raises(UserError, match=word):
        load(Files(source="csv", train=csv(tmp_path / "a.csv", lines)))


def test_outer_white_space_and_unicode_forms_separate_no_labels(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert composed != decomposed
    data = read(tmp_path / "a.json", [composed, f" {decomposed}\u00a0", "tea", "tea\t", "\u2003tea"])
    assert data.labels == [composed, "tea"]
    assert set(data.train["label"]) == {composed, "tea"}


def test_labels_that_letter_case_alone_separates_are_refused_with_counts(tmp_path):
    with pytest.raises(UserError, match=r"data\.label_column.*Sports \(4 times\), sports \(8 times\).*letter case"):
        read(tmp_path / "a.json", ["Sports", "sports", "tech", "sports"])
    other = csv(tmp_path / "o.csv", rows(10, labels=("x", "X"), start=50))
    for split in ("validation", "test"):
        with pytest.raises(UserError, match=rf"data\.{split}.*X \(5 times\), x \(15 times\).*letter case"):
            load(Files(source="csv", train=csv(tmp_path / "a.csv", rows(20)), **{split: other}))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["sports", "spo\u200brts", "tech"], r"sports \(4 times\), spo\\u200brts \(4 times\).*these look alike"),
        (["\uff53ports", "sports", "tech"], "these look alike"),
        (["1", "1.0", "2"], r"1 \(4 times\), 1\.0 \(4 times\).*these are one number"),
        (["01", "1", "2"], "these are one number"),
        (['"sports"', "sports", "tech"], "these look alike"),
    ],
)
def test_labels_that_look_alike_and_two_spellings_of_a_number_are_refused(tmp_path, labels, words):
    with pytest.raises(UserError, match=rf"data\.label_column.*{words}"):
        read(tmp_path / "a.json", labels)


def test_labels_whose_difference_can_be_seen_are_kept(tmp_path):
    flags = [
        "\U0001f3f4" + "".join(chr(0xE0000 + ord(mark)) for mark in f"gb{land}") + "\U000e007f"
        for land in ("eng", "sct")
    ]
    for labels in (flags, ["I", "\u0131"], ["1.0", "1", "one"], ["1_0", "10", "x"]):
        assert sorted(read(tmp_path / "a.json", labels).labels) == sorted(labels)
    assert read(tmp_path / "a.json", ["\ufefftea\u200b", "tea", "\u00adcoffee"]).labels == ["coffee", "tea"]


def test_numbers_are_in_numeric_order_and_other_labels_sorted(tmp_path):
    numbers = [str(n) for n in (10, 1, 12, 2, -3)]
    assert read(tmp_path / "a.json", numbers).labels == ["-3", "1", "2", "10", "12"]
    assert read(tmp_path / "a.json", [*numbers, "none"]).labels == ["-3", "1", "10", "12", "2", "none"]
    assert read(tmp_path / "a.json", [3.0, 20.0, 5.0]).labels == ["3", "5", "20"]  # as json writes them elsewhere


@pytest.mark.parametrize("target", ["label", "tags", "labels"])
def test_a_data_set_that_declares_its_classes_gives_their_order(tmp_path, target):
    names = ClassLabel(names=["low", "medium", " high", "Low"])
    one = target == "label"
    features = Features({"text": Value("string"), "label": names if one else List(names)})
    found = {"text": [str(n) for n in range(40)], "label": [n % 4 if one else [n % 4] for n in range(40)]}
    DatasetDict({"train": Dataset.from_dict(found, features=features)}).save_to_disk(tmp_path / "saved")
    data = load(Saved(source="saved", folder=str(tmp_path / "saved")), target)
    assert data.labels == ["low", "medium", "high", "Low"]


@pytest.mark.parametrize(
    ("labels", "times"),
    [([n / 64 for n in range(40)], 1), ([0.5, 1, 1.5, 2], 20), (["2.5", "3"], 20), (list(range(30)), 1)],
)
def test_numbers_on_a_scale_are_no_classes(tmp_path, labels, times):
    with pytest.raises(UserError, match=r"data\.label_column.*numbers such as.*text-regression"):
        read(tmp_path / "a.json", labels, times)


def test_numbers_of_many_rows_each_names_with_numbers_and_declared_classes_are_classes(tmp_path):
    assert len(read(tmp_path / "a.json", range(40), 3).labels) == 40
    assert len(read(tmp_path / "a.json", ["v1.5", "v2.5"], 10).labels) == 2
    features = Features({"text": Value("string"), "label": ClassLabel(names=["0.5", "1.5"])})
    found = Dataset.from_dict({"text": [str(n) for n in range(20)], "label": [0, 1] * 10}, features=features)
    found.save_to_disk(tmp_path / "saved")
    assert load(Saved(source="saved", folder=str(tmp_path / "saved"))).labels == ["0.5", "1.5"]


def test_several_labels_in_one_are_refused_where_a_row_has_one(tmp_path):
    for labels in (["sports", "sports|news", "tech"], [["sports", "news"], ["tech"]]):
        with pytest.raises(UserError, match=r"data\.label_column.*task\.type multi-label"):
            read(tmp_path / "a.json", labels)
    assert read(tmp_path / "a.json", ["yes|no", "perhaps"]).labels == ["perhaps", "yes|no"]


def test_several_labels_are_a_list_or_text(tmp_path):
    found = [["b", " a "], "b|a", "a | a|", "", []]
    for labels in (found[:1] + found[4:], found[1:4]):  # json has one kind in a column
        data = read(tmp_path / "a.json", labels, 8, "labels")
        assert data.labels == ["a", "b"]
        assert {tuple(sorted(names)) for names in data.train["label"]} <= {(), ("a",), ("a", "b")}
    with pytest.raises(UserError, match=r"data\.train.*no label in row 3"):
        read(tmp_path / "a.json", ["a", "b", None], 8, "labels")


@pytest.mark.parametrize(
    "marks", [[[1, 0, 1], [0, 1, 0]], [[True, False], [True, True]], [[1.0, 0.0], [0.0, 1.0]], ["1|0|0", "0|1|0"]]
)
def test_a_0_or_1_for_each_label_is_no_list_of_names(tmp_path, marks):
    with pytest.raises(UserError, match=r"data\.label_column: got .*lists of the names.*not a 0 or 1 for each label"):
        read(tmp_path / "a.json", marks, 8, "labels")


def test_names_of_labels_that_are_0_and_1_are_kept(tmp_path):
    for labels in ([["0"], ["1"]], [["0", "1"], ["1"]], [["1", "0"], ["1", "2"]], ["0", "1"]):
        assert read(tmp_path / "a.json", labels, 8, "labels").labels in (["0", "1"], ["0", "1", "2"])


@pytest.mark.parametrize("wrong", ["good", "", "nan", "inf", "1,5", "1_5", None])
def test_what_is_no_number_is_named_with_its_row(tmp_path, wrong):
    lines = [{"text": str(n), "label": value} for n, value in enumerate(["1.5", " 2 ", wrong] * 8)]
    path = tmp_path / "a.json"
    path.write_text("\n".join(map(json.dumps, lines)))
    good = csv(tmp_path / "good.csv", rows(20, labels=("1.5", "2e1")))
    assert set(load(Files(source="csv", train=good), "number").train["label"]) == {1.5, 20.0}
    with pytest.raises(UserError, match=r"data\.train.*a number as every row's target; this is row 3"):
        load(Files(source="json", train=str(path)), "number")


def test_the_numbers_of_the_test_split_are_checked_before_the_work(tmp_path):
    train = csv(tmp_path / "a.csv", rows(20, labels=("1", "2")))
    test = csv(tmp_path / "t.csv", rows(5, labels=("1", "many")))
    with pytest.raises(UserError, match=r"data\.test: got 'many'.*row 2"):
        load(Files(source="csv", train=train, test=test), "number")


def test_the_numbers_of_declared_classes_are_those_in_their_names(tmp_path):
    for names in (["1", "10", "2.5"], ["1", "10", "many"]):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        rows = {"text": [str(n) for n in range(30)], "label": [n % 3 for n in range(30)]}
        Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / names[2])
    found = load(Saved(source="saved", folder=str(tmp_path / "2.5")), "number")
    assert all(row["label"] == [1, 10, 2.5][int(row["text"]) % 3] for row in found.train)
    with pytest.raises(UserError, match=r"data\.train: got 'many'.*a number as every row's target; this is row 3"):
        load(Saved(source="saved", folder=str(tmp_path / "many")), "number")


@pytest.mark.parametrize("labels", [[0.0, float("nan"), 1.0], [["a"], float("nan")], ["a", float("nan")]])
def test_nan_is_a_label_that_is_missing(tmp_path, labels):
    with pytest.raises(UserError, match=r"data\.train: got 'no label in row 2 of .*rows that each have a label"):
        read(tmp_path / "a.json", labels, target="labels" if isinstance(labels[0], list) else "label")


def test_nan_in_a_list_is_a_tag_that_is_missing_and_the_tag_minus_100_is_none(tmp_path):
    with pytest.raises(UserError, match="no label in row 1"):
        read(tmp_path / "a.json", [[0.0, float("nan")], [1.0, 0.0]], target="tags")
    data = read(tmp_path / "b.json", [[-100, 0], [1, -100]], target="tags")
    assert data.labels == ["0", "1"]
    assert {tuple(tags) for tags in data.train["label"]} == {(None, "0"), ("1", None)}


def test_nan_as_text_among_numbers_is_refused_and_among_names_it_is_one(tmp_path):
    with pytest.raises(UserError, match=r"data\.label_column: got 'NaN \(4 times\)'; allowed: labels that are all num"):
        read(tmp_path / "a.json", ["1", "NaN", "2"])
    assert read(tmp_path / "a.json", ["nan", "baguette"]).labels == ["baguette", "nan"]


# -- any labels at all ------------------------------------------------------------------------------------------------

WORDS = st.text(alphabet="aAbBéÉe\u0301 ß1.-", min_size=1, max_size=4)
NUMBERS = st.integers(-20, 120).map(str)
PADDING = st.sampled_from(["", " ", "\t", "\u00a0", "\u2003", "\u200b", " \ufeff"])


@settings(max_examples=150)
@given(
    st.lists(st.tuples(PADDING, st.one_of(WORDS, NUMBERS), PADDING).map("".join), min_size=2, max_size=6),
    st.randoms(use_true_random=False),
)
def test_any_labels_follow_the_contract(tmp_path_factory, written, random):
    path = tmp_path_factory.mktemp("labels") / "a.json"
    names = {unicodedata.normalize("NFC", label).strip("\t \u00a0\u2003\u200b\ufeff") for label in written}
    spellings = Counter(unicodedata.normalize("NFC", name.casefold()) for name in names)
    numbers = [name for name in names if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e-?\d+)?", name, re.IGNORECASE)]
    twice = len(numbers) == len(names) and len({float(name) for name in numbers}) < len(names)
    if "" in names or len(names) < 2 or max(spellings.values()) > 1 or twice:
        with pytest.raises(UserError):
            read(path, written, 12)
        return
    if len(numbers) == len(names) and any("." in name and not float(name).is_integer() for name in names):
        with pytest.raises(UserError, match="text-regression"):
            read(path, written, 12)
        return
    found = read(path, written, 12)
    assert set(found.labels) == names == set(found.train["label"])
    if len(numbers) == len(names):
        assert found.labels == sorted(names, key=lambda name: (float(name), name))
    else:
        assert found.labels == sorted(names)
    # a head of the same names decides, whichever case it is written in
    head = random.sample(found.labels, len(found.labels))
    assert in_order_of([f" {unicodedata.normalize('NFD', name)} ".swapcase() for name in head], found.labels) == head
    assert in_order_of([*head, "another"], found.labels) is None
    # and else who declares them
    assert in_order(names, ["unused", *head]) == head
    assert [folded(name) for name in head] == [folded(name.upper()) for name in head]


@pytest.mark.parametrize("written", ["['a', 'b']", '["a"]', "[]", "['a' 'b']"])
@pytest.mark.parametrize("target", ["label", "labels"])
def test_a_list_that_was_written_as_text_is_refused(written, target):
    rows = Dataset.from_dict({"label": ["a", written]})
    with pytest.raises(UserError, match=r"data\.label_column: got .*a\|b for several labels, or lists in json"):
        read_targets(rows, ("data.label_column", "label"), target, split="train")
    named = Dataset.from_dict({"label": ["[NEG]", "[18-25]", *(["[0, 10]"] if target == "label" else [])]})
    assert read_targets(named, ("data.label_column", "label"), target, split="train").num_rows == len(named)


@pytest.mark.parametrize("written", ["[3, 7]", "[1, 0, 0, 1]", "[1 0\n 1]", "[1. 0.]", "[True, False]", "[2]"])
def test_numbers_of_several_labels_that_were_written_as_text_are_refused(written):
    rows = Dataset.from_dict({"label": ["a", written]})
    with pytest.raises(UserError, match=r"data\.label_column: got .*this is a list that was written as text"):
        read_targets(rows, ("data.label_column", "label"), "labels", split="train")
