"""Token classification: tags of words, and entities."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from glora_search.errors import UserError
from glora_search.recipe.schema import Recipe
from glora_search.tasks import make_task


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
    assert made.row_notes() == []


def test_rows_that_are_left_out_are_counted(task, make):
    made = task("bert", "token-classification", [*tagged(make), *[{"words": [], "tags": []}] * 30], COLUMNS)
    count = len(made.data.train) - len(made.train)
    note = f"{count} of {len(made.data.train)} rows of data.train are left out: no word has a token and a tag"
    assert note in made.row_notes()
    assert made.row_notes(share=0.99) == []


def test_words_with_a_tag_and_without_a_token_are_counted(task, make):
    rows = tagged(make)
    for row in rows[::2]:
        row["words"], row["tags"] = ["\u200b", *row["words"]], ["B-S", *row["tags"]]
    made = task("bert", "token-classification", rows, COLUMNS)
    lost = sum("\u200b" in words for words in made.data.train["words"])
    what = "have words without a token, whose tags are neither learned nor scored"
    assert f"{lost} of {len(made.data.train)} rows of data.train {what}" in made.row_notes()


def test_rows_that_are_cut_are_counted(task, make):
    rows = [{key: values * (1 + 9 * (n % 4 == 0)) for key, values in row.items()} for n, row in enumerate(tagged(make))]
    made = task("bert", "token-classification", rows, COLUMNS, max_length=32)
    cut = sum(len(words) > 30 for words in made.data.train["words"])
    note = f"{cut} of {len(made.data.train)} rows of data.train are cut at task.max_length, 32 tokens"
    assert f"{note}: words after it are not scored" in made.row_notes()


def test_words_and_tags_of_different_number_and_texts_that_are_no_lists_are_refused(task, make):
    uneven = [{"words": ["a", str(n)], "tags": [["X", "O"][n % 2]]} for n in range(16)]
    with pytest.raises(
        UserError, match=r"data\.label_column.*1 tags for the 2 words \['a', '0'\].*a tag for each word"
    ):
        task("bert", "token-classification", uneven, COLUMNS)
    with pytest.raises(UserError, match=r"data\.text_column: got 'text'; allowed: a column of lists"):
        task("bert", "token-classification", make.rows())
    rows = [{**row, "words": " ".join(row["words"])} for row in tagged(make)]
    with pytest.raises(UserError, match=r"data\.label_column.*one label in each row"):
        task("bert", "text-classification", rows, COLUMNS)


def test_a_missing_word_is_refused_with_its_row(task, make):
    rows = tagged(make)
    rows[4]["words"][1] = None
    with pytest.raises(
        UserError, match=r"data\.text_column: got 'words'.*a value for every word: row 5 of .* has none"
    ):
        task("bert", "token-classification", rows, COLUMNS)


def test_a_word_of_the_tag_minus_100_does_not_count(task, make):
    rows = [{**row, "tags": ["-100", *row["tags"][1:]]} for row in tagged(make, kinds=False)]
    made = task("bert", "token-classification", rows, COLUMNS)
    assert made.data.labels == ["S", "T", "other"]
    batch = made.collator([made.train[0], made.train[1]])
    assert (batch["labels"][:, 1] == -100).all()
    words = (batch["labels"] != -100).sum(1)
    assert words.tolist() == [len(tags) - 1 for tags in made.data.train["tags"][:2]]
    output = made.model()(**batch)
    assert made.tally(output.logits, batch["labels"])[:, 1].tolist() == words.tolist()
    counted = batch["labels"] != -100
    loss = F.cross_entropy(output.logits[counted], batch["labels"][counted])
    assert output.loss.item() == pytest.approx(loss.item())


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", set()),
        ("O O", set()),
        ("B-X I-X O B-X", {("X", 0, 1), ("X", 3, 3)}),
        ("B-X B-X", {("X", 0, 0), ("X", 1, 1)}),
        ("I-X I-X O I-Y", {("X", 0, 1), ("Y", 3, 3)}),
        ("B-X I-Y I-Y", {("X", 0, 0), ("Y", 1, 2)}),
        ("I-a-b B-a-b I-a", {("a-b", 0, 0), ("a-b", 1, 1), ("a", 2, 2)}),
    ],
)
def test_entities_are_those_of_conll(tags, expected):
    assert set(get_entities(tags.split())) == expected


def conll(tags):
    """CoNLL's rules: an ``I-X`` that follows no tag of the same kind begins an entity."""
    found, start = set(), 0
    for position, tag in enumerate([*tags, "O"]):
        before = tags[position - 1] if position else "O"
        inside = tag[:2] == "I-" and before[2:] == tag[2:]
        if before != "O" and not inside:
            found.add((before[2:], start, position - 1))
        if not inside:
            start = position
    return found


