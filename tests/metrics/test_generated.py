"""Generated text, and exact match."""

from __future__ import annotations

import pytest
import torch

from glora_search.errors import UserError
from glora_search.metrics import GeneratedMetric, Panel, generate, make_metrics
from glora_search.metrics.base import CONSTANT
from glora_search.run import origin

EXACT = {"type": "exact-match", "max_new_tokens": 6}


def share(rows, answer):
    return sum(text == answer for text in rows["answer"]) / len(rows)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_an_answer_does_not_depend_on_the_batch_and_is_the_likeliest_token_at_each_place(asking, architecture):
    made = asking([EXACT], architecture)
    model, rows = made.model().eval(), made.data.validation
    together = generate(made, model, rows, 5)
    assert together == [generate(made, model, rows.select([number]), 5)[0] for number in range(len(rows))]
    ids = torch.tensor([made.questions(rows)[0].ids])
    written = []
    reads = model.config.is_encoder_decoder
    start = torch.tensor([[model.config.decoder_start_token_id]]) if reads else ids
    with torch.no_grad():
        for _ in range(5):
            logits = model(ids, decoder_input_ids=start).logits if reads else model(start).logits
            token = int(logits[0, -1].argmax())
            start = torch.cat([start, torch.tensor([[token]])], dim=1)
            written.append(token)
            if token == made.tokenizer.eos_token_id:
                break
    assert together[0] == made.tokenizer.decode(written, skip_special_tokens=True)


def test_prompts_are_padded_at_their_beginning_and_sampling_is_off(asking, parrot):
    made = asking([EXACT])
    model = parrot(made.tokenizer, {None: "the goal"})
    assert set(generate(made, model, made.data.validation, 6)) == {"the goal"}
    for ids, mask, settings in model.batches:
        assert bool((mask[:, -1] == 1).all())
        assert ids.shape == mask.shape
        assert (settings.do_sample, settings.max_new_tokens) == (False, 6)
    assert any((mask == 0).any() for _, mask, _ in model.batches)


def test_exact_match_is_the_share_of_right_answers_and_one_answer_for_all_is_noted(asking, parrot):
    made = asking([EXACT])
    (metric,), rows = make_metrics(made), made.data.validation
    found = metric.score(parrot(made.tokenizer, {None: "the goal"}), rows)
    assert found.value == pytest.approx(share(rows, "the goal"))
    assert found.note == f"gives the same answer, 'the goal', to all {len(rows)} questions"
    right = {question.prompt: question.expected for question in made.questions(rows)}
    found = metric.score(parrot(made.tokenizer, {**right, None: ""}), rows)
    assert (found.value, found.note) == (1.0, "")
    assert metric.references(rows) == {CONSTANT: max(share(rows, "the goal"), share(rows, "the chip"))}


@pytest.mark.parametrize(
    ("pattern", "generated", "right"),
    [("(goal|chip)", "a big goal", True), ("goal|chip", "team", False), (r"the (\w+)$", "the goal", True)],
)
def test_a_pattern_finds_the_answer_in_both_texts(asking, pattern, generated, right):
    (metric,) = make_metrics(asking([{**EXACT, "pattern": pattern}]))
    assert metric.worth(generated, "the goal") == right


def test_a_text_without_an_answer_is_never_right_and_letter_case_counts_unless_it_is_said(asking):
    strict, loose = make_metrics(asking([{**EXACT, "pattern": "[A-D]"}, {**EXACT, "name": "b", "ignore_case": True}]))
    assert strict.worth("none", "none either") == 0
    assert loose.worth(" The Goal", "the goal") == 1
    assert strict.worth("A", "B") == 0
    assert loose.worth(" ", "") == 0
    (empty,) = make_metrics(asking([{**EXACT, "pattern": "[0-9]*"}]))
    assert empty.worth("forty", "two") == 0


def test_responses_without_an_answer_are_refused_and_some_of_them_are_noted(asking):
    made = asking([{**EXACT, "pattern": "chip"}])
    panel = Panel(made, {"validation": made.data.validation})
    without = sum("chip" not in text for text in made.data.validation["answer"])
    assert panel.check() == [
        f"exact_match: {without} of {len(made.data.validation)} responses of data.validation have no answer to match"
    ]
    made = asking([{**EXACT, "pattern": "[0-9]+"}])
    with pytest.raises(UserError, match=r"task\.metrics\.0\.pattern: got '\[0-9\]\+'.*in data\.test it finds none"):
        Panel(made, {"test": made.data.validation}).check()


def test_responses_that_the_tokenizer_cannot_write_are_noted(asking):
    made = asking([EXACT], "t5")
    rows = made.data.validation
    made.data.validation = rows.map(lambda row: {"answer": f"{row['answer']}\n\u2603"})
    note = f"exact_match: {len(rows)} of {len(rows)} responses of data.validation cannot be written by the model's"
    assert any(said.startswith(note) for said in Panel(made, {"validation": made.data.validation}).check())


def test_answers_that_have_no_room_are_refused_and_long_prompts_and_responses_are_noted(asking):
    made = asking([{**EXACT, "max_new_tokens": 64}])
    with pytest.raises(UserError, match=r"task\.metrics\.0\.max_new_tokens: got 64; allowed: less than 64"):
        Panel(made, {"validation": made.data.validation}).check()
    made = asking([{**EXACT, "max_new_tokens": 60}])
    count = len(made.data.validation)
    lost = sum(len(question.ids) > 4 for question in made.questions(made.data.validation))
    notes = Panel(made, {"validation": made.data.validation}).check()
    assert notes == [f"exact_match: {lost} of {count} prompts of data.validation lose their beginning"]
    made = asking([{**EXACT, "max_new_tokens": 1}])
    assert (
        "longer than max_new_tokens, 1 tokens; the longest has 2" in Panel(made, {"x": made.data.validation}).check()[0]
    )


class Words(GeneratedMetric):
    """The number of words too many or too few."""

    direction = "minimize"

    def worth(self, generated, expected):
        return abs(len(generated.split()) - len(expected.split()))


def test_a_metric_of_ones_own_sees_generated_text(asking, parrot):
    made = asking([{"type": f"{__name__}.Words", "options": {"max_new_tokens": 9}}])
    (metric,), rows = make_metrics(made), made.data.validation
    assert (metric.name, metric.max_new_tokens, metric.direction) == ("Words", 9, "minimize")
    assert metric.score(parrot(made.tokenizer, {None: "the new goal"}), rows).value == 1
    assert metric.references(rows) == {CONSTANT: 0}
    made = asking([{"type": f"{__name__}.Words", "options": {"words": 9}}])
    with pytest.raises(UserError, match=r"task\.metrics\.0\.options: got \{'words': 9\}; allowed: max_new_tokens"):
        make_metrics(made)
    with pytest.raises(UserError, match=r"task\.metrics\.0\.type: got .*path of a glora_search\.metrics\.Metric"):
        make_metrics(asking([{"type": f"{__name__}.share"}]))


def test_a_run_knows_when_the_code_of_a_metric_of_ones_own_changes(asking, monkeypatch):
    made = asking([EXACT, {"type": f"{__name__}.Words", "options": {"max_new_tokens": 9}}])
    noted = origin._fingerprints(made, {})
    assert set(noted["code"]) == {__name__}
    assert origin.differences(noted, made) == []
    noted["code"][__name__] = "as it was"
    assert origin.differences(noted, made) == [f"task: the module {__name__} has changed"]
    assert origin.differences(noted, asking([EXACT])) == []
