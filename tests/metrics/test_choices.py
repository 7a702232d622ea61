"""Multiple choice by likelihood."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glora_search.errors import UserError
from glora_search.metrics import Panel, make_metrics
from glora_search.metrics.base import CHANCE, CONSTANT

COLUMN = {"type": "multiple-choice", "choices_column": "options"}
LISTED = {"type": "multiple-choice", "choices": ["the goal", "the chip", "the big new team"]}


def costs(made, model, row, choices):
    """What each choice costs after a row's prompt, in a batch of its own."""
    found = []
    for choice in choices:
        ((ids, labels),) = made.completed(made.data.validation.select([row]), [choice])
        with torch.no_grad():
            output = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
        found.append(float(output.loss) * sum(label != -100 for label in labels))
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("per_character", [False, True])
def test_the_likeliest_choice_is_the_answer(asking, architecture, per_character):
    made = asking([{**LISTED, "per_character": per_character}], architecture)
    (metric,), model, rows = make_metrics(made), made.model().eval(), made.data.validation
    lengths = [len(choice) if per_character else 1 for choice in LISTED["choices"]]
    chosen = [
        LISTED["choices"][int(np.argmin(np.array(costs(made, model, row, LISTED["choices"])) / lengths))]
        for row in range(len(rows))
    ]
    right = np.mean([one == answer for one, answer in zip(chosen, rows["answer"], strict=True)])
    found = metric.score(model, rows)
    assert found.value == pytest.approx(right)
    assert bool(found.note) is (len(set(chosen)) == 1)


def test_what_a_choice_costs_does_not_depend_on_its_batch(asking):
    made = asking([LISTED])
    (metric,), model, rows = make_metrics(made), made.model().eval(), made.data.validation
    found = metric._losses(model, rows.select([0, 1, 1]), ["the goal", "the big new team", "chip"])
    expected = [costs(made, model, 0, ["the goal"])[0], *costs(made, model, 1, ["the big new team", "chip"])]
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("options", ["the goal|the chip|the team", ["the goal", "the chip", "the team"]])
def test_choices_in_a_column_are_a_list_or_text_and_are_no_input(asking, make, options):
    rows = [
        {"text": text, "answer": f"the {word}", "options": options}
        for (text, _), word in zip(make.sentences(40), ["goal", "chip", "goal", "team"] * 10, strict=True)
    ]
    made = asking([COLUMN], rows=rows)
    (metric,), own = make_metrics(made), made.data.validation
    share = max(np.unique(own["answer"], return_counts=True)[1]) / len(own)
    assert metric.references(own) == pytest.approx({CONSTANT: share, CHANCE: 1 / 3})
    plain = asking([], rows=rows)
    assert "options" not in plain.data.validation.column_names
    assert plain.data.fingerprints() == made.data.fingerprints()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("the goal", "at least 2 choices in each row"),
        ("the goal|the goal", "at least 2 choices in each row"),
        ("the goal||the chip", "at least 2 choices in each row"),
        (["the goal", None], "at least 2 choices in each row"),
        (None, "at least 2 choices in each row"),
        ("the team|a chip", "choices one of which is the row's response"),
        ({"text": ["a", "b"]}, "a column of lists, or of text with '|' between choices"),
    ],
)
def test_rows_without_choices_are_refused(asking, make, options, words):
    rows = [{"text": text, "answer": "the goal", "options": options} for text, _ in make.sentences(40)]
    made = asking([COLUMN], rows=[*rows[:-1], {**rows[-1], "options": options}])
    with pytest.raises(UserError, match=r"task\.metrics\.0\.choices_column: got 'options'") as error:
        Panel(made, {"validation": made.data.validation}).check()
    assert words in str(error.value)


def test_a_column_that_is_not_there_and_a_response_that_is_no_choice_are_refused(asking):
    with pytest.raises(UserError, match=r"task\.metrics\.0\.choices_column: got 'opts'; allowed: a column of"):
        asking([{**COLUMN, "choices_column": "opts"}])
    made = asking([{"type": "multiple-choice", "choices": ["A", "B"]}])
    with pytest.raises(UserError, match=r"task\.metrics\.0\.choices: .*the response 'the (goal|chip)'"):
        Panel(made, {"validation": made.data.validation}).check()


def test_white_space_around_a_response_is_that_of_the_choices(asking, make):
    words = {"sports": "goal", "tech": "chip"}
    rows = [{"text": text, "answer": f" the {words[label]} "} for text, label in make.sentences(40)]
    made = asking([{"type": "multiple-choice", "choices": ["the goal", "the chip"]}], rows=rows)
    (metric,), seen = make_metrics(made), []
    completed = made.completed
    made.completed = lambda rows, answers: seen.extend(answers) or completed(rows, answers)
    metric.score(made.model(), made.data.validation)
    assert set(seen) == {" the goal ", " the chip "}


def test_rows_that_do_not_fit_are_noted_with_their_longest_choice(asking):
    made = asking([{**LISTED, "choices": ["the goal", "the chip", "the " * 60]}])
    rows = made.data.validation
    long = sum(len(question.ids) + 61 > 64 for question in made.questions(rows))
    assert long > 0
    notes = Panel(made, {"validation": rows}).check()
    assert notes == [f"multiple_choice: {long} of {len(rows)} rows of data.validation lose their beginning"]
    assert Panel(asking([LISTED]), {"validation": rows}).check() == []


def test_a_model_whose_loss_is_no_number_has_no_figure(asking):
    made = asking([LISTED])
    (metric,), model = make_metrics(made), made.model()
    model.lm_head.weight.data[:] = torch.nan
    assert np.isnan(metric.score(model, made.data.validation).value)


def test_an_empty_prompt_is_what_begins_a_text_so_that_all_of_a_choice_counts(asking, make):
    rows = [
        {"text": "" if number % 2 else text, "answer": "the goal"} for number, (text, _) in enumerate(make.sentences(9))
    ]
    made = asking([LISTED], "gpt2", rows=rows)
    ((ids, labels),) = made.completed(made.data.train.filter(lambda row: not row["text"]).select([0]), ["the chip"])
    assert (ids[0], labels[0]) == (made.tokenizer.bos_token_id, -100)
    assert -100 not in labels[1:]
    assert all(question.ids for question in made.questions(made.data.train))
