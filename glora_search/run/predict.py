"""A run's merged model, used as anyone would use it: by transformers' pipeline of the task."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glora_search.errors import invalid
from glora_search.files.python import arguments
from glora_search.run.folder import RunFolder
from glora_search.run.questions import Question, Questions, questions_in


def predict(run: RunFolder, inputs: Sequence[Question], *, max_new_tokens: int | None = None) -> list[Any]:
    """What the merged model makes of some inputs.

    Args:
        run: the run folder.
        inputs: texts, or rows with the columns that the model reads, each put into the recipe's prompt or the chat
            template as in training; for a task on images, files.
        max_new_tokens: the longest answer of a language model; None is what its generation config has.

    Returns:
        What the pipeline returns for each: mostly a list of mappings.

    Raises:
        UserError: there is no merged model yet or it cannot be used, an input lacks a column, or it cannot be read.
    """
    if max_new_tokens is not None and not writes(run):
        raise invalid("--max-new-tokens", max_new_tokens, f"nothing: {run.recipe['task']['type']} writes no text")
    questions = _questions(run)
    asked = [questions(question) for question in inputs]
    use, found = _load(run.path, run.recipe["task"], max_new_tokens), []
    for number, (one, given) in enumerate(zip(asked, inputs, strict=True), 1):
        try:
            output = use(one)
        except Exception as error:  # of chat templates, of images, of connections: each library has its own
            which = f", input {number} of {len(inputs)}" if len(inputs) > 1 else ""
            allowed = f"what the merged model can read ({_reason(error)}{which})"
            raise invalid("TEXT", _short(given), allowed) from error
        found.append([dict(output)] if isinstance(output, Mapping) else output)  # of a pair of texts
    return found


def writes(run: RunFolder) -> bool:
    """Whether the model answers with a text of its own."""
    from glora_search.tasks import task_class

    return task_class(run.recipe["task"]["type"]).writes


def usage(run: RunFolder) -> str:
    """A line of Python, without double quotes, that asks the merged model as `predict` does, by transformers alone."""
    from glora_search.tasks import task_class

    task, merged = run.recipe["task"], str(run.path / "merged")
    cls, questions = task_class(task["type"]), _questions(run)
    example = questions.example(cls.example)
    loading = {"trust_remote_code": True} if task.get("trust_remote_code") else {}
    if getattr(cls, "pipeline", None) == "text-generation" and not questions.chats and _ends_texts(merged, task):
        return _ENDED.format(arguments=arguments(merged, **loading), example=example)
    return cls.usage(merged, example, **loading)


_ENDED = (
    "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
    "m, t = (c.from_pretrained({arguments}) for c in (M, T)); "
    "ids = t({example}, return_tensors='pt').input_ids[:, :-1]; "
    "answer = m.generate(ids, do_sample=False, max_new_tokens=256)[0, ids.shape[1]:]; "
    "print(t.decode(answer, skip_special_tokens=True))"
)
"""What `usage` says where the tokenizer ends every text: a prompt goes on, so its end is left out."""


def _ends_texts(model: str, task: Mapping[str, Any]) -> bool:
    """Whether the tokenizer ends every text with the token that ends an answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=bool(task.get("trust_remote_code")))
    return bool(tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id])


def inputs_in(run: RunFolder, text: str, file: str) -> list[Question]:
    """The inputs that a file has: rows of json, or texts, one a line; what is asked of a language model is one text.

    Args:
        file: its name, for the message.

    Raises:
        UserError: a line of json lines is no object.
    """
    from glora_search.tasks import task_class

    return questions_in(text, file, whole=task_class(run.recipe["task"]["type"]).prompted)


def row_of(run: RunFolder, given: Sequence[str]) -> dict[str, str]:
    """A row, of ``COLUMN=TEXT`` for each column.

    Raises:
        UserError: this is something else, or the model reads no such column.
    """
    columns = _questions(run).columns
    row: dict[str, str] = {}
    for one in given:
        name, separator, text = one.partition("=")
        if not separator or name not in columns:
            raise invalid("--set", one, f"COLUMN=TEXT, with a column that the model reads: {', '.join(columns)}")
        if name in row:
            raise invalid("--set", one, f"each column once; {name} is {row[name]!r} already")
        row[name] = text
    return row


def _questions(run: RunFolder) -> Questions:
    from glora_search.tasks import task_class

    words = task_class(run.recipe["task"]["type"]).target == "tags"
    return Questions(run.recipe, chats=bool(run.result("merged").get("chats")), words=words)


def _load(folder: Path, task: dict[str, Any], max_new_tokens: int | None) -> Callable[[Any], Any]:
    from safetensors import SafetensorError
    from transformers import pipeline

    from glora_search.tasks import task_class

    # transformers has no pipeline for models that read one text and write another
    cls, merged = task_class(task["type"]), folder / "merged"
    name = getattr(cls, "pipeline", None)
    options: dict[str, Any] = dict(cls.pipeline_options)
    if name == "text-classification":
        options = {"truncation": True, "max_length": task.get("max_length")}
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    trust = bool(task.get("trust_remote_code"))
    try:
        if name is None:
            answer = max_new_tokens or task["max_length"]
            return _seq2seq(str(merged), task["max_length"], answer, trust_remote_code=trust)
        made = {
            "text-generation": _unended,
            "text-classification": _never_empty,
            "token-classification": _by_word,
        }.get(name)
        custom = {"pipeline_class": made()} if made else {}
        whole = pipeline(name, model=str(merged), trust_remote_code=trust, **custom)
        use = functools.partial(whole, **options)
        if cls.target == "tags":
            whole.tokenizer.model_max_length = task["max_length"]  # where texts are cut, as in training
            return lambda given: [row for row in use(given) if row["word"].strip()]  # a space has no tag of its own
        if name == "image-classification":
            return lambda given: use(of_8_bits(given))
        return _likely(use) if cls.target == "labels" else use
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RunFolder(folder).merged_cannot_be_used(error) from error


