"""A run's merged model, used as anyone would use it: by transformers' pipeline of the task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glora_search.errors import invalid
from glora_search.run.folder import RunFolder


def predict(run: RunFolder, inputs: Sequence[str]) -> list[Any]:
    """What the merged model makes of some inputs.

    Args:
        run: the run folder.
        inputs: texts, each put into the recipe's prompt where it has one; for a task on images, files.

    Returns:
        What the pipeline returns for each: mostly a mapping, or a list of mappings.

    Raises:
        UserError: there is no merged model yet or it cannot be used, it takes more than one text, or it cannot read an
            input.
    """
    run.result("merged")
    texts = _prompted(run.recipe, inputs)
    use = _load(run.path, run.recipe["task"])
    return [_use(use, text, given) for text, given in zip(texts, inputs, strict=True)]


def _prompted(recipe: dict[str, Any], inputs: Sequence[str]) -> list[Any]:
    """The inputs as the model saw its texts in training; of conversations, each is what a user says first."""
    if recipe["data"].get("messages_column") is not None:
        return [[{"role": "user", "content": text}] for text in inputs]
    pair = recipe["data"].get("text_pair_column")
    if pair is not None:
        raise invalid("data.text_pair_column", pair, "null where 'predict' is used: it gives a model one text, not two")
    prompt = recipe["task"].get("prompt") or []
    templates = [prompt] if isinstance(prompt, str) else prompt
    if not templates:
        return list(inputs)
    from glora_search.recipe.schema import prompt_columns

    columns = list(dict.fromkeys(name for template in templates for name in prompt_columns(template)))
    if len(columns) > 1:
        raise invalid("task.prompt", prompt, f"one column where 'predict' is used, not {', '.join(columns)}")
    return [templates[0 if text.strip() else -1].format(**{columns[0]: text}) for text in inputs]


def _load(folder: Path, task: dict[str, Any]) -> Callable[[Any], Any]:
    from safetensors import SafetensorError
    from transformers import pipeline

    from glora_search.tasks import task_class

    # transformers has no pipeline for models that read one text and write another
    cls, merged = task_class(task["type"]), folder / "merged"
    name = getattr(cls, "pipeline", None)
    options: dict[str, Any] = {}
    if name == "text-classification":
        options = {"truncation": True, "max_length": task.get("max_length")}
    elif name == "text-generation":  # the same answer each time, and not the question again
        options = {"do_sample": False, "return_full_text": False}
    trust = bool(task.get("trust_remote_code"))
    try:
        if name is None:
            return _seq2seq(str(merged), task["max_length"], trust_remote_code=trust)
        use = functools.partial(pipeline(name, model=str(merged), trust_remote_code=trust), **options)
        return _likely(use) if cls.target == "labels" else use
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RunFolder(folder).merged_cannot_be_used(error) from error


def _likely(use: Callable[..., Any]) -> Callable[[str], Any]:
    """Every label whose probability is above one half, as the task's metric counts them; none is a row of its own."""

    def labels(text: str) -> list[dict[str, Any]]:
        return [row for row in use(text, top_k=None) if row["score"] > 0.5] or [{"label": None, "score": None}]

    return labels


def _use(use: Callable[[Any], Any], text: Any, given: str) -> Any:
    try:
        return use(text)
    except (OSError, ValueError, IndexError, RuntimeError) as error:
        raise invalid("TEXT", given, f"what the merged model can read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _seq2seq(model: str, max_length: int, *, trust_remote_code: bool) -> Callable[[str], list[dict[str, str]]]:
    """What transformers 4 had as the pipeline ``text2text-generation``; text and answer are cut as in training."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(model, trust_remote_code=trust_remote_code).eval()
    limits = {"truncation": True, "max_length": max_length}

    def generate(text: str) -> list[dict[str, str]]:
        batch = tokenizer(text, **limits, return_tensors="pt", return_token_type_ids=False)
        answer = loaded.generate(**batch, max_new_tokens=max_length)[0]
        return [{"generated_text": tokenizer.decode(answer, skip_special_tokens=True)}]

    return generate


def prediction_rows(output: Any) -> list[dict[str, Any]]:
    """What a pipeline returned for one input, as rows of a table."""
    if isinstance(output, Mapping):
        return [dict(output)]
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [row for part in output for row in prediction_rows(part)]
    return [{"output": output}]
