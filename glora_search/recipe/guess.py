"""What can be learned from a data set, told by the names of its columns and by what they hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glora_search.errors import invalid
from glora_search.files.cells import NOT_MARKS, are_marks
from glora_search.files.samples import Sample, shown

ALPACA = ["### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"]
SHORT_ALPACA = ["### Instruction:\n{instruction}\n\n### Response:\n"]
RESPONSES = ("response", "completion", "output", "answer")
PROMPTS = ("prompt", "question", "instruction", "query", "input", "text")
TEXTS = ("text", "sentence", "review", "content", "headline", "title", "document")
LABELS = ("label", "labels", "class", "category", "target", "stars", "score", "rating")
CLASSES = ("sentiment", "emotion", "intent", "topic")
"""Names of columns of labels, if they hold classes."""
JUDGED = ("label", "labels", "target")
"""Where answers have such a column beside them, it may say whether they are right."""
NO_LABELS = ("lang", "language", "source", "domain", "url", "split", "meta", "id")
"""What texts to learn from have beside them."""
PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"))
WORDS, TAGS = ("tokens", "words"), ("tags", "ner_tags", "pos_tags", "labels")


def guess(sample: Sample, given: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """The task section and the data section of a recipe, as far as the columns tell.

    Args:
        given: what the user says: ``type`` of the task, and keys of the data section that name columns; None is
            nothing.

    Raises:
        UserError: a column is not there, or the columns do not tell what is learned.
    """
    told = {key: value for key, value in given.items() if value is not None}
    for key, name in told.items():
        if key != "type" and name not in sample.columns:
            option = f"--{key.replace('_', '-')}"
            raise invalid(option, name, f"a column of {_place(sample)}: {shown(sample.columns) or 'it is empty'}")
    columns = _Columns(sample)
    for kind in (_conversation, _answer, _image, _tags, _label, _plain):
        found = kind(columns, told)
        if found is not None and told.get("type") in (
            None,
            found["task"]["type"],
            *_ALIKE.get(found["task"]["type"], ()),
        ):
            return {"task": {**found["task"], **{k: v for k, v in told.items() if k == "type"}}, "data": found["data"]}
    options = "--task and --text-column, --label-column, --response-column or --messages-column"
    has = shown(sample.columns) if sample.rows else "no rows"
    raise invalid("--train", _place(sample), f"data whose columns say what is learned, or {options}; it has {has}")


_ALIKE = {
    "text-classification": ("text-regression", "multi-label"),
    "text-regression": ("text-classification", "multi-label"),
    "multi-label": ("text-classification", "text-regression"),
    "causal-lm": ("seq2seq-lm",),
}
"""Tasks that read the same columns."""


def _place(sample: Sample) -> str:
    return str(next(sample.source[key] for key in ("folder", "name", "train") if key in sample.source))


class _Columns:
    """The columns of a sample, by what they hold."""

    def __init__(self, sample: Sample) -> None:
        self.names, self.images = sample.columns, sample.images
        self._values = {
            name: [row[name] for row in sample.rows if row.get(name) is not None] for name in sample.columns
        }

    def holding(self, test: Callable[[Any], bool]) -> list[str]:
        """Those whose every value passes."""
        return [name for name in self.names if self._values[name] and all(map(test, self._values[name]))]

    def repeats(self, name: str) -> bool:
        """Whether a column holds a few values again and again, or one alone: rows may be sorted by it."""
        values = [value for value in self._values[name] if isinstance(value, (str, int))]
        return 1 <= len(set(values)) <= len(values) / 2

    def may_be_labels(self, name: str) -> bool:
        """Whether a column holds such values, or numbers."""
        values = self._values[name]
        return self.repeats(name) or (bool(values) and all(_number(value) is not None for value in values))

    def values(self, name: str) -> list[Any]:
        """What a column holds in the rows that have it."""
        return self._values[name]


def _first(names: Sequence[str], found: Sequence[str]) -> str | None:
    """The first of these names that is among those found, letter case aside."""
    lower = {name.lower(): name for name in reversed(found)}
    return next((lower[name] for name in names if name in lower), None)


def _conversation(columns: _Columns, told: Mapping[str, str]) -> dict[str, Any] | None:
    chats = columns.holding(_is_conversation)
    name = told.get("messages_column")
    if name is None and {"prompt", "completion"} <= set(chats):
        return _made("causal-lm", text_column="prompt", response_column="completion")
    if name is None and chats:
        name = "messages" if "messages" in chats else chats[0] if len(chats) == 1 else None
    return None if name is None else _made("causal-lm", messages_column=name)


def _answer(columns: _Columns, told: Mapping[str, str]) -> dict[str, Any] | None:
    texts = columns.holding(lambda value: isinstance(value, str))
    response = told.get("response_column") or _first(RESPONSES, texts)
    judged = not {"type", "response_column"} & told.keys() and _first(JUDGED, columns.names) is not None
    if response is None or "label_column" in told or judged:
        return None
    others = [name for name in texts if name != response]
    if "text_column" not in told and "instruction" in others:
        prompt = [*(ALPACA if "input" in others else []), *SHORT_ALPACA]
        return _made("causal-lm", prompt if len(prompt) > 1 else prompt[0], response_column=response)
    asked = told.get("text_column") or _first(PROMPTS, others)
    return None if asked is None else _made("causal-lm", text_column=asked, response_column=response)


def _image(columns: _Columns, told: Mapping[str, str]) -> dict[str, Any] | None:
    if not columns.images:
        return None
    label = told.get("label_column") or _first(LABELS, columns.names)
    image = columns.images[0]
    names = {"image_column": image} if image != "image" else {}
    return None if label is None else _made("image-classification", **names, label_column=label)


def _tags(columns: _Columns, told: Mapping[str, str]) -> dict[str, Any] | None:
    lists = columns.holding(lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value))
    words = told.get("text_column") or _first(WORDS, lists)
    tags = told.get("label_column") or _first(TAGS, [name for name in lists if name != words])
    if words not in lists or tags not in lists:
        return None
    return _made("token-classification", text_column=words, label_column=tags)


def _label(columns: _Columns, told: Mapping[str, str]) -> dict[str, Any] | None:
    label = told.get("label_column") or _first(LABELS, columns.names)
    label = label or _first(CLASSES, list(filter(columns.repeats, columns.names)))
    texts = [name for name in columns.holding(lambda value: isinstance(value, str)) if name != label]
    pair = next((pair for pair in PAIRS if set(pair) <= set(texts) and "text_column" not in told), None)
    text = told.get("text_column") or (pair[0] if pair else None) or _first(TEXTS, texts)
    text = text or (texts[0] if len(texts) == 1 else None)
    if label is None or text is None:
        return None
    names = {"text_column": text, **({"text_pair_column": pair[1]} if pair else {}), "label_column": label}
    lists = [value for value in columns.values(label) if isinstance(value, list)]
    if told.get("type") in (None, "multi-label") and are_marks(lists):
        raise invalid("--label-column", lists[0], NOT_MARKS)
    return _made(_kind_of(columns.values(label)), **names)


def _plain(columns: _Columns, told: Mapping[str, str]) -> dict[str, Any] | None:
    texts = columns.holding(lambda value: isinstance(value, str))
    text = told.get("text_column") or (texts[0] if len(columns.names) == 1 and texts else None)
    if text is None and "text" in texts and "label_column" not in told:
        plain = told.get("type") == "causal-lm" or not any(
            map(columns.may_be_labels, set(columns.names) - {"text", *NO_LABELS})
        )
        text = "text" if plain else None
    return None if text is None or "label_column" in told else _made("causal-lm", text_column=text)


def _kind_of(values: Sequence[Any]) -> str:
    """The task that learns such targets."""
    if any(isinstance(value, list) for value in values) or any(
        "|" in value and all(part.strip() for part in value.split("|")) for value in values if isinstance(value, str)
    ):
        return "multi-label"
    numbers = [_number(value) for value in values if value != ""]
    broken = any(number is not None and math.isfinite(number) and not number.is_integer() for number in numbers)
    return "text-regression" if broken and None not in numbers else "text-classification"


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and {"role", "content"} <= set(one) for one in value)
    )


def _made(type_: str, prompt: Any = None, **columns: str) -> dict[str, Any]:
    return {"task": {"type": type_, **({} if prompt is None else {"prompt": prompt})}, "data": dict(columns)}
