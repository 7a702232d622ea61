"""The model card: the names of the labels, and lines of Python that pass them on."""

from __future__ import annotations

import json

import peft
import pytest
import yaml

from glora_search.adapters.card import write_card

ODD = ["a, b", "x|y", "'it''s'", '"quoted"', "two\nlines", "```", "café", "[0]", "{label}"]


@pytest.fixture
def card(tmp_path):
    """``card(facts)``: the text of an adapter folder's card."""

    def make(facts, **settings):
        config = {"peft_type": "LORA", "task_type": "SEQ_CLS", **settings}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        write_card(tmp_path, "base", facts)
        return (tmp_path / "README.md").read_text(encoding="utf-8")

    return make


def loaded_with(text, monkeypatch):
    """What the card's lines pass to peft."""
    given = {}

    class Model:
        def merge_and_unload(self):
            return self

    def from_pretrained(*args, **kwargs):
        given.update(kwargs, folder=args[0])
        return Model()

    monkeypatch.setattr(peft.AutoPeftModelForSequenceClassification, "from_pretrained", from_pretrained)
    exec(text.split("```python\n")[1].rpartition("```")[0], {})
    return given


@pytest.mark.parametrize("labels", [["sports", "tech"], ODD])
def test_the_loading_line_passes_the_labels_whatever_they_are_called(card, tmp_path, monkeypatch, labels):
    text = card({"labels": labels, "problem type": "single_label_classification", "adapter parameters": "12"})
    given = loaded_with(text, monkeypatch)
    assert given["folder"] == str(tmp_path)
    assert given["id2label"] == dict(enumerate(labels))
    assert given["label2id"] == {label: index for index, label in enumerate(labels)}
    assert given["problem_type"] == "single_label_classification"
    table = next(line for line in text.splitlines() if line.startswith("| labels |"))
    assert table.replace("\\|", "").count("|") == 3
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "peft"
    found = json.loads((tmp_path / "labels.json").read_text())
    assert found == {"labels": labels, "problem_type": "single_label_classification"}


def test_a_head_that_reads_the_last_token_is_told_what_pads(card, tmp_path):
    text = card({"labels": ["a", "b"], "problem type": "single_label_classification", "pad_token_id": 3})
    assert ")\nmodel.config.get_text_config().pad_token_id = 3\nplain = " in text
    assert json.loads((tmp_path / "labels.json").read_text())["pad_token_id"] == 3


@pytest.mark.parametrize("facts", [{}, {"labels": ["a", "b"], "problem type": "regression"}])
def test_code_of_the_model_is_trusted_where_the_recipe_trusts_it(card, facts):
    assert "trust_remote_code" not in card(facts)
    assert "trust_remote_code=True" in card({**facts, "trust_remote_code": True}).split("```")[1]


def test_a_card_without_labels_has_neither_names_nor_a_file(card, tmp_path):
    text = card({"adapter parameters": "12"}, task_type="CAUSAL_LM")
    assert f"AutoPeftModelForCausalLM.from_pretrained({json.dumps(str(tmp_path))})" in text
    assert "| labels" not in text
    assert not (tmp_path / "labels.json").exists()
