"""csv files: separators, encodings and lines."""

from __future__ import annotations

import pytest

from glora_search.files.tables import json_fault, not_text, read_header, wrong_line


@pytest.mark.parametrize(
    ("text", "separator", "columns"),
    [
        ("text,label\n", ",", ["text", "label"]),
        ("text;label\na, b;x\n", ";", ["text", "label"]),
        ("text\tlabel\n", "\t", ["text", "label"]),
        ("a|b|c;d\n", "|", ["a", "b", "c;d"]),
        ('"one; two",label\n', ",", ["one; two", "label"]),  # a comma separates: nothing is guessed
        ("text\nhello; world\n", ",", ["text"]),
        ("\n\ntext;label\n", ";", ["text", "label"]),
        ("", ",", []),
    ],
)
def test_the_separator_is_guessed_where_the_header_has_one_column(tmp_path, text, separator, columns):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8-sig")
    assert read_header(tmp_path / "a.csv") == (separator, columns)


def test_a_separator_that_is_given_is_not_guessed(tmp_path):
    (tmp_path / "a.csv").write_text("a;b:c\n")
    assert read_header(tmp_path / "a.csv", ":") == (":", ["a;b", "c"])


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-16", ["line 1", "UTF-16"]),
        ("utf-32", ["line 1", "UTF-32"]),
        ("cp1252", ["line 2", "0xe4", "Windows-1252"]),
    ],
)
def test_an_encoding_that_is_not_utf_8_is_named_with_its_line(tmp_path, encoding, words):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\r\nM\u00e4rz,x\r\n".encode(encoding))
    for word in words:
        assert word in not_text(path)
    with pytest.raises(ValueError, match=f"{words[0]}.*{words[-1]}"):
        read_header(path)


def test_what_is_no_text_is_named_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\r\n1,2\r\n\x00,3\r\n")
    assert not_text(tmp_path / "a.csv") == "line 3: byte 0x00 is no text"


@pytest.mark.parametrize(
    ("text", "line"),
    [("a,b\n1,2\n", None), ('a,b\n"1\n1",2\n1,2,3\n', 4), ('a,b\n1,"2\n3,4\n', 2), ("a,b\n1\n", None)],
)
def test_the_line_of_a_row_that_is_wrong_is_found(tmp_path, text, line):
    (tmp_path / "a.csv").write_text(text)
    assert wrong_line(tmp_path / "a.csv", ",") == line


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": 1}\n\n{"a": 2}\n', None),
        ('{"a": 1}\n{"a": 2,}\n{"a": 2}\n', "line 2, column "),
        ('{"a": 1}\n[1, 2]\n', "line 2 is not a JSON object"),
        ('[{"a": 1},\n {"a": 2}]\n', None),
        ('[{"a": 1},\n {"a": }]\n', "line 2, column 8: Expecting value"),
        ("\ufeff[]\n", None),
    ],
)
def test_what_is_wrong_with_a_json_file_is_found_with_its_place(tmp_path, text, fault):
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    found = json_fault(tmp_path / "a.jsonl")
    assert found == fault if fault is None else found.startswith(fault)


def test_a_json_file_that_is_no_text_has_no_place_to_show(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\x1f\x8b\xff\xfe")
    assert json_fault(tmp_path / "a.json") is None
