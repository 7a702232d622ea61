"""Each task: what a row becomes, what is counted, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from sklearn.metrics import accuracy_score
from transformers import GenerationConfig, TrainingArguments

from glora_search.errors import UserError
from glora_search.recipe.schema import Recipe
from glora_search.scoring import Batches, evaluate
from glora_search.space.schema import SearchSpace
from glora_search.tasks import MODULES, Task, make_task, task_class
from glora_search.tasks.text_classification import TextClassification
from glora_search.tasks.token_classification import entities
from glora_search.training.trainer import PathTrainer


@pytest.fixture
def task(tiny, recipe, make, tmp_path):
    """``task(architecture, type, rows, data={}, **options)``: a task over rows of json."""

    def build(architecture, type_, rows, data=None, **options):
        source = {"source": "json", "train": make.json(tmp_path / "rows.jsonl", rows), **(data or {})}
        return make_task(Recipe.model_validate(recipe(tiny(architecture), source, type=type_, **options)))

    return build


def texts(make, count=20):
    return [{"text": text, "label": label} for text, label in make.sentences(count)]


# -- what all tasks share ---------------------------------------------------------------------------------------------


def test_every_task_of_a_recipe_has_a_class_that_says_what_is_better():
    directions = {name: task_class(name).direction for name in MODULES}
    assert directions == {
        "text-classification": "maximize",
        "token-classification": "maximize",
        "causal-lm": "minimize",
        "seq2seq-lm": "minimize",
        "image-classification": "maximize",
    }
    good, bad = {"validation": 2.0, "validation_loss": 0.5}, {"validation": 3.0, "validation_loss": 0.4}
    assert task_class("causal-lm").rank(good) < task_class("causal-lm").rank(bad)
    assert task_class("text-classification").rank(bad) < task_class("text-classification").rank(good)


@pytest.mark.parametrize("name", MODULES)
def test_the_line_that_uses_a_merged_model_is_python_without_double_quotes(name):
    line = task_class(name).usage("runs/x/merged")
    compile(line, "usage", "exec")
    assert '"' not in line
    assert "runs/x/merged" in line


class Backwards(TextClassification):
    """A task of one's own: the words in reverse."""

    def encode(self, rows):
        """Turn the texts round before they are tokens."""
        column = self.column("text_column")
        return super().encode(rows.map(lambda row: {column: " ".join(row[column].split()[::-1])}))


def test_a_task_of_ones_own_is_found_by_its_import_path(task, make, monkeypatch):
    import sys
    import types

    module = types.ModuleType("my_tasks")
    module.Backwards = Backwards
    module.NoTask = dict
    monkeypatch.setitem(sys.modules, "my_tasks", module)
    mine = task("bert", "my_tasks.Backwards", texts(make))
    plain = task("bert", "text-classification", texts(make))
    assert mine.train["input_ids"][0][1:-1] == plain.train["input_ids"][0][1:-1][::-1]
    for wrong in ("my_tasks.NoTask", "my_tasks.Missing"):
        with pytest.raises(UserError, match=r"task\.type.*text-classification.*import path"):
            task("bert", wrong, texts(make))


@pytest.mark.parametrize(
    ("type_", "data", "options", "words"),
    [
        (
            "text-classification",
            {"image_column": "x"},
            {},
            ["data.image_column", "'x'", "nothing", "data.label_column"],
        ),
        ("text-classification", {}, {"prompt": "{text}"}, ["task.prompt", "nothing"]),
        ("causal-lm", {"text_pair_column": "x"}, {}, ["data.text_pair_column", "nothing"]),
        ("causal-lm", {}, {"prompt": "{text}:"}, ["data.response_column", "None"]),
        ("causal-lm", {"response_column": "label"}, {"prompt": "{label}"}, ["data.response_column", "another column"]),
        ("seq2seq-lm", {}, {}, ["data.response_column", "None"]),
        (
            "causal-lm",
            {"response_column": "label"},
            {"prompt": "{nothing}"},
            ["task.prompt", "'nothing'", "text, label"],
        ),
    ],
)
def test_a_key_that_a_task_does_not_read_and_one_that_it_lacks_are_named(task, make, type_, data, options, words):
    with pytest.raises(UserError) as error:
        task("bert" if "lm" not in type_ else "llama", type_, texts(make), data, **options)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("prompt", ["no column", "{}", "{a.b}", "{a!r}", "{a:>9}", "{a", []])
def test_a_prompt_that_names_no_columns_is_refused(recipe, prompt):
    data = recipe("x", {"source": "csv", "train": "x.csv"}, type="causal-lm", prompt=[prompt] if prompt else prompt)
    if prompt:
        with pytest.raises(ValueError, match=r"prompt.*names of columns in braces"):
            Recipe.model_validate(data)
    else:
        assert Recipe.model_validate(data).task.prompts == []