def _unended() -> Any:
    """transformers' pipeline for text, which leaves out the end that a tokenizer may put after a prompt; an answer ends
    where the model has no further position."""
    from transformers import TextGenerationPipeline

    from glora_search.tasks.models import longest_input

    class Unended(TextGenerationPipeline):
        def preprocess(self, prompt_text: Any, *args: Any, **kwargs: Any) -> Any:
            inputs = super().preprocess(prompt_text, *args, **kwargs)
            ids = inputs["input_ids"]
            if isinstance(prompt_text, str) and ids.shape[1] > 1 and ids[0, -1] == self.tokenizer.eos_token_id:
                inputs |= {key: inputs[key][:, :-1] for key in ("input_ids", "attention_mask") if key in inputs}
            return inputs

        def _forward(self, model_inputs: Any, **kwargs: Any) -> Any:
            limit, used = longest_input(self.tokenizer, self.model.config), model_inputs["input_ids"].shape[1]
            if limit is not None and used >= limit:
                raise ValueError(f"its {used} tokens leave no room for an answer: the model has {limit} positions")
            wanted = {**self.model.generation_config.to_diff_dict(), **kwargs}
            if limit is not None and ("max_new_tokens" in wanted or "max_length" not in wanted):
                default = self._default_generation_config.max_new_tokens
                kwargs["max_new_tokens"] = min(wanted.get("max_new_tokens", default), limit - used)
            return super()._forward(model_inputs, **kwargs)

    return Unended


def _by_word() -> Any:
    """transformers' pipeline for tags, which gives each word of a list one tag, as in training; in a text, it finds the
    words itself."""
    from transformers import TokenClassificationPipeline

    class ByWord(TokenClassificationPipeline):
        starts: Sequence[int] = ()

        def __call__(self, inputs: Any, **kwargs: Any) -> Any:
            listed = isinstance(inputs, list)
            self.starts = [0, *itertools.accumulate(len(word) + 1 for word in inputs)][:-1] if listed else ()
            return super().__call__(" ".join(inputs) if listed else inputs, **kwargs)

        def gather_pre_entities(self, sentence: str, *args: Any, **kwargs: Any) -> Any:
            found, seen = super().gather_pre_entities(sentence, *args, **kwargs), set[int]()
            for token in found if self.starts else ():
                start, blank = token["start"], not sentence[token["start"] : token["end"]].strip()
                word = bisect.bisect_right(self.starts, start + sentence[start : start + 1].isspace())
                token["is_subword"] = blank or word in seen
                seen.update([] if blank else [word])
            return found

    return ByWord


def of_8_bits(given: Any) -> Any:
    """An image's file, unless training would have refused it; a pipeline cuts its values at 255."""
    import PIL.Image

    from glora_search.tasks.image_classification import check_bits

    if isinstance(given, str) and Path(given).is_file():
        with PIL.Image.open(given) as image:
            check_bits(image)
    return given


def _never_empty() -> Any:
    """transformers' pipeline for classification, which reads an empty text as the model did in training."""
    import torch
    from transformers import BatchEncoding, TextClassificationPipeline

    from glora_search.tasks.whole_texts import never_empty

    class NeverEmpty(TextClassificationPipeline):
        def preprocess(self, *args: Any, **kwargs: Any) -> Any:
            inputs = super().preprocess(*args, **kwargs)
            if inputs["input_ids"].numel():
                return inputs
            filled = never_empty({name: [[]] for name in inputs}, self.tokenizer)
            return BatchEncoding({name: torch.tensor(rows) for name, rows in filled.items()})

    return NeverEmpty


def _likely(use: Callable[..., Any]) -> Callable[[str], Any]:
    """Every label whose probability is above one half, as the task's metric counts them; none is a row of its own."""

    def labels(text: str) -> list[dict[str, Any]]:
        return [row for row in use(text, top_k=None) if row["score"] > 0.5] or [{"label": None, "score": None}]

    return labels


def _short(given: Any) -> Any:
    """An input, its texts cut to what a message has room for."""
    if isinstance(given, Mapping):
        return {name: _short(value) for name, value in given.items()}
    return f"{given[:60]}..." if isinstance(given, str) and len(given) > 60 else given


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _seq2seq(
    model: str, max_length: int, max_new_tokens: int, *, trust_remote_code: bool
) -> Callable[[str], list[dict[str, str]]]:
    """What transformers 4 had as the pipeline ``text2text-generation``; the text is cut as in training."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(model, trust_remote_code=trust_remote_code).eval()
    limits = {"truncation": True, "max_length": max_length}

    def generate(text: str) -> list[dict[str, str]]:
        batch = tokenizer(text, **limits, return_tensors="pt", return_token_type_ids=False)
        answer = loaded.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)[0]
        return [{"generated_text": tokenizer.decode(answer, skip_special_tokens=True)}]

    return generate


def prediction_rows(output: Any) -> list[dict[str, Any]]:
    """What a pipeline returned for one input, as rows of a table."""
    if isinstance(output, Mapping):
        return [dict(output)]
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [row for part in output for row in prediction_rows(part)]
    return [{"output": output}]
