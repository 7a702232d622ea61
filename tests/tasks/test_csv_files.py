"""csv files load as pandas loads them, or are refused with the file and the line."""

from __future__ import annotations

import csv
import io
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glora_search.errors import UserError
from glora_search.recipe.data import Files
from glora_search.tasks.sources import CsvFiles
from glora_search.tasks.splits import load_data

ROWS = "".join(f"text {n}{{0}}{'xy'[n % 2]}\n" for n in range(20))


def read(path, **options):
    source = CsvFiles(Files(source="csv", train=str(path), **options))
    return source.read("train", source.columns("train"))


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_same_rows_load_whatever_separates_them(tmp_path, separator):
    found = []
    for mark in (",", separator):
        path = tmp_path / "a.csv"
        path.write_text(f"text{mark}label\n" + ROWS.format(mark))
        columns = {"inputs": [("data.text_column", "text")], "targets": [("data.label_column", "label")]}
        found.append(load_data(Files(source="csv", train=str(path)), 0, **columns).fingerprints())
    assert found[0] == found[1]


def test_a_separator_can_be_given_and_wrong_ones_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text:label\na;b:x\n")
    assert read(tmp_path / "a.csv", separator=":").to_dict() == {"text": ["a;b"], "label": ["x"]}
    assert Files(source="csv", train="a", separator="\\t").separator == "\t"
    for wrong in ("", ";;", '"', "\n", "\u2022"):
        with pytest.raises(ValueError, match="separator: got"):
            Files(source="csv", train="a", separator=wrong)
    with pytest.raises(ValueError, match="only csv has one"):
        Files(source="json", train="a", separator=";")


cells = st.text(st.sampled_from(list("ab1 ;,|\t\"'\u00e4\u4e2d\r\n\ufeff")), max_size=5)
tables = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=5)
)


def loads_or_is_refused(path, separator):
    refused, found = "", None
    try:
        found = read(path, separator=separator)
    except UserError as error:
        refused = str(error)
    if found is None:
        assert str(path) in refused
        assert re.search(r"line \d+", refused), refused
        return
    expected = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    assert found.column_names == list(expected.columns)
    assert found.to_pandas().to_numpy().tolist() == expected.to_numpy().tolist()


@given(
    rows=tables,
    separator=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
)
def test_any_table_that_is_written_loads_as_pandas_loads_it_or_is_refused(
    tmp_path_factory, rows, separator, quoting, end, encoding
):
    text = io.StringIO()
    csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=end).writerows(rows)
    path = tmp_path_factory.getbasetemp() / "table.csv"
    path.write_bytes(text.getvalue().encode(encoding, "replace"))
    loads_or_is_refused(path, separator)


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ("a,\n", 2),
        ("a,x\nb,\n", 3),
        ("\na,x\n \n\nb,\n", 6),
        ('"two\nlines",x\nb,\n', 4),
        ('a,x\n"two\nlines",\n', 3),
        ('a,x\nb," "\n', 3),
    ],
)
def test_a_row_without_a_label_is_named_with_its_file_and_line(tmp_path, lines, line):
    path = tmp_path / "own.csv"
    path.write_text("text,label\n" + lines)
    columns = {"inputs": [("data.text_column", "text")], "targets": [("data.label_column", "label")]}
    rows = len(read(path))
    for target, what in (("label", "no label in "), ("number", "this is ")):
        if target == "number":
            path.write_text(path.read_text().replace(",x", ",1"))
        with pytest.raises(UserError, match=rf"data\.train.*{what}row {rows} of {re.escape(str(path))}, line {line}\b"):
            load_data(Files(source="csv", train=str(path)), 0, **columns, target=target)


@given(st.binary(max_size=40) | st.text(st.sampled_from(list('ab,;"\n\r\t ')), max_size=40).map(str.encode))
def test_any_bytes_load_as_pandas_loads_them_or_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.csv"
    path.write_bytes(content)
    loads_or_is_refused(path, ",")
