"""The metrics of a recipe together, and samples."""

from __future__ import annotations

import pytest

from glora_search.errors import UserError
from glora_search.metrics import Panel, make_metrics, sample_answers

EXACT = {"type": "exact-match", "max_new_tokens": 6}
CHOICES = {"type": "multiple-choice", "choices": ["the goal", "the chip"]}


def test_every_metric_is_scored_on_every_split_in_the_recipes_order(asking):
    made = asking([CHOICES, EXACT])
    panel = Panel(made, {"validation": made.data.validation, "test": made.data.train})
    values, _ = panel.score(made.model().eval())
    assert list(values) == ["multiple_choice", "exact_match"]
    assert all(list(own) == ["validation", "test"] for own in values.values())
    assert {name: set(own) for name, own in panel.references().items()} == {
        "best constant answer": {"multiple_choice", "exact_match"},
        "chance": {"multiple_choice"},
    }


def test_max_rows_are_the_same_rows_each_time_and_are_said(asking):
    made = asking([{**EXACT, "max_rows": 3}, {**EXACT, "name": "all"}])
    panels = [Panel(made, {"validation": made.data.train}) for _ in range(2)]
    first, second = (panel.rows["exact_match"]["validation"]["text"] for panel in panels)
    assert list(first) == list(second)
    assert [one["rows"]["validation"] for one in panels[0].facts()] == [3, len(made.data.train)]


@pytest.mark.parametrize("name", ["exact_match", "perplexity"])
def test_two_metrics_of_one_name_are_refused(asking, name):
    made = asking([EXACT, {**CHOICES, "name": name}])
    with pytest.raises(UserError, match=rf"task\.metrics\.1\.name: got '{name}'"):
        make_metrics(made)


def test_metrics_need_a_task_that_writes_and_rows_that_ask(task, make):
    with pytest.raises(UserError, match=r"task\.metrics: got 'exact-match'; allowed: nothing: only language models"):
        task("bert", "text-classification", make.rows(), metrics=[EXACT])
    made = task("llama", "causal-lm", make.rows(), metrics=[EXACT])
    with pytest.raises(UserError, match=r"task\.metrics\.0\.type: got 'exact-match'; allowed: a metric of rows that"):
        make_metrics(made)


def test_samples_are_the_first_rows_with_what_is_asked_expected_and_written(asking, parrot, task, make):
    made = asking([EXACT], rows=[{"text": text, "answer": "the goal" * 200} for text, _ in make.sentences(40)])
    rows = made.data.validation
    samples = sample_answers(made, parrot(made.tokenizer, {None: "a chip"}), rows)
    assert [one["prompt"] for one in samples] == list(rows["text"])[:5]
    assert {one["generated"] for one in samples} == {"a chip"}
    assert all(one["expected"].endswith(" ...") and len(one["expected"]) < 1010 for one in samples)
    plain = task("llama", "causal-lm", [{"text": text} for text, _ in make.sentences(40)])
    for one, text in zip(
        sample_answers(plain, plain.model(), plain.data.validation), plain.data.validation["text"], strict=False
    ):
        assert f"{one['prompt'].removeprefix('<s>').strip()} {one['expected']}" == text
    labelled = task("bert", "text-classification", make.rows())
    assert sample_answers(labelled, labelled.model(), labelled.data.validation) == []


@pytest.mark.parametrize("metric", [EXACT, CHOICES])
def test_a_split_whose_conversations_ask_nothing_is_refused(asking, make, monkeypatch, metric):
    made = asking([metric])
    monkeypatch.setattr(made, "asked", lambda rows: rows.select([]))
    with pytest.raises(UserError, match=r"task\.metrics\.0\.type: .*nothing where no row of data\.validation asks"):
        Panel(made, {"validation": made.data.validation}).check()
