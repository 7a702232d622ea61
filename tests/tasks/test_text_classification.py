"""Text classification: texts, pairs and accuracy."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score

from glora_search.errors import UserError
from glora_search.recipe.schema import Recipe
from glora_search.run.predict import predict
from glora_search.run.runner import Run
from glora_search.scoring import Batches, evaluate
from glora_search.tasks.text_classification import TextClassification


def test_pairs_are_tokenized_together_with_segments(task, make):
    rows = [{**row, "other": "big data"} for row in make.rows()]
    made = task("bert", "text-classification", rows, {"text_pair_column": "other"})
    first = made.train[0]
    assert sorted(set(first["token_type_ids"])) == [0, 1]
    assert made.tokenizer.decode(first["input_ids"]).endswith("[SEP] big data [SEP]")


def test_accuracy_of_tallies_is_accuracy(task, make):
    made = task("bert", "text-classification", make.rows())
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 2, generator=generator), torch.randint(0, 2, (9,), generator=generator)
    sums = made.tally(logits, labels).sum(0).numpy()
    assert made.score(sums) == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    share = max(np.bincount(made.validation["labels"])) / len(made.validation)
    assert made.best_constant(made.validation).metric == pytest.approx(share)


def test_rows_without_a_text_are_counted(task, make):
    rows = [{**row, "text": None if n % 4 == 0 else row["text"]} for n, row in enumerate(make.rows(40))]
    made = task("bert", "text-classification", rows)
    assert any("rows of data.train have no text" in note for note in made.row_notes())
    assert not made.row_notes(0.9)
    assert task("bert", "text-classification", make.rows(40)).row_notes() == []


@pytest.mark.parametrize("pairs", [False, True])
def test_rows_that_are_cut_are_counted(task, make, pairs):
    rows = [{**row, "text": row["text"] + " big" * 20 * (n % 4 == 0)} for n, row in enumerate(make.rows(40))]
    rows = [{**row, "other": "goal " * 2} for row in rows] if pairs else rows
    made = task("bert", "text-classification", rows, {"text_pair_column": "other"} if pairs else {}, max_length=16)
    cut = sum(" big" * 20 in text for text in made.data.train["text"])
    assert f"{cut} of {len(made.train)} rows of data.train are cut at task.max_length, 16 tokens" in made.row_notes()


class OfWords(TextClassification):
    """Reads lists of words."""

    def encode(self, rows):
        texts = [" ".join(words) for words in rows[self.column("text_column")]]
        return Dataset.from_dict({**self.tokenizer(texts), "labels": self.answers(rows)})


def test_a_task_of_ones_own_may_read_other_columns(task, make):
    rows = [{**row, "text": row["text"].split()} for row in make.rows()]
    made = task("bert", f"{__name__}.OfWords", rows)
    assert len(made.train) > 0
    assert made.row_notes() == []


@pytest.mark.parametrize(("model", "tokenizer"), [(0, None), (3, None), (3, "<pad>"), (None, None)])
def test_a_decoder_finds_the_last_token_of_a_row_however_rows_are_batched(task, tiny, tmp_path, model, tokenizer):
    folder = shutil.copytree(tiny("llama"), tmp_path / "padded")
    for name, key, value in (("config", "pad_token_id", model), ("tokenizer_config", "pad_token", tokenizer)):
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    texts = ["the goal", "a new old big goal of the team", "a chip", "the new code of the big phone"]
    rows = [{"text": f"{text} {'the ' * (n % 5)}", "label": "ab"[n % 2]} for n, text in enumerate(texts * 8)]
    made = task(folder, "text-classification", rows)
    model = made.model().eval()
    assert model.config.pad_token_id == made.tokenizer.pad_token_id
    one, all_ = (evaluate(model, Batches(made.train, made.collator, size), made).loss for size in (1, 64))
    assert one == pytest.approx(all_, rel=1e-5)


@pytest.mark.parametrize("model", ["qwen2", "llama"])  # whose tokenizer leaves an empty text empty, or begins it
def test_an_empty_text_has_one_token_and_the_same_logits_in_any_batch(task, make, model):
    rows = [{**row, "text": "" if n % 3 == 0 else row["text"]} for n, row in enumerate(make.rows(40))]
    made = task(model, "text-classification", rows)
    assert min(map(len, made.train["input_ids"])) == min(map(sum, made.train["attention_mask"])) == 1
    trained = made.model().eval()
    one, all_ = (evaluate(trained, Batches(made.train, made.collator, size), made).loss for size in (1, 64))
    assert one == pytest.approx(all_, rel=1e-5)


@pytest.mark.slow
def test_an_empty_text_is_learned_alone_in_a_batch_and_predicted(tiny, recipe, make, tmp_path):
    rows = [{**row, "text": "" if n % 7 == 0 else row["text"]} for n, row in enumerate(make.rows(40))]
    data = {"source": "json", "train": make.json(tmp_path / "rows.jsonl", rows)}
    settings = recipe(tiny("qwen2"), data, type="text-classification")
    for stage in ("supernet", "retrain"):
        settings[stage]["training"] |= {"per_device_train_batch_size": 1, "max_steps": 30}
    run = Run.create(Recipe.model_validate(settings), tmp_path / "run")
    run.all_stages()
    (answer,) = predict(run.view, [""])
    assert answer[0]["label"] in ("sports", "tech")


@pytest.mark.parametrize("kind", ["text-classification", "token-classification"])
def test_a_tokenizer_that_pads_on_the_left_does_not_change_scores_with_the_batch(task, make, tiny, tmp_path, kind):
    folder = shutil.copytree(tiny("gpt2"), tmp_path / "left")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left"}))
    rows, columns = make.rows(40), {}
    if kind == "token-classification":
        rows = [{"words": row["text"].split(), "tags": [row["label"]] * len(row["text"].split())} for row in rows]
        columns = {"text_column": "words", "label_column": "tags"}
    made = task(folder, kind, rows, columns)
    assert made.tokenizer.padding_side == "left"  # as it is saved with the model
    model = made.model().eval()
    one, all_ = (evaluate(model, Batches(made.train, made.collator, size), made).loss for size in (1, 64))
    assert one == pytest.approx(all_, rel=1e-5)
    made.config.summary_type = "last"
    assert made.batch_tokenizer().padding_side == "left"


def test_a_text_that_holds_the_token_which_ends_texts_is_refused_by_an_encoder_decoder(task, make):
    rows = make.rows(40)
    for row in rows[::8]:
        row["text"] = "the </s> goal"
    task("bert", "text-classification", rows)
    with pytest.raises(UserError, match=r"^data\.text_column: got .*the </s> goal.*allowed: texts without </s>"):
        task("t5", "text-classification", rows)