# -- text classification ----------------------------------------------------------------------------------------------


def test_pairs_are_tokenized_together_with_segments(task, make):
    rows = [{**row, "other": "big data"} for row in texts(make)]
    made = task("bert", "text-classification", rows, {"text_pair_column": "other"})
    first = made.train[0]
    assert sorted(set(first["token_type_ids"])) == [0, 1]
    assert made.tokenizer.decode(first["input_ids"]).endswith("[SEP] big data [SEP]")


def test_a_head_of_another_number_of_classes_is_trained_and_not_adapted_whatever_its_name(task, make):
    made = task("bart", "text-classification", texts(make))
    model = made.model()
    assert model.classification_head.out_proj.out_features == 2
    assert made.modules_to_save == ["classification_head"]
    space = SearchSpace(targets=["fc1", "dense", "out_proj"], paths={"B": ["lora"]}, ranks=[2])
    names = [layer.name for layer in space.bind(model, made.modules_to_save).layers]
    assert "model.encoder.layers.0.fc1" in names
    assert not any("classification_head" in name for name in names)


@pytest.mark.parametrize(("architecture", "saved"), [("bert", []), ("distilbert", ["pre_classifier"]), ("roberta", [])])
def test_what_peft_adds_itself_is_not_named_again(task, make, architecture, saved):
    made = task(architecture, "text-classification", texts(make))
    made.model()
    assert made.modules_to_save == saved


@pytest.mark.parametrize(("architecture", "positions", "longest"), [("roberta", 40, 38), ("bert", 32, 32)])
def test_the_longest_input_is_what_the_positions_hold(task, make, architecture, positions, longest):
    made = task(architecture, "text-classification", texts(make), max_length=longest)
    ids = torch.full((1, longest), 5)
    assert made.model()(input_ids=ids).logits.shape == (1, 2)
    with pytest.raises(UserError, match=rf"task\.max_length: got {longest + 1}; allowed: at most {longest}"):
        task(architecture, "text-classification", texts(make), max_length=longest + 1)


def test_a_model_that_says_minus_one_has_no_longest_input(task, make):
    made = task("bert", "text-classification", texts(make))
    made.tokenizer.model_max_length = int(1e30)
    made._check_length(SimpleNamespace(max_position_embeddings=-1, model_type="xlnet"))


def test_accuracy_of_tallies_is_accuracy(task, make):
    made = task("bert", "text-classification", texts(make))
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 2, generator=generator), torch.randint(0, 2, (9,), generator=generator)
    sums = made.tally(logits, labels).sum(0).numpy()
    assert made.score(sums) == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    assert made.trivial_score() == pytest.approx(max(np.bincount(made.validation["labels"])) / len(made.validation))


# -- token classification ---------------------------------------------------------------------------------------------


def tagged(make, kinds=True):
    tag = {"sports": "B-S", "tech": "B-T"} if kinds else {"sports": "S", "tech": "T"}
    rest = "O" if kinds else "other"
    return [
        {"words": text.split(), "tags": [rest if word in make.filler else tag[label] for word in text.split()]}
        for text, label in make.sentences(20)
    ]


COLUMNS = {"text_column": "words", "label_column": "tags"}


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_the_first_token_of_a_word_has_its_tag_and_no_other_has_one(task, make, architecture):
    rows = tagged(make)
    rows[0] = {"words": ["unmatched", "goal", "of"], "tags": ["O", "B-S", "O"]}
    made = task(architecture, "token-classification", rows, COLUMNS)
    found = {tuple(row["words"]): row["tags"] for row in rows}
    for split, raw in ((made.train, made.data.train), (made.validation, made.data.validation)):
        for ids, labels, words in zip(split["input_ids"], split["labels"], raw["words"], strict=True):
            assert len(ids) == len(labels)
            assert labels[0] == labels[-1] == -100
            assert [made.data.labels[label] for label in labels if label != -100] == found[tuple(words)]


def test_rows_whose_words_have_no_token_are_left_out(task, make):
    rows = tagged(make)
    made = task("bert", "token-classification", rows, COLUMNS)
    odd = Dataset.from_list([{"words": ["\u200b", "\x00"], "tags": ["O", "O"]}, {"words": [], "tags": []}, rows[0]])
    assert len(made.encode(odd)) == 1


