"""Conversations: what a tokenizer's chat template writes of them, and which of its tokens are the assistant's."""

from __future__ import annotations

import re
import reprlib
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from glora_search.errors import UserError, invalid
from glora_search.scoring import IGNORED
from glora_search.tasks.rows import Column

Message = dict[str, Any]
"""A role, a content, and whatever else the template reads."""
ASSISTANT = "assistant"
MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
STAND_IN = "glora-search-stand-in"
"""A content that is in no template, unlike an answer, which may be one letter or empty."""


def messages_in(value: Any, column: Column) -> list[Message]:
    """A row's messages, without the keys that `datasets` adds where another row has them.

    Raises:
        UserError: it is no list of messages.
    """
    found = _without_none(value)
    if isinstance(found, list):  # a turn of tool calls alone has no content
        found = [{"content": "", **one} if isinstance(one, dict) and one.get("tool_calls") else one for one in found]
    if not isinstance(found, list) or not found or not all(map(_is_message, found)):
        key, name = column
        allowed = f"lists of messages, each with a role and a content that are text, not {reprlib.repr(value)}"
        raise invalid(key, name, f"a column of {allowed}")
    return found


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: a fast one, which knows where in a text its tokens are.
        name: the base model's, for the messages.

    Raises:
        UserError: it has no template.
    """

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        self.tokenizer, self.name = tokenizer, name
        try:
            self.template: str = tokenizer.get_chat_template()
        except ValueError:
            allowed = "a model whose tokenizer has a chat template, as that of an instruction-tuned model has"
            raise invalid("task.model", name, f"{allowed}: the data has conversations") from None
        if not tokenizer.is_fast:
            raise invalid("task.model", name, "a model with a fast tokenizer, which knows whose a token is")

    def encode(self, messages: list[Message], first: int = 0) -> tuple[list[int], list[int]]:
        """The tokens of a conversation, uncut, and their labels.

        The assistant's turns alone are learned: what the template marks (``{% generation %}``), else all that it
        writes after the prompt for a turn, up to what follows the turn.

        Args:
            first: the first message that is learned.

        Raises:
            UserError: the template refuses the conversation, or does not show which part is a turn.
        """
        try:
            text, spans = self._marked(messages, first) if MARK.search(self.template) else self._grown(messages, first)
            ids, places = self._tokens(text, messages, [begin for begin, _ in spans])
        except (TemplateError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise self._refused(messages, f"one that takes this conversation ({error})") from error
        written = "".join(text[begin:end] for begin, end in spans)
        for message in messages[first:]:
            if message["role"] == ASSISTANT and _last_line(message) not in written:
                raise self._refused(messages, f"one that writes the content of the {ASSISTANT}'s turns")
        learned = [any(begin <= start < end or start < begin < stop for begin, end in spans) for start, stop in places]
        return ids, [token if own else IGNORED for token, own in zip(ids, learned, strict=True)]

    def question(self, messages: list[Message]) -> tuple[str, list[int]]:
        """The prompt for the assistant's next turn, as text and as tokens."""
        text = self._text(messages, add_generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return text, ids

    def ends(self, messages: list[Message]) -> list[int]:
        """The special token after the last message's content, which ends a turn; none where there is none."""
        text = self._text([*messages[:-1], {**messages[-1], "content": STAND_IN}])
        _, _, rest = text.partition(STAND_IN)
        ids = self.tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"][:1]
        special = {*self.tokenizer.all_special_ids, *_special_tokens(self.tokenizer)}
        return [token for token in ids if token in special]

    def lead(self, messages: list[Message]) -> list[int]:
        """The tokens that stand between the prompt for the last message and its content, such as the empty block of
        thoughts that Qwen3's template writes; none where there are none."""
        last = {"role": messages[-1]["role"], "content": STAND_IN}
        before = self._text(messages[:-1], add_generation_prompt=True)
        text, _, _ = self._text([*messages[:-1], last]).partition(STAND_IN)
        lead = text.removeprefix(before) if text.startswith(before) else ""
        return list(self.tokenizer(lead, add_special_tokens=False)["input_ids"])

    def _marked(self, messages: list[Message], first: int) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the parts that the template marks; not by tokens, as `apply_chat_template` gives them: where a
        part ends with a white space that is in no token, it takes all that follows."""
        options = {**self.tokenizer.special_tokens_map, "return_assistant_tokens_mask": True}
        texts, marked = render_jinja_template(conversations=[messages], chat_template=self.template, **options)
        start = len(self._before(messages, first, texts[0])) if first else 0
        return texts[0], [(begin, end) for begin, end in marked[0] if begin >= start]

    def _grown(self, messages: list[Message], first: int) -> tuple[str, list[tuple[int, int]]]:
        """The text, and what each of the assistant's turns adds to it."""
        text, spans = self._text(messages), []
        for number, message in enumerate(messages):
            if number >= first and message["role"] == ASSISTANT:
                after = self._text(messages[: number + 1])
                before = self._before(messages, number, after)
                end = len(after) if text.startswith(after) else self._shared(after, text)
                if end < len(after) and _last_line(message) not in text[len(before) : end]:
                    raise self._unclear(messages)
                spans.append((len(before), end))
        return text, spans

    def _shared(self, after: str, text: str) -> int:
        """How far two texts are the same, up to a special token and white space: at its end, a conversation may have a
        token that is not there where it goes on, as Phi-3's have."""
        special = self.tokenizer.convert_ids_to_tokens(
            [*self.tokenizer.all_special_ids, *_special_tokens(self.tokenizer)]
        )
        pattern = "|".join(map(re.escape, sorted({*special}, key=len, reverse=True)))
        differ = (place for place, pair in enumerate(zip(after, text, strict=False)) if len({*pair}) > 1)
        found = re.finditer(rf"(?:{pattern})\s*", after[: next(differ, len(text))])
        return max((match.end() for match in found), default=0)

    def _before(self, messages: list[Message], number: int, text: str) -> str:
        """The prompt for a message, with which the text begins."""
        if number == 0:
            raise self._refused(messages, f"one with {{% generation %}} marks: the first message is the {ASSISTANT}'s")
        before = self._text(messages[:number], add_generation_prompt=messages[number]["role"] == ASSISTANT)
        if not text.startswith(before):
            raise self._unclear(messages)
        return before

    def _tokens(self, text: str, messages: list[Message], begins: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a text and their places in it.

        A token may hold the end of a prompt and the first letters of the answer, as one of " yes" does after
        "Assistant: ". Where a model is asked with such a prompt, prompt and answer are tokens apart.

        Args:
            begins: where turns begin.
        """
        ids, places = self._pieces(text, [])
        within = [begin for begin in begins if any(start < begin < stop for start, stop in places)]
        if not within:
            return ids, places
        numbers = [number for number, own in enumerate(messages) if number and own["role"] == ASSISTANT]
        asked = [self._text(messages[:number], add_generation_prompt=True) for number in numbers]
        return self._pieces(text, [begin for begin in within if text[:begin] in asked])

    def _pieces(self, text: str, cuts: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        for begin, end in pairwise([0, *cuts, len(text)]):
            piece = self.tokenizer(
                text[begin:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            ids += piece["input_ids"]
            places += [(begin + start, begin + stop) for start, stop in piece["offset_mapping"]]
        return ids, places

    def _text(self, messages: list[Message], **options: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def _unclear(self, messages: list[Message]) -> UserError:
        return self._refused(
            messages,
            "one with {% generation %} marks, or one that writes a turn alike whatever follows: this one does not show "
            f"which tokens are the {ASSISTANT}'s",
        )

    def _refused(self, messages: list[Message], allowed: str) -> UserError:
        return invalid(
            "task.model", self.name, f"a model whose chat template is {allowed}; in {reprlib.repr(messages)}"
        )


def last_turn(messages: list[Message]) -> list[Message]:
    """The messages up to the last one of the assistant; empty where it says nothing."""
    last = max((number for number, message in enumerate(messages) if message["role"] == ASSISTANT), default=-1)
    return messages[: last + 1]


def _special_tokens(tokenizer: Any) -> list[int]:
    return [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]


def _last_line(message: Message) -> str:
    """What a template writes of a content, even one that takes reasoning out of it."""
    return str(message["content"].strip().rpartition("\n")[2])


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _without_none(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
