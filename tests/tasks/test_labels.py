"""Labels of rows: which are refused."""

from __future__ import annotations

import pytest

from glora_search.errors import UserError
from glora_search.recipe.data import Files
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


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_label_that_train_does_not_have_is_named(tmp_path, split):
    other = csv(tmp_path / "o.csv", rows(10, labels=("x", "z"), start=50))
    with pytest.raises(UserError, match=rf"data\.{split}.*'z'.*x, y"):
        load_texts(Files(source="csv", train=csv(tmp_path / "a.csv", rows(20)), **{split: other}), seed=0)


def test_a_single_label_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least 2 different labels"):
        load_texts(Files(source="csv", train=csv(tmp_path / "a.csv", rows(20, labels=("x",)))), seed=0)


@pytest.mark.parametrize(("lines", "word"), [([], "no rows"), (["a text,"], "no label in row 1")])
def test_rows_without_a_label_and_files_without_rows_are_refused(tmp_path, lines, word):
    with pytest.raises(UserError, match=word):
        load_texts(Files(source="csv", train=csv(tmp_path / "a.csv", lines)), seed=0)
