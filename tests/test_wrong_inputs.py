"""Whatever is given wrongly: one message that says what is allowed, exit code 2, and nothing on disk changes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wrong_recipes
import wrong_runs
from filelock import FileLock
from wrong_world import World

ERRORS = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
WRONG = {**wrong_recipes.WRONG, **wrong_runs.WRONG}


@pytest.fixture
def world(tmp_path, monkeypatch, tiny_recipe, _finished):
    monkeypatch.chdir(tmp_path)
    return World(tmp_path, copy.deepcopy(tiny_recipe), _finished)


@pytest.mark.parametrize(("prepare", "stable", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_input_is_a_message_and_exit_code_2_and_changes_nothing(world, call, prepare, stable, words):
    command = prepare(world)
    before = world.files()
    code, out, err = call(*command)
    assert code == 2, err
    assert err.startswith("error: ")
    assert "Traceback" not in out + err
    for word in [stable, *words]:
        assert word in err
    after = world.files()
    after.pop(str(world.folder / "run" / ".lock"), None)
    before.pop(str(world.folder / "run" / ".lock"), None)
    assert after == before


@pytest.mark.parametrize("stable", sorted({stable for _, stable, _ in WRONG.values()}))
def test_the_documentation_explains_the_message(stable):
    assert stable.rstrip(":") in ERRORS


def test_a_password_is_never_shown(world, call):
    world.finished(search=None)
    _, out, err = call("search", "run", "--storage", "postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in out + err


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_run_folder_in_use_is_refused(world, call):
    world.finished(merged=None)
    before = world.files()
    with FileLock(world.folder / "run" / ".lock"):
        code, _, err = call("merge", "run")
    assert code == 2
    assert "a run folder that no other process works in" in err
    assert "a run folder that no other process works in" in ERRORS
    assert world.files() == before


def test_several_processes_without_a_launcher_are_refused(world, call, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = call(*world.run())
    assert code == 2
    assert "WORLD_SIZE: got '2'" in err
    assert "WORLD_SIZE: got" in ERRORS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a recipe that is not there", "a run that is not there", "an unknown command"])
def test_a_process_of_its_own_ends_the_same_way(world, name):
    prepare, stable, _ = WRONG[name]
    package = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "glora_search", *prepare(world)],
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert stable in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
