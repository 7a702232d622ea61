"""A run's merged model, used as anyone would use it: by transformers' pipeline of the task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glora_search.errors import UserError
from glora_search.status import read_recipe, read_stage


def predict(folder: Path, inputs: Sequence[str]) -> list[Any]:
    """What the merged model makes of some inputs.

    Args:
        folder: the run folder.
        inputs: texts; for a task on images, files.

    Returns:
        What the pipeline returns for each: mostly a mapping, or a list of mappings.

    Raises:
        UserError: it is not a run folder, there is no merged model yet, or it cannot be used.
    """
    recipe = read_recipe(folder)
    if read_stage(folder, "merged") is None:
        raise UserError(f"{folder}: no merged/ yet; run first: glora-search merge {folder}")
    from safetensors import SafetensorError
    from transformers import pipeline

    from glora_search.tasks import task_class

    # transformers has no pipeline for models that read one text and write another
    name, merged = getattr(task_class(recipe["task"]["type"]), "pipeline", None), folder / "merged"
    options: dict[str, Any] = {}
    if name == "text-classification":
        options = {"truncation": True, "max_length": recipe["task"].get("max_length")}
    trust = bool(recipe["task"].get("trust_remote_code"))
    try:
        make = _seq2seq if name is None else functools.partial(pipeline, name)
        use = make(model=str(merged), trust_remote_code=trust)
        return [use(text, **options) for text in inputs]
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{merged}: cannot be used ({reason}); make it anew: glora-search merge {folder} --again"
        ) from error


def _seq2seq(model: str, trust_remote_code: bool) -> Callable[[str], list[dict[str, str]]]:
    """What transformers 4 had as the pipeline ``text2text-generation``."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(model, trust_remote_code=trust_remote_code).eval()

    def generate(text: str) -> list[dict[str, str]]:
        batch = tokenizer(text, truncation=True, return_tensors="pt", return_token_type_ids=False)
        return [{"generated_text": tokenizer.decode(loaded.generate(**batch)[0], skip_special_tokens=True)}]

    return generate


def prediction_rows(output: Any) -> list[dict[str, Any]]:
    """What a pipeline returned for one input, as rows of a table."""
    if isinstance(output, Mapping):
        return [dict(output)]
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [row for part in output for row in prediction_rows(part)]
    return [{"output": output}]