def test_words_and_tags_of_different_number_and_texts_that_are_no_lists_are_refused(task, make):
    uneven = [{"words": ["a", str(n)], "tags": [["X", "O"][n % 2]]} for n in range(16)]
    with pytest.raises(UserError, match=r"data\.label_column.*1 tags for 2 words in row 1.*a tag for each word"):
        task("bert", "token-classification", uneven, COLUMNS)
    with pytest.raises(UserError, match=r"data\.text_column: got 'text'; allowed: a column of lists"):
        task("bert", "token-classification", texts(make))
    rows = [{**row, "words": " ".join(row["words"])} for row in tagged(make)]
    with pytest.raises(UserError, match=r"data\.label_column.*one label in each row"):
        task("bert", "text-classification", rows, COLUMNS)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", set()),
        ("O O", set()),
        ("B-X I-X O B-X", {("X", 0, 2), ("X", 3, 4)}),
        ("B-X B-X", {("X", 0, 1), ("X", 1, 2)}),
        ("I-X I-X O I-Y", {("X", 0, 2), ("Y", 3, 4)}),
        ("B-X I-Y I-Y", {("X", 0, 1), ("Y", 1, 3)}),
    ],
)
def test_entities_are_those_of_conll(tags, expected):
    assert entities(tags.split()) == expected


def test_f1_counts_entities_that_are_found_whole(task, make):
    made = task("bert", "token-classification", tagged(make), COLUMNS)
    assert (made.metric, made.data.labels) == ("f1", ["B-S", "B-T", "O"])
    labels = torch.tensor([[-100, 0, 2, 1, -100], [-100, 2, 2, -100, -100]])
    guesses = torch.tensor([[1, 0, 2, 2, 1], [0, 1, 2, 1, 1]])  # one of two found, and one that is not there
    tally = made.tally(F.one_hot(guesses, 3).float(), labels)
    assert tally.tolist() == [[1, 1, 2], [0, 1, 0]]
    assert made.score(tally.sum(0).numpy()) == pytest.approx(2 * 1 / (2 + 2))
    assert made.score(np.zeros(3)) == 0


def test_tags_that_are_no_entities_are_scored_by_accuracy_over_words(task, make):
    made = task("bert", "token-classification", tagged(make, kinds=False), COLUMNS)
    assert made.metric == "accuracy"
    labels = torch.tensor([[-100, 0, 1, -100]])
    tally = made.tally(F.one_hot(torch.tensor([[0, 0, 2, 2]]), 3).float(), labels)
    assert tally.tolist() == [[1, 2]]
    assert made.score(np.array([1, 2])) == 0.5
    assert 0.5 < made.trivial_score() < 1


# -- language models --------------------------------------------------------------------------------------------------


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
    made = task("llama", "causal-lm", texts(make), {"response_column": "label"})
    made.tokenizer.padding_side = "left"
    batch = made.make_collator()([made.train[0], made.train[int(np.argmax([len(x) for x in made.train["input_ids"]]))]])
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


# -- image classification ---------------------------------------------------------------------------------------------


def test_images_become_pixels_of_the_models_size_in_every_split(tiny, recipe, make, tmp_path):
    data = {"source": "imagefolder", "train": make.images(tmp_path / "a", 20)}
    made = make_task(Recipe.model_validate(recipe(tiny("vit"), data, type="image-classification")))
    batch = made.collator([made.train[0], made.train[1]])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    brightness = made.collator(list(made.train))["pixel_values"].mean((1, 2, 3))
    light = torch.tensor(made.train["labels"]) == made.data.labels.index("light")
    assert brightness[light].min() > brightness[~light].max()
    made.model()
    assert made.modules_to_save == ["classifier"]


def test_images_of_another_column_and_texts_in_their_place_are_refused(tiny, recipe, make, tmp_path):
    data = {"source": "imagefolder", "train": make.images(tmp_path / "a", 20), "image_column": "picture"}
    with pytest.raises(UserError, match=r"data\.image_column: got 'picture'.*image, label"):
        make_task(Recipe.model_validate(recipe(tiny("vit"), data, type="image-classification")))
    pd.DataFrame(texts(make)).to_csv(tmp_path / "a.csv", index=False)
    data = {"source": "csv", "train": str(tmp_path / "a.csv"), "image_column": "text"}
    with pytest.raises(UserError, match=r"data\.image_column: got 'text'; allowed: a column of images"):
        make_task(Recipe.model_validate(recipe(tiny("vit"), data, type="image-classification")))


def test_image_classification_without_pillow_names_the_package(tiny, recipe, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(UserError, match=r"pip install 'glora-search\[vision\]'"):
        make_task(
            Recipe.model_validate(recipe("x", {"source": "imagefolder", "train": "x"}, type="image-classification"))
        )


def test_tasks_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Task(None)  # type: ignore[abstract]


def test_a_sequence_to_sequence_model_keeps_how_long_its_answers_are(task, make, tmp_path):
    rows = [{"text": text, "answer": label} for text, label in make.sentences(16)]
    task("t5", "seq2seq-lm", rows, {"response_column": "answer"}).model().save_pretrained(tmp_path / "model")
    assert GenerationConfig.from_pretrained(tmp_path / "model").max_new_tokens == 24
