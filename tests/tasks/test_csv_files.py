"""csv files load as pandas loads them, or are refused with the file and the line."""

from __future__ import annotations

import csv
import gzip
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

COLUMNS = {"inputs": [("data.text_column", "text")], "targets": [("data.label_column", "label")]}
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
        found.append(load_data(Files(source="csv", train=str(path)), 0, **COLUMNS).fingerprints())
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


@pytest.mark.parametrize("header", ["text,label,label,b", "text,label,b,text"])
def test_two_columns_of_the_name_that_is_asked_for_are_refused_and_of_another_are_not(tmp_path, header):
    path = tmp_path / "a.csv"
    path.write_text(header + "\n" + "".join(f"a {n},{'xy'[n % 2]},b,c\n" for n in range(20)))
    with pytest.raises(UserError, match=r"data\.train.*line 1: 2 columns are called (text|label)"):
        load_data(Files(source="csv", train=str(path)), 0, **COLUMNS)
    path.write_text(path.read_text().replace(header, "text,label,b,b"))
    assert load_data(Files(source="csv", train=str(path)), 0, **COLUMNS).labels == ["x", "y"]


@pytest.mark.parametrize(
    ("header", "shown"), [("text, label", "text, ' label'"), ("text,label\u200b", r"'label\\u200b'")]
)
def test_white_space_of_a_header_is_shown(tmp_path, header, shown):
    path = tmp_path / "a.csv"
    path.write_text(header + "\n" + ROWS.format(","))
    with pytest.raises(UserError, match=rf"data\.label_column: got 'label'; allowed: a column of .*{shown}"):
        load_data(Files(source="csv", train=str(path)), 0, **COLUMNS)


def test_a_field_may_be_huge_and_the_line_that_is_wrong_is_another(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "a goal " * 30_000 + ",x\n" + ROWS.format(","))
    assert len(read(path)) == 21
    path.write_text(path.read_text() + "a,b,c\n")
    with pytest.raises(UserError, match=r"line 23: "):
        read(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(gzip.compress(b"text,label\n", mtime=0), "gzip"), (b"PK\x03\x04x", "a zip file"), (b"PAR1\x15", "parquet")],
)
def test_files_of_another_kind_are_named(tmp_path, content, kind):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"data\.train.*this is {kind}"):
        read(tmp_path / "a.csv")


def test_texts_that_are_the_same_in_every_row_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    for text in ("", "a goal"):
        for name in ("a.csv", "other.csv"):
            (tmp_path / name).write_text("text,label\n" + f"{text},x\n{text},y\n" * 20)
        for other in (None, str(tmp_path / "other.csv")):
            with pytest.raises(UserError, match=r"data\.text_column: got 'the same in every row'"):
                load_data(Files(source="csv", train=str(path), validation=other), 0, **COLUMNS)


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
    rows = len(read(path))
    for target, what in (("label", "no label in "), ("number", "this is ")):
        if target == "number":
            path.write_text(path.read_text().replace(",x", ",1"))
        with pytest.raises(UserError, match=rf"data\.train.*{what}row {rows} of {re.escape(str(path))}, line {line}\b"):
            load_data(Files(source="csv", train=str(path)), 0, **COLUMNS, target=target)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("label,text\npos,a fine\rbook\nneg,bad\n", 3),  # as pandas writes such a text
        ("text,label\na fine\rbook,pos\nbad,neg\n", 2),
        ("text,label\r\ngood,pos\r\na fine\rbook,pos\r\n", 3),
        ("label,text,other\npos,good\nneg\n", None),  # what is left out at the end is empty
        ("label,text\rpos,good\rneg\r", None),
        ('label,text\npos,"a fine\rbook"\nneg\n', None),
    ],
)
def test_a_row_that_a_carriage_return_has_broken_is_refused(tmp_path, content, line):
    path = tmp_path / "own.csv"
    path.write_bytes(content.encode())
    if line is None:
        assert read(path)["label"] == ["pos", "neg"]
        return
    with pytest.raises(UserError, match=rf"data\.train.*line {line}: fewer fields than the header"):
        read(path)


@given(st.binary(max_size=40) | st.text(st.sampled_from(list('ab,;"\n\r\t ')), max_size=40).map(str.encode))
def test_any_bytes_load_as_pandas_loads_them_or_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.csv"
    path.write_bytes(content)
    loads_or_is_refused(path, ",")


UNQUOTED = {
    "a quote that a later row ends within": ('"the goal', 'a "new" match'),
    "a quote that a later row ends": ('"the goal', 'a match"'),
    "a quote that nothing ends": ('"the goal', "a match"),
    "a quoted word first": ('"the" goal', "a match"),
    "quotes escaped by backslashes": (r'"the \"goal\" of"', "a match"),
}


@pytest.mark.parametrize("texts", UNQUOTED.values(), ids=UNQUOTED.keys())
@pytest.mark.parametrize("separator", [None, "\t"])
def test_quotes_that_are_part_of_the_texts_swallow_no_row(tmp_path, texts, separator):
    path = tmp_path / "a.tsv"
    rows = [f"text {n}" for n in range(10)]
    rows[3], rows[7] = texts
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{'xy'[n % 2]}\n" for n, text in enumerate(rows)))
    with pytest.raises(UserError, match=r"data\.train: got .*a\.tsv.*line 5: .*set data\.quoting: none"):
        read(path, separator=separator)
    assert read(path, separator=separator, quoting="none")["text"] == rows
    path.write_text(path.read_text() + "b\t\n")
    with pytest.raises(UserError, match=r"no label in row 11 of .*a\.tsv, line 12\b"):
        load_data(Files(source="csv", train=str(path), quoting="none"), 0, **COLUMNS)


def test_texts_of_several_lines_load_and_what_looks_wrong_can_be_said_to_be_right(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"one\n\ntwo, three",x\nfour,y\n')
    assert read(path)["text"] == ["one\n\ntwo, three", "four"]
    path.write_text('text,label\n"one, \ntwo",x\nfour,y\n')
    assert read(path)["text"] == ["one, \ntwo", "four"]
    path.write_text('text,label\n"one,x\ntwo",x\nfour,y\n')
    with pytest.raises(UserError, match=r"line 2: .*else minimal"):
        read(path)
    assert read(path, quoting="minimal")["text"] == ["one,x\ntwo", "four"]
    path.write_text(" \ntext,label\na,x\n")  # no quote, no word of one
    assert read(path)["label"] == ["x"]


def test_a_space_before_each_quote_is_refused_unless_it_is_said_to_be_right(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f'"text {n}", "{"xy"[n % 2]}"\n' for n in range(9)))
    with pytest.raises(UserError, match=r"line 2, column label: the space before a quote .* data\.quoting: minimal"):
        read(path)
    assert set(read(path, quoting="minimal")["label"]) == {' "x"', ' "y"'}


def test_only_csv_has_quotes(tmp_path):
    with pytest.raises(ValueError, match="quoting: got 'none'; allowed: null with source json; only csv has quotes"):
        Files(source="json", train="a", quoting="none")
