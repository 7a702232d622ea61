"""How a merged model is asked: what files and rows may hold."""

from __future__ import annotations

import json

import pytest

from glora_search.errors import UserError
from glora_search.run.questions import Questions, questions_in

LABELS, TEXTS = {"type": "text-classification"}, {"type": "causal-lm"}
ALPACA = {**TEXTS, "prompt": ["do {instruction} with {input}", "do {instruction}"]}
BOTH = {**TEXTS, "prompt": "do {instruction} with {input}"}
CHAT = {"messages_column": "chat"}


def asked(text, task=LABELS, data=None):
    """What the model of a recipe is asked by a file."""
    questions = Questions({"task": task, "data": data or {}})
    return [questions(one) for one in questions_in(text, "rows", whole=task["type"] == "causal-lm")]


def test_a_line_ends_with_a_line_feed_and_with_nothing_else_that_unicode_calls_the_end_of_a_line():
    text = "one\u2028still\x0cone\x85"
    assert asked(f"{text}\n\ntwo\n") == [text, "two"]
    assert asked(json.dumps({"text": text}, ensure_ascii=False) + "\n", TEXTS) == [text]


def test_an_object_of_json_on_several_lines_is_one_row():
    assert asked(json.dumps({"text": "one"}, indent=2)) == ["one"]


def test_brackets_without_an_end_are_a_text():
    for text in ("[" * 100_000, '{"a":' * 100_000):
        assert asked(text) == [text]


@pytest.mark.parametrize(
    ("row", "task", "expected"),
    [
        ({"instruction": "a"}, ALPACA, "do a"),
        ({"instruction": "a", "input": None}, BOTH, "do a with "),
        ({"instruction": "a", "input": float("nan")}, BOTH, "do a with "),
        ({"instruction": "a", "inputs": "b"}, BOTH, None),
        ({"instructions": "a", "input": "b"}, ALPACA, None),
    ],
)
def test_a_row_has_the_columns_of_one_of_the_templates(row, task, expected):
    if expected is not None:
        assert asked(json.dumps(row), task) == [expected]
        return
    with pytest.raises(UserError, match=r"a row: got .*; allowed: the columns"):
        asked(json.dumps(row), task)


def test_a_prompt_in_the_chat_template_is_a_users_turn():
    task = {**ALPACA, "chat": True}
    assert asked('{"instruction": "a"}', task) == [[{"role": "user", "content": "do a"}]]
    questions = Questions({"task": task, "data": {}})
    assert eval(questions.example("x")) == [{"role": "user", "content": "do Your instruction here"}]
    assert asked("a", {**TEXTS, "chat": True}) == [[{"role": "user", "content": "a"}]]


@pytest.mark.parametrize("value", [["a", "b"], {"a": "b"}])
def test_a_list_is_no_text(value):
    with pytest.raises(UserError, match=r"a row: got .*; allowed: text in the column text"):
        asked(json.dumps({"text": value}))


@pytest.mark.parametrize(
    "value",
    [[], 5, ["a"], [{"from": "human", "value": "a"}], [{"role": "user"}], [{"role": "assistant", "content": "a"}]],
)
def test_what_is_no_conversation_or_asks_nothing_is_refused(value):
    with pytest.raises(UserError, match=r"data\.messages_column: got 'chat'; allowed: a column of lists of messages"):
        asked(json.dumps({"chat": value}), TEXTS, CHAT)


def test_a_list_of_words_stays_one():
    ask = Questions({"task": {"type": "token-classification"}, "data": {"text_column": "words"}}, words=True)
    assert (ask({"words": ["the", 7]}), ask("the goal")) == (["the", "7"], "the goal")


@pytest.mark.parametrize("file", ["test.csv", "TEST.TSV"])
def test_a_table_is_not_read_as_texts(file):
    with pytest.raises(UserError, match=rf"--file: got '{file}'; allowed: json lines, one object for each row"):
        questions_in("text,label\na goal,sports\n", file, whole=False)


def test_texts_of_json_are_texts_without_their_quotes():
    texts = ["A fine book", "A waste\nof paper"]
    for indent in (None, 2):
        assert asked(json.dumps(texts, indent=indent)) == texts
    lines = "\n".join(map(json.dumps, texts))
    assert questions_in(lines, "texts.jsonl", whole=False) == texts
    assert questions_in(lines, "texts.txt", whole=False) == lines.split("\n")  # quotes may be a part of them


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"text": "a goal"},\n {"text": "a chip"},]\n', "line 2 column"),
        ('[\n  {"text": "a goal"},\n', "line 3 column 1"),
        ('{"text": "a goal"', "line 1 column 18"),
        ('[{"text": "a goal"}, "a chip"]', "it has others, or both"),
        ('[["a goal"], ["a chip"]]', "it has others, or both"),
        ('"a goal"\n{"text": "a chip"}', "Extra data: line 2 column 1"),
    ],
)
def test_what_is_called_json_and_is_none_is_not_read_as_texts(text, reason):
    for whole in (False, True):
        for name in ("rows.json", "rows.JSONL"):
            with pytest.raises(UserError, match=rf"--file: got '{name}'; allowed: json lines.*{reason}"):
                questions_in(text, name, whole=whole)
    assert questions_in("[]", "rows.json", whole=False) == []


def test_a_row_without_a_value_is_told_from_one_without_the_column():
    questions = Questions({"task": LABELS, "data": {}})
    for missing in (None, float("nan")):
        said = rf"a row: got \{{'text': {missing}\}}; allowed: a value in the columns text"
        with pytest.raises(UserError, match=said):
            questions({"text": missing})
        with pytest.raises(UserError, match=said):
            asked(json.dumps({"text": missing}))
    with pytest.raises(UserError, match=r"a row: got \['body'\]; allowed: the columns text"):
        questions({"body": "a goal"})
