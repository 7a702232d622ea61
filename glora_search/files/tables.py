"""Files of rows: what separates the fields of a csv file, and in which line a file is wrong."""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

PACKED = {
    **{b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"},
    b"PK\x03\x04": "a zip file, maybe of a spreadsheet",
}
MARKS = {
    **{b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"},
    **PACKED,
    b"PAR1": "parquet",
}
"""What files in other encodings begin with, and files of another kind."""
SEPARATORS = (",", ";", "\t", "|")

Quoting = Literal[0, 3]
"""``csv.QUOTE_MINIMAL``, or ``csv.QUOTE_NONE``."""

csv.field_size_limit(2**31 - 1)  # pandas has none


def read_header(
    path: Path, separator: str | None = None, quoting: Quoting = csv.QUOTE_MINIMAL
) -> tuple[str, list[str]]:
    """The separator of a csv file, and the columns that its first line names.

    Args:
        separator: between two fields; None is a comma, and where the first line then has one column, whichever of
            semicolon, tab and bar gives the most.
        quoting: whether a quote at the start of a field encloses it, as in `csv`.

    Raises:
        ValueError: the file is not text in UTF-8, or its first line none of a csv file.
    """
    wrong = not_text(path)
    if wrong:
        raise ValueError(wrong)
    try:
        found = {mark: _first_row(path, mark, quoting) for mark in ((separator,) if separator else SEPARATORS)}
    except csv.Error as error:
        raise ValueError(f"line 1: {error}") from None
    best = max(found, key=lambda mark: len(found[mark]))
    comma = found.get(",", [])
    return (",", comma) if len(comma) > 1 else (best, found[best])


def _first_row(path: Path, separator: str, quoting: Quoting) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next((row for row in csv.reader(file, delimiter=separator, quoting=quoting) if row), [])


def not_text(path: Path) -> str:
    """In which line a file is not text in UTF-8, and what it may be; empty where it is."""
    if (mark := _mark(path, MARKS)) is not None:
        return f"line 1: this is {mark}, not UTF-8"
    if _is_text(path):
        return ""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
        at, what = content.find(b"\0"), "is no text"
    except UnicodeDecodeError as error:
        at, what = error.start, "is not UTF-8, maybe Windows-1252 or Latin-1"
    line = len((content[:at] + b".").splitlines())
    return f"line {line}: byte 0x{content[at]:02x} {what}"


def _mark(path: Path, marks: Mapping[bytes, str]) -> str | None:
    """Which of these a file begins with."""
    with path.open("rb") as file:
        start = file.read(max(map(len, marks)))
    return next((name for mark, name in marks.items() if start.startswith(mark)), None)


def _is_text(path: Path) -> bool:
    """Whether a file is text in UTF-8; of a long one, a block at a time is in memory."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while block := file.read(1 << 20):
                if b"\0" in block:
                    return False
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def broken_line(path: Path, separator: str, fields: int, quoting: Quoting = csv.QUOTE_MINIMAL) -> int | None:
    """The line in which a row begins that has fewer fields since a carriage return has broken it in two; None where
    there is none. A file whose lines all end in one is whole."""
    begins, end, before = 1, "", ""

    def lines(file: Iterable[str]) -> Iterator[str]:
        nonlocal end
        for line in file:
            end = line[-1:]
            yield line

    with path.open(encoding="utf-8-sig", newline="") as file, suppress(csv.Error):
        reader = csv.reader(lines(file), delimiter=separator, quoting=quoting)
        for number, row in enumerate(reader):
            if number == 0 and end == "\r":
                break
            if len(row) < fields and any(map(str.strip, row)) and "\r" in (before, end):
                return begins
            begins, before = reader.line_num + 1, end
    return None


def line_of(path: Path, separator: str, number: int, quoting: Quoting = csv.QUOTE_MINIMAL) -> int | None:
    """The line in which a row begins; None where it cannot be told.

    Args:
        number: of the row, counted from 1 and without the header and empty lines.
    """
    begins, seen = 1, -1
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, quoting=quoting)
        with suppress(csv.Error):
            for row in reader:
                seen += any(cell.strip(" \t") for cell in row) or len(row) > 1  # pandas leaves out the others
                if seen == number:
                    return begins
                begins = reader.line_num + 1
    return None


def wrong_line(path: Path, separator: str, quoting: Quoting = csv.QUOTE_MINIMAL) -> int | None:
    """The line of the first row with more fields than the first one, or a quote that nothing ends; 1 without rows."""
    first, begins = 0, 1
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, quoting=quoting, strict=True)
        try:
            for row in reader:
                first = first or len(row)
                if len(row) > first:
                    return begins
                begins = reader.line_num + 1
        except csv.Error:
            return begins
    return None if first else 1


def wrong_quote(path: Path, separator: str) -> int | None:
    """The line of the first row with a quote that does not enclose its field, as far as a file can tell.

    The quote ends before the field does, or nowhere; or in a later line, although each of these lines is a row by
    itself: it has as many fields as the header, and a value that its column has elsewhere too, such as a label.
    """
    begins, width, long = 1, 0, dict[int, int]()
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            for row in reader:
                width = width or len(row)
                if reader.line_num > begins:
                    long.update(dict.fromkeys(range(begins, reader.line_num + 1), begins))
                begins = reader.line_num + 1
        except csv.Error:
            return begins
        if not long:
            return None
        file.seek(0)
        lines = csv.reader(file, delimiter=separator, quoting=csv.QUOTE_NONE)
        rows = {}
        for row in lines:
            if row:
                rows[lines.line_num] = row
    if any(len(row) != width for row in rows.values()):
        return None
    often = [Counter(column) for column in zip(*rows.values(), strict=True)]
    whole = (any(often[n][value] > 1 for n, value in enumerate(rows.get(line, ()))) for line in long)
    return min(long.values()) if all(whole) else None


def json_fault(path: Path) -> str | None:
    """What is wrong with a json file, or with the first of json lines that is no object, and where; None where nothing
    is, or where the file is no text."""
    with path.open(encoding="utf-8-sig") as file, suppress(UnicodeDecodeError):
        for number, line in enumerate(file, 1):
            if number == 1 and line.lstrip().startswith("["):
                return _json_fault(line + file.read(), 1, list)
            if line.strip() and (fault := _json_fault(line, number, dict)):
                return fault
    return None


def json_not_text(path: Path) -> str:
    """See `not_text`; of a file that ``datasets`` unpacks nothing is known."""
    return not_text(path) if _mark(path, PACKED) is None else ""


def json_column(path: Path, name: str) -> list[Any]:
    """A column of a json file (a list of objects, or one) or of json lines; numbers are texts, as they are written.

    Raises:
        ValueError: the file is no such text.
        AttributeError: a row is no object.
    """

    def read(text: str) -> Any:
        return json.loads(text, parse_int=str, parse_float=str)

    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = read(text)
    except json.JSONDecodeError:
        rows = [read(line) for line in text.split("\n") if line.strip()]
    return [row.get(name) for row in ([rows] if isinstance(rows, dict) else rows)]


def _json_fault(text: str, line: int, kind: type) -> str | None:
    try:
        return None if isinstance(json.loads(text), kind) else f"line {line} is not a JSON object"
    except json.JSONDecodeError as error:
        return f"line {line + error.lineno - 1}, column {error.colno}: {error.msg}"
    except RecursionError:
        return f"line {line} is nested too deeply"
