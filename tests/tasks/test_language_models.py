"""Language models: what is learned, and perplexity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, TrainingArguments

from glora_search.errors import UserError
from glora_search.scoring import Batches, evaluate
from glora_search.tasks import task_class
from glora_search.training.trainer import PathTrainer


def test_only_the_response_is_learned_after_the_prompt_that_fits_the_row(task, make):
    rows = [
        {"ask": text, "more": ["", "big"][n % 2], "answer": "the team"}
        for n, (text, _) in enumerate(make.sentences(20))
    ]
    prompt = ["{ask} of {more} says", "{ask} says"]
    made = task("llama", "causal-lm", rows, {"response_column": "answer"}, prompt=prompt)
    for ids, labels, row in zip(made.train["input_ids"], made.train["labels"], made.data.train, strict=True):
        learned = [label for label in labels if label != -100]
        assert ids[-len(learned) :] == learned
        assert made.tokenizer.decode(learned) == "the team </s>"
        asked = f"{row['ask']} of big says" if row["more"] else f"{row['ask']} says"
        assert made.tokenizer.decode(ids[: -len(learned)], skip_special_tokens=True) == asked


def test_a_prompt_without_room_for_a_response_is_left_out_and_none_at_all_is_an_error(task, make):
    rows = [{"text": f"goal {n}" + " of the" * (20 * (n % 2)), "answer": "the team"} for n in range(20)]
    made = task("llama", "causal-lm", rows, {"response_column": "answer"})
    long = sum(len(text.split()) > 24 for text in made.data.train["text"])
    assert len(made.train) == len(made.data.train) - long
    with pytest.raises(UserError, match=r"data\.train.*something to learn within task\.max_length"):
        task(
            "llama",
            "causal-lm",
            [{"text": f"of the {n} " * 30, "answer": "a"} for n in range(9)],
            {"response_column": "answer"},
        )


def test_a_long_text_becomes_several_rows_and_no_token_is_lost(task):
    words = ["goal", "match", "team", "coach", "chip"]
    rows = [{"text": " ".join(words[(n + k) % 5] for k in range(30 + n))} for n in range(12)]
    made = task("llama", "causal-lm", rows)
    assert max(map(len, made.train["input_ids"])) == made.max_length == 24
    kept = sum(map(len, made.train["input_ids"]))
    assert kept >= sum(len(text.split()) + 1 for text in made.data.train["text"]) - len(made.data.train)


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_perplexity_is_that_of_all_tokens_whatever_the_batches(task, make, architecture):
    rows = [
        {"text": text, "answer": " ".join(["team"] * (1 + n % 5))} for n, (text, _) in enumerate(make.sentences(30))
    ]
    name = "seq2seq-lm" if architecture == "t5" else "causal-lm"
    made = task(architecture, name, rows, {"response_column": "answer"})
    model = made.model().eval()
    with torch.no_grad():
        losses, tokens = [], 0
        for row in made.train:
            batch = {key: torch.tensor([value]) for key, value in row.items()}
            count = int((batch["labels"] != -100).sum())
            losses.append(float(model(**batch).loss) * count)
            tokens += count
    expected = np.exp(sum(losses) / tokens)
    for size in (1, 7):
        found = evaluate(model, Batches(made.train, made.collator, size), made)
        assert found.metric == pytest.approx(expected, rel=1e-4)
        assert found.loss == pytest.approx(np.log(expected), rel=1e-4)


def test_batches_are_padded_at_the_end_and_the_saved_tokenizer_is_left_as_it_is(task, make):
    made = task("llama", "causal-lm", make.rows(), {"response_column": "label"})
    made.tokenizer.padding_side = "left"
    longest = int(np.argmax([len(ids) for ids in made.train["input_ids"]]))
    batch = made.make_collator().collator([made.train[0], made.train[longest]])  # before the labels are cut
    assert made.tokenizer.padding_side == "left"
    assert bool((batch["attention_mask"][:, 0] == 1).all())
    assert bool((batch["labels"][batch["attention_mask"] == 0] == -100).all())


def test_a_seq2seq_model_reads_the_prompt_and_writes_the_response(task, make):
    rows = [{"text": text, "answer": "the goal"} for text, _ in make.sentences(20)]
    made = task("t5", "seq2seq-lm", rows, {"response_column": "answer"}, prompt="old {text}")
    assert made.tokenizer.decode(made.train["input_ids"][0]).startswith("old ")
    assert made.tokenizer.decode(made.train["labels"][0]) == "the goal </s>"


@pytest.mark.parametrize(("architecture", "divides"), [("llama", True), ("t5", False)])
def test_a_loss_is_divided_by_the_items_of_all_micro_batches_only_where_the_model_does_it(
    tiny, tmp_path, architecture, divides
):
    model = task_class({"llama": "causal-lm", "t5": "seq2seq-lm"}[architecture]).auto_class.from_pretrained(
        tiny(architecture)
    )
    trainer = PathTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    assert trainer.model_accepts_loss_kwargs is divides


def test_a_sequence_to_sequence_model_keeps_how_long_its_answers_are(task, make, tmp_path):
    rows = [{"text": text, "answer": label} for text, label in make.sentences(16)]
    task("t5", "seq2seq-lm", rows, {"response_column": "answer"}).model().save_pretrained(tmp_path / "model")
    assert GenerationConfig.from_pretrained(tmp_path / "model").max_new_tokens == 24