@given(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y", "B-a-b", "I-a-b", "I-a"]), max_size=9))
def test_entities_of_any_tags_are_those_of_conll(tags):
    assert set(get_entities(tags)) == conll(tags)


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
    assert 0.5 < made.best_constant(made.validation).metric < 1


def encoded_as_in_a_text(made, words):
    """A row's tokens with their words, which are those of the text."""
    row = made.encode(Dataset.from_list([{"words": words, "tags": ["B-S"] * len(words)}]))[0]
    assert row["input_ids"] == made.tokenizer(" ".join(words))["input_ids"]
    return [
        made.tokenizer.decode(token)
        for token, label in zip(row["input_ids"], row["labels"], strict=True)
        if label != -100
    ]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "qwen2"])
def test_words_have_the_tokens_that_they_have_in_a_text(task, make, architecture):
    made = task(architecture, "token-classification", tagged(make), COLUMNS)
    words = make.sentences(1)[0][0].split()
    assert len(encoded_as_in_a_text(made, words)) == len(words)


GENERIC = {
    "a class that knows nothing of spaces": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "as Qwen's on the hub": {"add_prefix_space": False},
}


@pytest.mark.parametrize("named", GENERIC.values(), ids=GENERIC.keys())
def test_a_tokenizer_that_does_not_put_spaces_before_words_is_given_them(task, make, tiny, tmp_path, named):
    folder = shutil.copytree(tiny("qwen2"), tmp_path / "generic")
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **named}))
    made = task(folder, "token-classification", tagged(make), COLUMNS)
    assert made.spaced
    assert len(encoded_as_in_a_text(made, make.sentences(1)[0][0].split())) == 6
    first = encoded_as_in_a_text(made, ["goal", "2020", "goal"])
    assert [token.strip()[:1] for token in first] == ["g", "2", "g"]  # not the space before a number


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_a_space_that_is_a_token_of_its_own_does_not_stand_for_its_word(task, make, architecture):
    made = task(architecture, "token-classification", tagged(make), COLUMNS)
    assert [token.strip()[:1] for token in encoded_as_in_a_text(made, ["goal", "2020", "é", "goal"])][1] == "2"
    row = made.encode(Dataset.from_list([{"words": ["goal", "2020"], "tags": ["B-S", "O"]}]))[0]
    labelled = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert len(labelled) == 2
    assert not {made.tokenizer.decode(token) for token in labelled} & {"", " "}


def test_a_split_without_any_word_is_refused(recipe, make, tiny, tmp_path):
    data = {"source": "json", "train": make.json(tmp_path / "a.jsonl", tagged(make)), **COLUMNS}
    data["validation"] = make.json(tmp_path / "b.jsonl", [{"words": [], "tags": []}] * 2)
    with pytest.raises(UserError, match=r"^data\.validation: got '2 rows'; allowed: rows with something to learn"):
        make_task(Recipe.model_validate(recipe(tiny("bert"), data, type="token-classification")))
