"""Causal language models: plain text, or responses to prompts whose own tokens are not learned."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel

from glora_search.errors import invalid
from glora_search.scoring import IGNORED, on_device
from glora_search.tasks.chat import ASSISTANT, ChatTemplate, Message, last_turn, messages_in
from glora_search.tasks.labelled import LabelledTokens
from glora_search.tasks.language_model import Fit, LanguageModel, Question
from glora_search.tasks.packing import PackedRows, leak, packed
from glora_search.tasks.rows import Column, texts_of
from glora_search.tuners.quantized import precision


class CausalLM(LanguageModel):
    """Reads ``text_column``, all of which is learned; a text longer than ``max_length`` becomes several rows.

    With ``response_column`` that alone is learned, and the end of the text after it, as the answer to ``task.prompt``
    (or to the text column where the recipe has no prompt). Both together are cut at ``max_length``; a row whose prompt
    leaves no room for a response is left out. With ``packing``, train rows share sequences, see
    `glora_search.tasks.packing`.

    With ``messages_column``, or lists of messages as prompts and responses, the tokenizer's chat template writes the
    text, and the assistant's turns are learned: all of them, or those of the response. With ``task.chat`` it writes a
    prompt and a response, as a turn of a user and one of the assistant.
    """

    task_type = "CAUSAL_LM"
    auto_class = AutoModelForCausalLM
    pipeline = "text-generation"
    pipeline_options: ClassVar[dict[str, Any]] = {"do_sample": False, "return_full_text": False}
    taken = "[0]['generated_text']"
    packs = True

    def inputs(self) -> list[Column]:
        """See `LanguageModel`; ``messages_column`` where the recipe gives it."""
        prompt = self.recipe.task.prompt
        if self.converses:
            if prompt:
                allowed = "null with data.messages_column: the chat template writes the prompts"
                raise invalid("task.prompt", prompt, allowed)
            if self.recipe.task.chat:
                raise invalid("task.chat", True, "false with data.messages_column, which has the turns already")
            return self.columns("messages_column")
        if self.recipe.task.chat and not self.responds:
            raise invalid("data.response_column", None, "the column with the assistant's turns, for task.chat")
        if prompt and not self.responds:
            raise invalid("data.response_column", None, "the column with the answers to task.prompt")
        return super().inputs()

    def targets(self) -> list[Column]:
        """See `LanguageModel`."""
        return [] if self.converses else super().targets()

    @property
    def converses(self) -> bool:
        """Whether the data has conversations in one column."""
        return getattr(self.recipe.data, "messages_column", None) is not None

    def encode(self, rows: Dataset) -> Dataset:
        """Columns ``input_ids``, ``attention_mask`` and ``labels``, all of one length in a row."""
        encoded: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        cut = left_out = 0
        for ids, labels in self._tokens(rows):
            cut += (long := len(ids) > self.max_length)
            ids = ids[: self.max_length]
            labels = [IGNORED, *labels[1 : self.max_length]]  # no token before the first predicts it
            if any(label != IGNORED for label in labels):
                encoded["input_ids"].append(ids)
                encoded["attention_mask"].append([1] * len(ids))
                encoded["labels"].append(labels)
            else:
                cut, left_out = cut - long, left_out + 1
        if not encoded["input_ids"] and self.converses:
            self._check_roles(rows)
        self.fit = Fit(len(rows), cut, left_out)
        return Dataset.from_dict(encoded)

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse a model that sees the tokens which it has to predict, as an encoder does, or other packed rows."""
        ids = torch.tensor([max(self.train_rows["input_ids"][:100], key=len)], device=model.device)
        other = ids.clone()
        other[0, -1] = ids[0, 0] if ids[0, -1] != ids[0, 0] else ids[0, ids.shape[1] // 2]
        with torch.no_grad():
            logits, others = (model(tokens).logits[:, :-1] for tokens in (ids, other))
        if not torch.allclose(logits, others, rtol=0, atol=1e-5 * float(logits.abs().max())):
            allowed = "a causal language model; what this one says of a token depends on the tokens after it"
            raise invalid("task.model", self.recipe.task.model, allowed)
        self._check_shift(model)
        if self.recipe.task.packing:
            self._check_packing(model)

    def _check_shift(self, model: PreTrainedModel) -> None:
        """Refuse a model whose own loss compares each token with its own logits, as that of `BartForCausalLM` does: it
        would learn to copy."""
        rows = [self.train_rows[row] for row in range(min(2, len(self.train_rows)))]
        batch = on_device(self.collator(rows), model.device)
        with torch.no_grad():
            output = model(**batch)
        sums = self.losses(output.logits, batch["labels"]).sum(0)
        copying = F.cross_entropy(output.logits.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED)
        own, shifted = float(output.loss), float(sums[0] / sums[1])
        if abs(own - float(copying)) < abs(own - shifted):
            name = type(model).__name__
            allowed = f"a model whose loss is that of the next token; that of a {name} is of the token itself"
            raise invalid("task.model", self.recipe.task.model, allowed)

    def _check_packing(self, model: PreTrainedModel) -> None:
        """Refuse a model that does not keep packed rows apart."""
        name = type(model).__name__
        if "position_ids" not in inspect.signature(model.forward).parameters:
            allowed = f"false: a {name} takes no position_ids, which keep packed rows apart"
            raise invalid("task.packing", True, allowed)
        counts = [positions.count(0) for positions in self.train["position_ids"]]
        difference = leak(model, [self.train[int(row)] for row in np.argsort(counts)[-2:]], self.collator)
        if not difference <= math.sqrt(precision(model)):
            attention = model.config._attn_implementation
            raise invalid(
                "task.packing",
                True,
                f"false: a {name} with attn_implementation {attention} does not keep packed rows apart (logits differ "
                f"by {difference:.2g} of the largest)",
            )

    def sequences(self, rows: Dataset) -> Dataset:
        """See `Task`; packed where the recipe says so."""
        return packed(rows, self.max_length) if self.recipe.task.packing else rows

    def row_notes(self, share: float = 0.0) -> list[str]:
        """See `Task`; and how many sequences packed rows share, and what is said of tools."""
        shared = f"{len(self.train_rows)} rows of data.train are packed into {len(self.train)} sequences"
        tools = "the column tools is not read: the chat template writes conversations without tools"
        return [
            *super().row_notes(share),
            *([shared] if self.recipe.task.packing else []),
            *([tools] if self.converses and "tools" in self.data.columns else []),
        ]

    def make_collator(self) -> Any:
        """See `LanguageModel`; the model makes logits for the tokens alone that are learned in a row of the batch."""
        known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(self.config), None)
        collator = PackedRows(super().make_collator(), self.tokenizer.pad_token_id)
        cuts = known is not None and "logits_to_keep" in inspect.signature(known.forward).parameters
        return LabelledTokens(collator) if cuts else collator

    def aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See `LanguageModel`; each token is predicted by those before it."""
        return logits[:, :-1], labels[:, 1:]

    def _tokens(self, rows: Dataset) -> Iterator[tuple[list[int], list[int]]]:
        """Tokens and labels; uncut, but for plain texts."""
        self.chats = self._in_turns(rows)
        if self.chats:
            return self._conversations(rows)
        return self._answered(rows) if self.responds else self._plain(rows)

    def _in_turns(self, rows: Dataset) -> bool:
        """Whether the chat template writes the rows: by ``task.chat``, conversations, and prompts that are lists of
        messages, as TRL has them."""
        if self.converses or self.recipe.task.chat:
            return True
        if not self.responds or self.recipe.task.prompts:
            return False
        value = next((value for value in rows[self.column("text_column")] if value is not None), None)
        return isinstance(value, list)

    def _conversations(self, rows: Dataset) -> Iterator[tuple[list[int], list[int]]]:
        """Of prompts and completions, the completions alone are learned."""
        template = self._template()
        for parts in self._messages(rows):
            yield template.encode([*chain(*parts)], first=len(parts[0]) if len(parts) > 1 else 0)

    def _messages(self, rows: Dataset) -> Iterator[list[list[Message]]]:
        """A row's conversation, or its prompt and completion."""
        if self.recipe.task.chat:
            for prompt, response in zip(self.prompts(rows), self.responses(rows), strict=True):
                yield [[{"role": "user", "content": prompt}], [{"role": ASSISTANT, "content": response}]]
            return
        columns = [*self.inputs(), *self.targets()]
        for values in zip(*(rows[name] for _, name in columns), strict=True):
            yield [messages_in(value, column) for value, column in zip(values, columns, strict=True)]

    def _check_roles(self, rows: Dataset) -> None:
        """Refuse conversations in which nobody is the assistant."""
        roles = {message["role"] for parts in self._messages(rows) for message in chain(*parts)}
        if ASSISTANT not in roles:
            allowed = f"conversations with turns of role {ASSISTANT!r}, which are learned"
            raise invalid("data.messages_column", f"roles {', '.join(sorted(roles))}", allowed)

    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, name=self.recipe.task.model)

    def _plain(self, rows: Dataset) -> Iterator[tuple[list[int], list[int]]]:
        for ids in self.token_ids(texts_of(rows, self.columns("text_column")[0])):
            for start in range(0, max(len(ids) - 1, 1), self.max_length):  # a part of one token has nothing to learn
                part = ids[start : start + self.max_length]
                yield part, part

    def _answered(self, rows: Dataset) -> Iterator[tuple[list[int], list[int]]]:
        end = self.ends(rows)
        responses = self.token_ids(self.responses(rows), special=False)
        for prompt, response in zip(self._prompt_ids(self.prompts(rows)), responses, strict=True):
            yield [*prompt, *response, *end], [*[IGNORED] * len(prompt), *response, *end]

    def _prompt_ids(self, prompts: list[str]) -> list[list[int]]:
        """Prompts as tokens, also by a tokenizer that ends every text; an empty one is what begins a text."""
        end, begin = self.tokenizer.eos_token_id, self.tokenizer.bos_token_id
        begin = self.tokenizer.pad_token_id if begin is None else begin
        found = (ids[:-1] if end is not None and ids[-1:] == [end] else ids for ids in self.token_ids(prompts))
        return [ids or [begin] for ids in found]

    # -- answers -------------------------------------------------------------------------------------------------------

    @property
    def answers(self) -> bool:
        """See `LanguageModel`."""
        return self.converses or self.responds

    def asked(self, rows: Dataset) -> Dataset:
        """See `LanguageModel`; a conversation without a turn of the assistant after another one asks nothing."""
        if self._in_turns(rows):
            kept = [number for number, turns in enumerate(self._turns(rows)) if len(turns) > 1]
        elif not self.responds:
            texts = texts_of(rows, self.columns("text_column")[0])
            kept = [number for number, ids in enumerate(self._prompt_ids(texts)) if len(ids) > 1]
        else:
            return rows
        return rows.select(kept)

    def questions(self, rows: Dataset) -> list[Question]:
        """See `LanguageModel`; of a conversation, the last turn of the assistant is the answer."""
        if self._in_turns(rows):
            template = self._template()
            return [Question(*template.question(before), last["content"]) for *before, last in self._turns(rows)]
        if self.responds:
            prompts = self.prompts(rows)
            return list(map(Question, prompts, self._prompt_ids(prompts), self.responses(rows)))
        found = []
        for ids in self._prompt_ids(texts_of(rows, self.columns("text_column")[0])):
            asked, rest = ids[: len(ids) // 2], ids[len(ids) // 2 :]
            found.append(Question(self.tokenizer.decode(asked), asked, self.tokenizer.decode(rest)))
        return found

    def completed(self, rows: Dataset, answers: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """See `LanguageModel`."""
        if not self._in_turns(rows):
            return list(self._answered(self.answered(rows, answers)))
        template = self._template()
        return [
            template.encode([*before, {**last, "content": answer}], first=len(before))
            for (*before, last), answer in zip(self._turns(rows), answers, strict=True)
        ]

    def ends(self, rows: Dataset) -> list[int]:
        """See `LanguageModel`; what a chat template ends a turn with is one of them."""
        if not self._in_turns(rows):
            return super().ends(rows)
        turns = next((turns for turns in self._turns(rows) if turns), [])
        return list(dict.fromkeys([*super().ends(rows), *(self._template().ends(turns) if turns else ())]))

    def lead(self, rows: Dataset) -> list[int]:
        """See `LanguageModel`; what a chat template puts before a turn's content."""
        turns = next((turns for turns in self._turns(rows) if len(turns) > 1), []) if self._in_turns(rows) else []
        return self._template().lead(turns) if turns else []

    def _turns(self, rows: Dataset) -> Iterator[list[Message]]:
        """A row's messages up to the last one of the assistant."""
        return (last_turn([*chain(*parts)]) for parts in self._messages(rows))
