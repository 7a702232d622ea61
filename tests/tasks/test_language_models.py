"""Language models: what is learned, and perplexity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, TrainingArguments

from glora_search.errors import UserError
from glora_search.files.text import read_json, write_json
from glora_search.recipe.schema import Recipe
from glora_search.run.prepare import check
from glora_search.scoring import Batches, evaluate
from glora_search.tasks import task_class
from glora_search.tasks.causal_lm import CausalLM
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
    with pytest.raises(UserError, match=r"data\.train.*something to learn within task\.max_length, \d+ tokens: no"):
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


def test_rows_that_are_cut_or_left_out_are_counted_split_by_split(task):
    words = ["goal", "match", "team", "coach", "chip"]
    rows = [{"text": f"{a} {b}", "answer": "the team"} for a in words for b in words]
    rows += [{"text": f"new {word}", "answer": "the team " * 20} for word in words]
    rows += [{"text": f"old {word} " * 20, "answer": "the team"} for word in words]
    made = task("llama", "causal-lm", rows, {"response_column": "answer"})
    made.test_split()
    sizes = {"train": len(made.data.train), "validation": len(made.data.validation)}
    cut, out = (
        {name: sum(len(row[column].split()) > 20 for row in getattr(made.data, name)) for name in sizes}
        for column in ("answer", "text")
    )
    notes = made.row_notes()
    for name, size in sizes.items():
        for count, what in ((cut[name], "are cut at"), (out[name], "are left out: nothing to learn within")):
            said = f"{count} of {size} rows of data.{name} {what} task.max_length, 24 tokens"
            assert (said in notes) is (count > 0)
    assert len(made.train) == sizes["train"] - out["train"]
    assert any("data.test" in note for note in notes)
    assert made.row_notes(share=0.5) == []


@pytest.mark.parametrize(("architecture", "type_"), [("llama", "causal-lm"), ("t5", "seq2seq-lm")])
def test_a_missing_response_is_refused_with_its_row_and_empty_ones_are_counted(task, architecture, type_):
    words = ["goal", "match", "team", "coach", "chip", "phone"]
    rows = [{"text": f"{word} {end}", "answer": "team"} for word in words for end in words]
    silent = [row if number % 2 else {**row, "answer": " "} for number, row in enumerate(rows)]
    made = task(architecture, type_, silent, {"response_column": "answer"})
    count = sum(answer == " " for answer in made.data.train["answer"])
    note = f"{count} of {len(made.data.train)} rows of data.train have an empty response, which the model learns"
    assert note in made.row_notes()
    rows[6] = {"text": "a new goal", "anwser": "team"}
    with pytest.raises(UserError, match=r"data\.response_column: got 'answer'; .*: row 7 of .*jsonl has none"):
        task(architecture, type_, rows, {"response_column": "answer"})


@pytest.mark.parametrize(("architecture", "type_"), [("llama", "causal-lm"), ("t5", "seq2seq-lm")])
def test_a_cut_response_is_not_learned_to_end_there(task, architecture, type_):
    words = ["goal", "match", "team", "coach", "chip"]
    rows = [{"text": f"{word} {end}", "answer": "team " * 40} for word in words for end in words]
    made = task(architecture, type_, rows, {"response_column": "answer"})
    end = made.tokenizer.eos_token_id
    assert all(end not in labels and len(labels) == made.max_length for labels in made.train["labels"])
    *cut, endless = made.row_notes()
    assert cut == [
        f"{len(rows)} of {len(rows)} rows of data.{split} are cut at task.max_length, 24 tokens"
        for split, rows in (("train", made.data.train), ("validation", made.data.validation))
    ]
    assert f"no row has {made.tokenizer.eos_token} in what is learned" in endless


@pytest.fixture
def without_eos(tiny, tmp_path):
    """``without_eos(**tokens)``: the folder of a tiny Llama whose tokenizer ends texts as BERT's, without eos_token."""

    def build(**tokens):
        folder = shutil.copytree(tiny("llama"), tmp_path / "base")
        made = AutoTokenizer.from_pretrained(folder).backend_tokenizer
        made.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
        tokens |= {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>"}
        PreTrainedTokenizerFast(tokenizer_object=made, **tokens).save_pretrained(folder)
        write_json(folder / "generation_config.json", {})
        return folder

    return build


def test_where_no_token_is_called_the_end_a_separator_ends_answers(task, make, without_eos):
    made = task(without_eos(sep_token="</s>"), "causal-lm", make.rows(), {"response_column": "label"})
    end = made.tokenizer.sep_token_id
    for ids, labels in zip(made.train["input_ids"], made.train["labels"], strict=True):
        assert (ids.count(end), labels[-1]) == (1, end)
    assert made.model().generation_config.eos_token_id == [end]
    assert made.processor.eos_token == "</s>"  # by which transformers and `predict` know the end, too
    assert not [note for note in made.row_notes() if "end" in note]


def test_where_no_token_can_end_answers_it_is_said(task, make, without_eos):
    made = task(without_eos(), "causal-lm", make.rows(), {"response_column": "label"})
    why = "since its tokenizer has neither eos_token nor sep_token: it writes until max_new_tokens"
    note = f"the model does not learn where an answer ends, {why}"
    assert note in made.row_notes()
    plain = task(Path(made.recipe.task.model), "causal-lm", make.rows())
    assert note not in plain.row_notes()


def test_smoothing_the_labels_that_a_decoder_reads_is_refused(tiny, recipe, make, tmp_path):
    data = {"source": "json", "train": make.json(tmp_path / "rows.jsonl", make.rows()), "response_column": "label"}
    made = recipe(tiny("t5"), data, type="seq2seq-lm")
    made["retrain"]["training"]["label_smoothing_factor"] = 0.1
    with pytest.raises(UserError, match=r"retrain\.training\.label_smoothing_factor: got 0\.1; allowed: 0 with an enc"):
        check(Recipe.model_validate(made))


def test_a_token_that_a_causal_model_does_not_have_is_refused_before_the_model_is_tried(tiny, recipe, make, tmp_path):
    folder = shutil.copytree(tiny("llama"), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["brandnew"])
    tokenizer.save_pretrained(folder)
    rows = [{"text": f"{row['text']} brandnew", "label": row["label"]} for row in make.rows()]
    data = {"source": "json", "train": make.json(tmp_path / "rows.jsonl", rows), "response_column": "label"}
    with pytest.raises(UserError, match=rf"data\.train has token {len(tokenizer) - 1}, .*embedding has"):
        check(Recipe.model_validate(recipe(folder, data, type="causal-lm")))


def test_a_loss_is_that_of_the_labels_whatever_a_router_adds(task, make):
    made = task("mixtral", "causal-lm", make.rows(), {"response_column": "label"})
    model = made.model()
    made.check_model(model)
    scored = evaluate(model, Batches(made.validation, made.collator, 4), made)
    assert scored.loss == pytest.approx(np.log(scored.metric), rel=1e-5)


def test_a_decoder_whose_own_loss_would_teach_it_to_copy_is_refused(task, make):
    made = task("bart", "causal-lm", make.rows(), {"response_column": "label"})
    with pytest.raises(UserError, match=r"task\.model: .*next token; that of a BartForCausalLM is of the token itself"):
        made.check_model(made.model())


def test_plain_texts_are_split_and_so_none_is_cut(task):
    made = task("llama", "causal-lm", [{"text": "goal " * n} for n in range(20, 60)])
    assert made.row_notes() == []


NO_TEXTS = {
    "messages": (
        lambda n: [{"role": "user", "content": f"goal {n}"}],
        r"'role'.*causal-lm, with data\.messages_column",
    ),
    "numbers": (lambda n: n, r"not of \d+$"),
    "lists": (lambda n: ["goal", f"{n}"], r"not of \['goal', '\d+'\]$"),
    "mappings": (lambda n: {"a": f"goal {n}"}, r"not of \{'a': 'goal \d+'\}$"),
}


@pytest.mark.parametrize("name", NO_TEXTS)
@pytest.mark.parametrize("type_", ["causal-lm", "seq2seq-lm", "text-classification"])
def test_a_text_column_that_is_no_text_is_refused_with_its_first_row(task, type_, name):
    value, shown = NO_TEXTS[name]
    rows = [{"text": value(n), "label": ["a", "b"][n % 2]} for n in range(20)]
    architecture = {"seq2seq-lm": "t5", "causal-lm": "llama"}.get(type_, "bert")
    data = {"response_column": "label"} if type_ == "seq2seq-lm" else {}
    with pytest.raises(UserError, match=rf"data\.text_column: got 'text'; allowed: a column of text, .*{shown}"):
        task(architecture, type_, rows, data)


def test_numbers_can_be_a_part_of_a_prompt_and_a_response(task):
    rows = [{"ask": word, "count": n, "answer": n % 7} for n, word in enumerate(["goal", "chip"] * 10)]
    made = task("llama", "causal-lm", rows, {"response_column": "answer"}, prompt="{ask} {count}")
    assert len(made.train) == len(made.data.train)


@pytest.mark.parametrize(("architecture", "type_"), [("llama", "causal-lm"), ("t5", "seq2seq-lm")])
def test_the_best_answer_that_ignores_the_prompt_knows_how_frequent_trains_answers_are(task, make, architecture, type_):
    words = ["goal", "goal", "goal", "team"]
    rows = [{"text": text, "answer": words[n % 4]} for n, (text, _) in enumerate(make.sentences(60))]
    made = task(architecture, type_, rows, {"response_column": "answer"})
    share = list(made.data.train["answer"]).count("goal") / len(made.data.train)
    chances = [share if word == "goal" else 1 - share for word in made.data.validation["answer"]]
    tokens = 2 * len(chances)  # the word, and the end
    found = made.best_constant(made.validation)
    assert found.metric == pytest.approx(np.exp(-np.log(chances).sum() / tokens))
    open_ = task(architecture, type_, [{**row, "answer": row["text"]} for row in rows], {"response_column": "answer"})
    assert open_.best_constant(open_.validation) is None


class Hits(CausalLM):
    """Counts tokens that are right, but forgets `score`."""

    metric = "hits"
    direction = "maximize"

    def tally(self, logits, labels):
        logits, labels = self.aligned(logits, labels)
        return torch.stack([(logits.argmax(-1) == labels).sum(1), (labels != -100).sum(1)], dim=1)


class RightHits(Hits):
    """The same with a score."""

    def score(self, sums):
        return float(sums[0] / sums[1])


class EarlyHits(RightHits):
    """Compares each label with the logits of the token itself, which are for the next one."""

    def tally(self, logits, labels):
        return torch.stack([(logits.argmax(-1) == labels).sum(1), (labels != -100).sum(1)], dim=1)


def test_a_tally_that_its_score_does_not_fit_is_refused_and_one_of_the_other_token_too(tiny, recipe, make, tmp_path):
    rows = [{"text": text, "answer": "the team"} for text, _ in make.sentences(40)]
    data = {"source": "json", "train": make.json(tmp_path / "rows.jsonl", rows), "response_column": "answer"}
    with pytest.raises(UserError, match=r"task\.type: got .*Hits'; allowed: a task whose score fits its tally"):
        check(Recipe.model_validate(recipe(tiny("llama"), data, type=f"{__name__}.Hits")))
    with pytest.raises(UserError, match=r"task\.type: got .*EarlyHits'; .* of right answers is 0, and 1 without"):
        check(Recipe.model_validate(recipe(tiny("llama"), data, type=f"{__name__}.EarlyHits")))
    made = check(Recipe.model_validate(recipe(tiny("llama"), data, type=f"{__name__}.RightHits")))
    found = evaluate(made.model(), Batches(made.validation, made.collator, 8), made)
    assert 0 <= found.metric <= 1
    assert made.best_constant(made.validation) is None


def test_a_base_model_says_something_before_training_unless_a_part_of_it_is_drawn(task, make):
    writer = task("llama", "causal-lm", make.rows(), {"response_column": "label"})
    writer.model()
    assert not writer.draws
    labelled = task("bert", "text-classification", make.rows())
    labelled.model()
    assert labelled.draws


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoders_loss_in_half_precision_is_that_of_its_perplexity(task, make, architecture, tiny, tmp_path):
    rows = [{"text": text, "response": f"the {label}"} for text, label in make.sentences(16)]
    made = task(architecture, "seq2seq-lm", rows, {"response_column": "response"}, dtype="bfloat16")
    model = made.model().eval()
    found = evaluate(model, Batches(made.train, made.collator, 4), made)
    assert found.loss == pytest.approx(np.log(found.metric), abs=1e-5)
    model.save_pretrained(tmp_path / "merged")
    merged = made.load_merged(str(tmp_path / "merged")).eval()
    assert evaluate(merged, Batches(made.train, made.collator, 4), made).loss == pytest.approx(found.loss, abs=1e-5)


@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_a_model_whose_way_to_generate_was_changed_can_be_saved_whatever_else_its_author_set(
    task, make, architecture, tiny, tmp_path
):
    shutil.copytree(tiny(architecture), tmp_path / "base")
    published = {"temperature": 0.9, "top_p": 0.6, "early_stopping": True}  # without do_sample, and without num_beams
    write_json(tmp_path / "base" / "generation_config.json", {**published, "decoder_start_token_id": 0})
    type_ = {"t5": "seq2seq-lm", "llama": "causal-lm"}[architecture]
    made = task(tmp_path / "base", type_, make.rows(), {"response_column": "label"})
    made.model().save_pretrained(tmp_path / "merged")
    saved = read_json(tmp_path / "merged" / "generation_config.json")
    assert {name: saved[name] for name in published} == published
    assert saved["eos_token_id"] == [made.tokenizer.eos_token_id]


def test_a_tokenizer_without_padding_and_end_pads_with_any_token(task, make, tiny, tmp_path):
    folder = shutil.copytree(tiny("llama"), tmp_path / "bare")
    path = folder / "tokenizer_config.json"
    settings = {
        key: value for key, value in json.loads(path.read_text()).items() if key[:3] not in ("eos", "pad", "bos")
    }
    path.write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": None}))
    made = task(folder, "causal-lm", make.rows(40))
    assert made.tokenizer.pad_token == "<unk>"
    assert made.collator([made.train[0], made.train[1]])["labels"].shape[0] == 2
    with pytest.raises(
        UserError, match=r"^task\.model: got .*; allowed: a model whose tokenizer has a token that pads"
    ):
        task(folder, "text-classification", make.rows(40))
