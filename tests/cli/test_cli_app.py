"""The app: its help, its start, completion, and what Ctrl-C does."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import glora_search
from glora_search.run.runner import Run
from glora_search.search.shared.workers import _ignoring_ctrl_c

PACKAGE = Path(__file__).parent.parent.parent
SCRIPT = Path(sysconfig.get_path("scripts")) / "glora-search"
START = f"import sys; sys.argv[0] = {str(SCRIPT)!r}; from glora_search.cli import main\n"


def process(code, *arguments, **environment):
    """Python code in a process whose program is the console script."""
    return subprocess.run(
        [sys.executable, "-c", START + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE), **environment},
        capture_output=True,
        text=True,
    )


def test_help_tells_the_story_in_order_and_lists_every_command(call):
    code, out, _ = call("--help")
    assert code == 0
    story = out[out.index("From start to finish") :]
    steps = [
        story.index(f"glora-search {step}")
        for step in ("init", "run", "status", "report", "compare", "predict", "export")
    ]
    assert steps == sorted(steps)
    for panel in ("Start", "Run and watch", "Compare and use", "Stage by stage"):
        assert panel in out
    commands = (
        "init",
        "spaces",
        "run",
        "status",
        "dashboard",
        "report",
        "compare",
        "predict",
        "prepare",
        "train-supernet",
    )
    for command in (*commands, "search", "export", "retrain", "merge", "baselines", "evaluate"):
        assert f"│ {command} " in out
    assert out.index("│ init ") < out.index("│ spaces ") < out.index("│ run ")


def test_without_a_command_there_is_help(call):
    assert call()[:2] == call("--help")[:2]


@pytest.mark.parametrize("command", ["init", "run", "status", "search", "export", "report", "compare", "predict"])
def test_a_commands_help_has_an_example(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"glora-search {command}" in out[out.index("Example:") :].replace("\n", " ")


def test_the_version_is_printed(call):
    assert call("--version")[:2] == (0, f"glora-search {glora_search.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["status", "finished"], 0), (["run", "nothing.yaml"], 2), (["search", "nowhere"], 2)],
    ids=["help", "status", "no recipe", "no run"],
)
def test_what_needs_no_model_does_not_wait_for_torch(finished, monkeypatch, arguments, code):
    monkeypatch.chdir(finished.parent)
    check = (
        "import atexit; atexit.register(lambda: print('heavy:', {'torch', 'transformers', 'peft'} & {*sys.modules}))"
    )
    done = process(f"{check}\nmain()", *arguments)
    assert done.returncode == code, done.stderr
    assert "heavy: set()" in done.stdout


@pytest.mark.parametrize("options", [[], ["-u"]], ids=["by hand", "as launchers do"])
def test_the_module_does_not_wait_for_torch(options):
    done = subprocess.run(
        [sys.executable, *options, "-m", "glora_search", "--help"],
        env={**os.environ, "PYTHONPATH": str(PACKAGE), "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "transformers", "peft"}


@pytest.mark.parametrize(("command", "trains"), [("retrain", True), ("status", False)])
def test_where_there_is_training_what_is_imported_is_not_searched_for_garbage(
    call, finished, monkeypatch, command, trains
):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(command))
    assert call(command, finished)[0] == 0
    assert bool(frozen) is trains


def test_the_names_of_the_package_are_there_when_they_are_asked_for():
    for name in {*glora_search.__all__} - {"search"}:  # which is bound with the package
        assert glora_search.__getattr__(name) is getattr(glora_search, name)
    assert callable(glora_search.search)


@pytest.mark.parametrize(
    ("program", "is_it"),
    [(str(SCRIPT), True), ("glora-search.py", False), ("glora-search", False)],
    ids=["the console script", "glora-search.py", "glora-search"],
)
def test_a_users_script_of_the_same_name_is_not_the_command_line(tmp_path, monkeypatch, program, is_it):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, program])
    assert glora_search._is_command_line() is is_it


def test_the_shell_is_told_commands_and_run_folders(finished, monkeypatch):
    monkeypatch.chdir(finished.parent)
    for words, expected in (
        ("glora-search sta", "status"),
        (f"glora-search status {finished.name[:3]}", finished.name),
        ("glora-search run glue", "glue-roberta"),
    ):
        completion = {
            "_GLORA_SEARCH_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        assert expected in process("main()", **completion).stdout.split()


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize("again", [[], ["--again"]])
def test_ctrl_c_says_in_one_line_how_to_go_on(call, finished, monkeypatch, again):
    monkeypatch.setattr(Run, "do", interrupt)
    code, out, err = call("retrain", finished, "--quiet", *again)
    assert code == 130
    assert out == ""
    assert err == f"interrupted; finished work is kept. Resume with: glora-search retrain {finished} --quiet\n"


def test_ctrl_c_of_a_command_that_only_looks_is_one_word(call, finished, monkeypatch):
    monkeypatch.setattr("glora_search.run.status.status", interrupt)
    assert call("status", finished) == (130, "", "interrupted\n")


def test_further_workers_leave_ctrl_c_to_the_first_process():
    before = signal.getsignal(signal.SIGINT)
    with _ignoring_ctrl_c():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is before
