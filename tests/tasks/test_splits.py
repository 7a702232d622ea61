"""Reading texts: the splits, and what is refused."""

from __future__ import annotations

import pandas as pd
import pytest

from glora_search.errors import UserError
from glora_search.recipe.data import BbcHeadlines, Files, Hub
from glora_search.tasks.splits import load_data


def load_texts(data, seed):
    """The rows of a text classification."""
    columns = {key: getattr(data, f"{key}_column", key) for key in ("text", "label")}
    return load_data(
        data,
        seed,
        inputs=[("data.text_column", columns["text"])],
        targets=[("data.label_column", columns["label"])],
    )


def csv(path, rows, header="text,label"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def rows(count, labels=("x", "y"), start=0):
    return [f"text {index},{labels[index % len(labels)]}" for index in range(start, start + count)]


def texts(split):
    return set(split[split.column_names[0]])


def test_bbc_headlines_are_split_without_a_headline_in_two_splits():
    data = load_texts(BbcHeadlines(source="bbc-headlines"), seed=0)
    test = data.read_test()
    assert data.labels == ["business", "entertainment", "politics", "sports", "tech"]
    assert len(data.train) + len(data.validation) + len(test) > 2000
    assert not texts(data.train) & texts(data.validation)
    assert not texts(data.train) & texts(test)
    assert not texts(data.validation) & texts(test)


def test_the_cut_depends_on_the_seed_alone(tmp_path):
    data = Files(source="csv", train=csv(tmp_path / "a.csv", rows(50)))
    first, again, other = (load_texts(data, seed) for seed in (1, 1, 2))
    assert texts(first.validation) == texts(again.validation)
    assert texts(first.validation) != texts(other.validation)


def test_equal_texts_stay_in_one_split_and_every_label_stays_in_train(tmp_path):
    lines = [*rows(40), *rows(40), "rare,z"]
    path = csv(tmp_path / "a.csv", lines)
    for seed in range(12):
        data = load_texts(Files(source="csv", train=path, max_train_rows=30), seed)
        splits = [texts(data.train), texts(data.validation), texts(data.read_test())]
        assert sum(map(len, splits)) == len(set.union(*splits))
        assert set(data.train["label"]) == {"x", "y", "z"}
        assert len(data.train) == 30


def test_given_splits_are_taken_as_they_are(tiny_csv):
    data = load_texts(Files(source="csv", **tiny_csv), seed=0)
    assert [len(data.train), len(data.validation), len(data.read_test())] == [64, 24, 24]


def test_a_missing_validation_split_is_cut_from_train_and_not_from_test(tmp_path):
    train, test = csv(tmp_path / "a.csv", rows(40)), csv(tmp_path / "t.csv", rows(10, start=100))
    data = load_texts(Files(source="csv", train=train, test=test, validation_fraction=0.25), seed=0)
    assert [len(data.train), len(data.validation)] == [30, 10]
    assert texts(data.read_test()) == {f"text {index}" for index in range(100, 110)}


def test_the_test_texts_are_not_read_before_the_end(tmp_path, monkeypatch):
    read = []
    original = pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda path, **kw: (read.append((str(path), kw)), original(path, **kw))[1])
    test = csv(tmp_path / "t.csv", rows(10))
    data = load_texts(Files(source="csv", train=csv(tmp_path / "a.csv", rows(40)), test=test), seed=0)
    columns = [kw["usecols"] for path, kw in read if path == test and "usecols" in kw]
    assert columns == [["label"]]
    data.read_test()
    assert ["text", "label"] in [kw["usecols"] for path, kw in read if path == test and "usecols" in kw]


def test_other_column_names_and_missing_texts_are_kept_as_text(tmp_path):
    path = csv(tmp_path / "a.csv", ["NA,1", "null,0", "3.5,1", "d,0", "e,1", "f,0"], header="review,stars")
    data = load_texts(Files(source="csv", train=path, text_column="review", label_column="stars"), seed=0)
    assert data.labels == ["0", "1"]
    everything = texts(data.train) | texts(data.validation) | texts(data.read_test())
    assert everything == {"NA", "null", "3.5", "d", "e", "f"}


