"""The case study: every method is trained and tested once, and the table is printed from its csv files."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
import yaml
from tiny_models import FILLER, tiny  # noqa: F401

from glora_search.errors import UserError
from glora_search.metrics.base import CHANCE, CONSTANT

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.fixture
def study(monkeypatch, tmp_path, tiny):  # noqa: F811
    """``study(*words)``: call the script on a tiny model and a few rows."""
    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.chdir(tmp_path)
    import case_study

    words = ["goal", "chip", "team"]
    rows = [
        {"question": f"{first} {second}", "choices": words, "answer": f" {words[n % 3]}"}
        for n, (first, second) in enumerate(itertools.product(FILLER, repeat=2))
    ]
    for split, own in {"train": rows[:40], "test": rows[40:48]}.items():
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    changes = {
        "task.model": str(tiny("llama")),
        "task.max_length": 32,
        "task.prompt": "{question}",
        "data.train": "train.jsonl",
        "data.test": "test.jsonl",
        "data.max_train_rows": 16,
        "supernet.training": {"max_steps": 2},
        "search.trials": 3,
        "search.max_params": 500,
        "finals.training": {"max_steps": 16},
    }
    given = [word for key, value in changes.items() for word in ("--set", f"{key}={yaml.safe_dump(value).strip()}")]

    def call(*words):
        places = ["--results", "results", "--runs", "runs"]
        monkeypatch.setattr(sys, "argv", ["case_study.py", *words, *places, *given])
        case_study.main()

    return call


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        ({}, 0.5),
        ({0.5: 3.0, 1.0: 2.0}, 2.0),
        ({0.5: 3.0, 1.0: 2.0, 2.0: 2.5}, None),
        ({0.5: 3.0, 1.0: 2.0, 2.0: 1.5}, 4.0),
        ({0.5: 3.0, 1.0: 2.0, 2.0: 1.5, 4.0: float("inf")}, None),
        ({0.5: 1.0, 1.0: 2.0, 2.0: 2.5}, 0.25),
        ({0.5: 3.0, 1.0: 2.0, 2.0: 1.5, 4.0: 1.6}, None),
        ({0.5: 3.0, 1.0: 2.0, 2.0: 1.5, 4.0: 1.4, 8.0: 1.3}, None),
    ],
)
def test_loras_rate_is_tuned_until_the_best_one_lies_inside(monkeypatch, tmp_path, losses, rate):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    import case_study

    rows = [{"method": "lora", "seed": 0, "rate": rate, "validation_loss": loss} for rate, loss in losses.items()]
    if rows:
        case_study.append_rows(tmp_path / "trainings.csv", rows)
    assert case_study.Study("smollm2-arc", tmp_path, tmp_path, []).next_rate("lora", 0) == rate


def test_a_test_of_another_training_than_the_best_is_not_passed_over(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    import case_study

    rows = [{"method": "lora", "seed": 0, "rate": rate, "validation_loss": 1 / rate} for rate in (2.0, 4.0)]
    case_study.append_rows(tmp_path / "trainings.csv", rows)
    case_study.append_rows(tmp_path / "tests.csv", [{"method": "lora", "seed": 0, "rate": 2.0, "test": 0.5}])
    with pytest.raises(UserError, match=r"lora, seed 0: got '2\.0'; allowed: rate 4\.0"):
        case_study.Study("smollm2-arc", tmp_path, tmp_path, []).test("lora", 0)


@pytest.mark.slow
def test_a_method_is_trained_and_tested_once_and_the_table_has_a_row_for_each(study, capsys):
    study("--seeds", "0")
    results = Path("results/smollm2-arc")
    before = {path.name: path.read_text() for path in results.iterdir()}
    assert before.keys() == {"tests.csv", "trainings.csv"}
    study("--seeds", "0")
    assert {path.name: path.read_text() for path in results.iterdir()} == before

    methods = [line.split(",")[0] for line in before["tests.csv"].splitlines()[1:]]
    assert methods == [CONSTANT, CHANCE, "base", "lora", "hira", "ours"]
    trained = [line.split(",")[0] for line in before["trainings.csv"].splitlines()[1:]]
    assert trained[-2:] == ["hira", "ours"]
    assert set(trained[:-2]) == {"lora"}
    assert 3 <= len(trained[:-2]) <= 5
    capsys.readouterr()
    study("--part", "report")
    table = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({len(row) for row in table}) == 1
    shown = {row[0].strip(): row[-1].strip() for row in table[2:]}
    assert shown["chance"] == "0.333"
    assert shown["best constant answer"] == "0.375"
    assert shown.keys() == {
        "chance",
        "best constant answer",
        "base model",
        "LoRA, tuned",
        "HiRA",
        "a run with finals",
    }
