"""What a merged model is asked: a text, or a row's columns, put as the model saw its rows in training."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from glora_search.errors import invalid
from glora_search.files.cells import is_missing, text_of
from glora_search.files.python import literal
from glora_search.recipe.prompts import columns_of, prompt_columns, template_for

Question = str | Mapping[str, Any]
"""A text, or a row: column -> value."""
JSON = (".json", ".jsonl", ".ndjson")
"""How files end whose lines in quotes are texts of json; elsewhere the quotes may be part of a text."""


class Questions:
    """How the model of a recipe is asked.

    Args:
        recipe: of a run folder, as data.
        chats: whether the model learned conversations, which its tokenizer's chat template writes.
        words: whether it learned lists of words.
    """

    def __init__(self, recipe: Mapping[str, Any], *, chats: bool = False, words: bool = False) -> None:
        task, data = recipe["task"], recipe["data"]
        prompt = task.get("prompt") or []
        self.templates = [prompt] if isinstance(prompt, str) else list(prompt)
        self.pair = data.get("text_pair_column")
        messages = data.get("messages_column")
        self.chats = chats or messages is not None or bool(task.get("chat"))
        self.key = "data.text_column" if messages is None else "data.messages_column"
        if messages is not None:
            self.columns = [messages]
        elif self.templates:
            self.columns = columns_of(self.templates)
        elif task["type"] == "image-classification":
            self.columns = [data.get("image_column") or "image"]
        else:
            self.columns = [data.get("text_column") or "text", *([self.pair] if self.pair else [])]
        self.words = words

    def __call__(self, question: Question) -> Any:
        """What a pipeline is called with: a text; of a pair of texts, a mapping; of a conversation, its messages; of a
        list of words, the list.

        Raises:
            UserError: it lacks a column.
        """
        row = self._row(question)
        if self.chats and not self.templates:
            return self._conversation(row[self.columns[0]])
        if self.words and isinstance(row[self.columns[0]], list):
            return list(map(str, row[self.columns[0]]))
        texts = {name: self._text(row, name) for name in self.columns}
        if self.templates:
            text = template_for(self.templates, texts).format(**texts)
            return self._conversation(text) if self.chats else text
        if self.pair:
            return {"text": texts[self.columns[0]], "text_pair": texts[self.pair]}
        return texts[self.columns[0]]

    def example(self, text: str) -> str:
        """What stands for it in a line of Python without double quotes.

        Args:
            text: a literal, where the model is given a text as it is.
        """
        if self.chats:
            return f"[{{'role': 'user', 'content': {self._filled() if self.templates else repr('Your text here')}}}]"
        if self.pair:
            return "{'text': 'Your text here', 'text_pair': 'Your other text here'}"
        return self._filled() if self.templates else text

    def _filled(self) -> str:
        """The shortest template with its columns, as Python."""
        template = self._shortest()
        values = ", ".join(f"{name}='Your {name} here'" for name in prompt_columns(template))
        return f"{literal(template)}.format({values})"

    def _row(self, question: Question) -> Mapping[str, Any]:
        if not isinstance(question, str):
            read = [prompt_columns(template) for template in self.templates] or [self.columns]
            if not any(question.keys() >= set(names) for names in read):
                raise invalid("a row", list(question), f"the columns {', '.join(self.columns)}")
            if all(is_missing(question.get(name)) for name in self.columns):
                raise invalid("a row", dict(question), f"a value in the columns {', '.join(self.columns)}")
            return question
        columns = prompt_columns(self._shortest()) if self.templates else self.columns
        if len(columns) > 1:
            given = " ".join(f"--set {name}=..." for name in columns)
            raise invalid("TEXT", question, f"a value for each column: {given}, or --file with json lines")
        return {columns[0]: question}

    def _text(self, row: Mapping[str, Any], name: str) -> str:
        value = row.get(name)
        if isinstance(value, (list, dict)):
            raise invalid("a row", reprlib.repr(value), f"text in the column {name}")
        return text_of(value)

    def _conversation(self, value: Any) -> list[dict[str, Any]]:
        """A conversation up to the question; a text is what a user says first."""
        from glora_search.tasks.chat import ASSISTANT, messages_in

        column = (self.key, self.columns[0])
        messages = messages_in([{"role": "user", "content": value}] if isinstance(value, str) else value, column)
        while messages and messages[-1]["role"] == ASSISTANT:
            messages.pop()
        return messages_in(messages, column)  # nothing is asked where nothing is left

    def _shortest(self) -> str:
        """The template of the fewest columns."""
        return min(self.templates, key=lambda template: len(prompt_columns(template)))


def questions_in(text: str, file: str, *, whole: bool) -> list[Question]:
    """The questions of a file: json lines, or a list of json, with objects or texts; else plain texts.

    Args:
        file: its name, for the message.
        whole: the file is one text, and not one in each line that is not empty.

    Raises:
        UserError: one line of json lines is an object and another is none, or the file has columns of another kind.
    """
    if file.lower().endswith((".csv", ".tsv")):
        raise invalid("--file", file, "json lines, one object for each row of this table, or plain text")
    called_json = file.lower().endswith(JSON)
    rows = _parsed(text) if text.lstrip().startswith(("[", "{")) else None
    rows = [rows] if isinstance(rows, dict) else rows
    if isinstance(rows, list) and ({*map(type, rows)} in ({dict}, {str}) or (called_json and not rows)):
        return rows
    lines = text.split("\n")  # not splitlines: texts may have what Unicode calls the end of a line
    filled = [line for line in lines if line.strip()]
    if called_json and all(isinstance(_parsed(line), str) for line in filled):
        return [str(_parsed(line)) for line in filled]
    first = filled[0] if filled else ""
    if not isinstance(_parsed(first), dict):
        if called_json:
            raise invalid("--file", file, f"json lines, or a list of json: objects, or texts ({_fault(text)})")
        return [text.strip("\n")] if whole and first else [*filled]
    found: list[Question] = []
    for number, line in enumerate(lines, 1):
        row = _parsed(line)
        if isinstance(row, dict):
            found.append(row)
        elif line.strip():
            raise invalid("--file", file, f"json lines, each an object; line {number} is none")
    return found


def _fault(text: str) -> str:
    """Why a file's content is none of these."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f"{error.msg}: line {error.lineno} column {error.colno}"
    except (ValueError, RecursionError) as error:
        return str(error)
    return "it has others, or both"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
