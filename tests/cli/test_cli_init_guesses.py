"""``init``: what it makes of columns that may be labels, and of further splits."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": f"row {n}", "sentiment": n % 2} for n in range(60)], "text-classification"),
        ([{"text": f"row {n}", "sentiment": "neg"} for n in range(60)], "text-classification"),  # sorted by it
        ([{"text": f"row {n}", "is_spam": n % 2 == 0} for n in range(60)], "data whose columns say what is learned"),
        ([{"text": f"row {n}", "price": n / 7} for n in range(60)], "data whose columns say what is learned"),
        (
            [{"question": f"q {n}", "answer": f"a {n}", "label": n % 2} for n in range(60)],
            "data whose columns say what is learned",
        ),
        ([{"text": f"row {n}", "url": f"u/{n}", "id": n} for n in range(60)], "causal-lm"),
        ([{"instruction": f"q {n}", "output": f"a {n}", "category": "qa"} for n in range(60)], "causal-lm"),
        ([{"text": f"row {n}", "score": "" if n == 3 else n / 7} for n in range(60)], "text-regression"),
    ],
)
def test_what_may_be_labels_is_not_left_out_in_silence(call, tmp_path, rows, said):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, err = call("init", "--train", "rows.jsonl")
    assert said in out + err


def test_another_split_has_what_the_recipe_needs(call, tmp_path):
    (tmp_path / "train.tsv").write_text("text\tlabel\na\tx\n")
    (tmp_path / "validation.csv").write_text("text,label\na,x\n")
    assert "a file with the separator of" in call("init", "--train", "train.tsv", "--validation", "validation.csv")[2]
    (tmp_path / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "validation.jsonl").write_text('{"output": "b"}\n')
    code, _, err = call("init", "--train", "train.jsonl", "--validation", "validation.jsonl")
    assert (code, "instruction is not there" in err) == (2, True)
