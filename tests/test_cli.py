"""The command line: its exit codes, its messages, and the final table."""

from __future__ import annotations

import sys

import pytest
import yaml

from glora_search import cli


@pytest.fixture
def call(monkeypatch, capsys):
    """``call("run", ...)``: exit code, what was printed, and what went to stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["glora-search", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        return exit_.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    return path


def test_run_ends_with_the_table_and_the_command_that_uses_the_model(call, recipe_file, tmp_path):
    code, out, _ = call("run", recipe_file, "--run-dir", tmp_path / "run", "--set", "search.trials=10")
    assert code == 0
    for text in ("lora r=", "best subnet", "final subnet", "merged", "validation", "test", "differ by at most"):
        assert text in out
    assert "pipeline('text-classification'" in out
    code, again, _ = call("evaluate", tmp_path / "run")
    assert code == 0
    assert "final subnet" in again
    code, out, _ = call("merge", tmp_path / "run")
    assert code == 0
    assert "done before" in out


def test_stages_run_one_by_one(call, recipe_file, tmp_path):
    folder = tmp_path / "run"
    code, _, err = call("run", recipe_file, "--run-dir", folder, "--set", "search.max_params=-3")
    assert code == 2
    assert "search.max_params" in err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nothing.yaml"], ["recipe", "nothing.yaml", "quickstart"]),
        (["run", "quickstart", "--set", "sede=1"], ["sede", "did you mean seed"]),
        (["run", "quickstart", "--set", "space=nothing"], ["space", "nothing", "glora-paper"]),
        (["run", "quickstart", "--set", "task.model=owner/none"], ["task.model", "owner/none", "hub"]),
        (["run", "quickstart", "--set", "data={source: hub, name: owner/none}"], ["data.name", "owner/none"]),
        (["run", "quickstart", "--set", "data={source: csv, train: none.csv}"], ["data.train", "none.csv"]),
        (["search", "nowhere"], ["run", "nowhere"]),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(call, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_stage(call):
    code, out, _ = call("--help")
    assert code == 0
    for command in ("run", "train-supernet", "search", "export", "retrain", "merge", "baselines", "evaluate"):
        assert command in out