def test_a_column_that_is_missing_is_named_with_those_that_exist(tmp_path):
    path = csv(tmp_path / "a.csv", rows(10), header="body,topic")
    with pytest.raises(UserError, match=r"data\.text_column.*'text'.*body, topic"):
        load_texts(Files(source="csv", train=path), seed=0)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.train.*nothing\.csv"):
        load_texts(Files(source="csv", train=str(tmp_path / "nothing.csv")), seed=0)


def test_a_folder_of_csv_files_loads_by_the_hub_source(tmp_path):
    csv(tmp_path / "train.csv", rows(20))
    csv(tmp_path / "test.csv", rows(6, start=50))
    data = load_texts(Hub(source="hub", name=str(tmp_path), test="test"), seed=0)
    assert data.labels == ["x", "y"]
    assert texts(data.read_test()) == {f"text {index}" for index in range(50, 56)}


def test_a_split_that_the_hub_data_set_does_not_have_is_named(tmp_path):
    csv(tmp_path / "train.csv", rows(20))
    with pytest.raises(UserError, match=r"data\.test.*'holdout'.*train"):
        load_texts(Hub(source="hub", name=str(tmp_path), test="holdout"), seed=0)


def test_a_hub_name_without_a_network_is_one_clear_message():
    with pytest.raises(UserError, match=r"data\.name.*'no-such-owner/no-such-data'"):
        load_texts(Hub(source="hub", name="no-such-owner/no-such-data"), seed=0)


def test_a_row_with_too_many_columns_is_refused(tmp_path):
    train = csv(tmp_path / "a.csv", [*rows(20), "a text, with a comma,0"])
    with pytest.raises(UserError, match="line 22"):
        load_texts(Files(source="csv", train=train), seed=0)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_rows_that_all_have_one_column_too_many_are_refused(tmp_path, split):
    wide = csv(tmp_path / "b.csv", [row.replace(" ", ", ") for row in rows(20)])
    data = {"train": csv(tmp_path / "a.csv", rows(20)), split: wide}
    with pytest.raises(UserError, match=rf"data\.{split}.*Expected 2 fields in line 2, saw 3"):
        load_texts(Files(source="csv", **data), seed=0)


def test_commas_and_lines_within_quotes_are_text(tmp_path):
    train = csv(tmp_path / "a.csv", [*rows(20), '"one, two\n\nand ""three""",x'])
    data = load_texts(Files(source="csv", train=train), seed=0)
    assert 'one, two\n\nand "three"' in texts(data.train) | texts(data.validation) | texts(data.read_test())


def unlabelled(tmp_path, texts, **more):
    train, rows = tmp_path / "train.csv", tmp_path / "more.csv"
    pd.DataFrame({"text": [f"row {n}" for n in range(40)], "label": ["a", "b"] * 20}).to_csv(train, index=False)
    pd.DataFrame({"text": texts, **more}).to_csv(rows, index=False)
    return Files(source="csv", train=str(train), unlabelled=str(rows))


def test_unlabelled_rows_need_no_labels_and_none_that_is_there_is_read(tmp_path):
    for more in ({}, {"label": ["unknown", "x"]}):
        found = load_texts(unlabelled(tmp_path, ["new", "newer"], **more), 0)
        assert found.unlabelled.column_names == ["text"]
        assert list(found.unlabelled["text"]) == ["new", "newer"]


def test_unlabelled_rows_that_are_in_another_split_are_left_out(tmp_path):
    data = unlabelled(tmp_path, ["new", *(f"row {n}" for n in range(40))])
    found = load_texts(data, 0)
    assert set(found.unlabelled["text"]) == {"new"}
    with pytest.raises(UserError, match=r"data\.unlabelled.*rows that are in no other split"):
        load_texts(unlabelled(tmp_path, list(found.train["text"])), 0)


def test_unlabelled_rows_that_are_in_a_given_test_split_are_left_out(tmp_path):
    data = unlabelled(tmp_path, ["new", "row 3", "asked for in the test"])
    test = csv(tmp_path / "test.csv", ["asked for in the test,a", "another,b"])
    assert set(load_texts(data.model_copy(update={"test": test}), 0).unlabelled["text"]) == {"new"}


def test_unlabelled_rows_without_the_column_are_refused(tmp_path):
    data = unlabelled(tmp_path, ["x"]).model_copy(update={"unlabelled": str(tmp_path / "other.csv")})
    (tmp_path / "other.csv").write_text("words\nx\n")
    with pytest.raises(UserError, match=r"data\.text_column"):
        load_texts(data, 0)
