"""Where a command's output goes, and in which form."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import shutil

import pytest
from rich.console import Console

from glora_search import progress
from glora_search.progress import set_up, track


def forget(run, *names):
    for name in names:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_json_is_all_that_is_on_stdout(call, finished):
    forget(finished, "merged", "metrics.json", "report.html")
    code, out, err = call("merge", finished, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["folder"] == str(finished / "merged")
    assert found["max_abs_logit_difference"] < 1e-3
    assert "merge: 3/3" in err
    code, out, _ = call("evaluate", finished, "--json")
    assert code == 0
    assert json.loads(out)["final"]["test"] == json.loads((finished / "metrics.json").read_text())["final"]["test"]
    code, out, err = call("export", finished, "--format", "peft", "--json")
    assert json.loads(out) == {"folder": str(finished / "exports" / "peft"), "format": "peft"}


def test_quiet_leaves_the_result(call, finished):
    forget(finished, "merged", "metrics.json", "report.html")
    code, out, err = call("merge", finished, "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith(f"{finished / 'merged'}: source ")
    assert out.count("\n") == 1
    code, out, err = call("evaluate", finished, "-q")
    assert (code, err) == (0, "")
    assert "final subnet" in out
    assert "Report:" not in out


def test_what_one_call_is_told_does_not_hold_for_the_next(call, finished):
    call("merge", finished, "--quiet")
    assert "already done" in call("merge", finished)[1]
    assert "already done" in call("merge", finished, "--json")[2]
    assert "already done" in call("merge", finished)[1]


def test_a_pipe_gets_no_colours_no_bars_and_whole_lines(call, finished):
    forget(finished, "merged", "metrics.json", "report.html")
    code, out, _ = call("merge", finished)
    assert code == 0
    assert "\x1b" not in out + call("evaluate", finished)[1]
    assert "━" not in out
    assert f"{finished / 'merged'}: " in out


def test_a_name_with_brackets_is_printed_as_it_is(call, finished):
    renamed = finished.rename(finished.parent / "[bold]run[red]")
    assert str(renamed / "merged") in call("merge", renamed)[1]


@pytest.fixture
def console():
    """The package's console, set up again after the test."""
    yield progress.console
    set_up(progress.console)


def test_without_a_terminal_a_bar_is_a_line_at_the_end(console, capsys):
    set_up(console)
    with track("work", 3) as bar:
        for note in ("a", "b", "c"):
            bar.advance(1, note)
    assert capsys.readouterr().out == "work: 3/3, c\n"


def test_and_a_line_from_time_to_time(console, capsys, monkeypatch):
    set_up(console)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with track("work", 3) as bar:
        bar.start_at(1)
        bar.advance()
    assert capsys.readouterr().out == "work: 2/3\nwork: 2/3\n"


def all_of(reading):
    """What was written to a pseudo-terminal whose other end is closed; it comes in pieces."""
    pieces = []
    with contextlib.suppress(OSError):  # EIO: there is no more
        while piece := os.read(reading, 65536):
            pieces.append(piece)
    os.close(reading)
    return b"".join(pieces).decode()


@pytest.mark.parametrize(("no_color", "has_bar"), [(False, True), (True, False)])
def test_a_terminal_has_bars_and_colours_unless_it_wants_none(console, monkeypatch, no_color, has_bar):
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    reading, writing = pty.openpty()
    with open(writing, "w", closefd=True) as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        set_up(console)
        with track("work", 2) as bar:
            bar.advance(2)
    shown = all_of(reading)
    assert ("━" in shown) == has_bar
    assert ("\x1b[" in shown) == has_bar


def test_tables_are_wider_in_a_file_than_the_80_columns_of_no_terminal(console, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    made = Console()
    set_up(made)
    assert made.width == 200
    monkeypatch.setenv("COLUMNS", "70")
    set_up(made)
    assert made.width == 70
