"""Data checked against a pydantic model, with messages for the person who wrote it."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from glora_search.errors import UserError, invalid

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], data: Mapping[str, Any], *, source: str, context: Any = None) -> Model:
    """Check data against a pydantic model, with messages for the person who wrote it.

    Args:
        source: where the data comes from; every message begins with it.
        context: passed on to the model's validators.

    Raises:
        UserError: one line for each key that is wrong, with its value and what is allowed.
    """
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        lines = [f"{source}: {_explain(model, problem)}" for problem in error.errors()]
        raise UserError("\n".join(lines)) from None


def _explain(model: type[BaseModel], problem: Any) -> str:
    location, place = _locate(model, problem["loc"])
    key, value, kind = ".".join(location) or "the file", problem["input"], problem["type"]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        # The message has its own key, below the one whose check it failed.
        parent = location if str(cause).split(":")[0].split(".")[0] not in location else location[:-1]
        return ".".join([*parent, str(cause)])
    if kind == "extra_forbidden":
        names = sorted(field.alias or name for name, field in place.model_fields.items())
        close = difflib.get_close_matches(location[-1], names, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f"{key}: no such key{hint}, got {value!r}; allowed here: {', '.join(names)}"
    if kind == "missing":
        return f"{key}: missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(problem["ctx"]["discriminator"]).strip("'")
        got = value.get(tag) if isinstance(value, Mapping) else value
        allowed = problem["ctx"].get("expected_tags") or "one of the sources"
        return str(invalid(f"{key}.{tag}", got, allowed))
    if kind == "model_type":
        return str(invalid(key, value, "a mapping of keys to values"))
    if kind == "list_type":
        return str(invalid(key, value, f"a list, such as [{value}]" if isinstance(value, (str, int)) else "a list"))
    if kind == "literal_error":
        return str(invalid(key, value, problem["ctx"]["expected"]))
    return str(invalid(key, value, problem["msg"].replace("Input should be", "").strip() or problem["msg"]))


def _locate(model: type[BaseModel], path: tuple[str | int, ...]) -> tuple[list[str], type[BaseModel]]:
    """The keys as the user wrote them, and the model that holds the last one.

    pydantic puts the tag of a tagged union into the path; the user never wrote it there, unlike an index of a list.
    """
    shown: list[str] = []
    options, place = [model], model
    for part in path:
        tagged = [m for m in options if len(options) > 1 and part in _tags(m)]
        if tagged:
            options = tagged
            continue
        shown.append(str(part))
        if isinstance(part, int):
            continue
        place = options[0] if options else place
        field = next((f for n, f in place.model_fields.items() if part in (n, f.alias)), None) if options else None
        options = _models_in(field.annotation) if field is not None else []
    return shown, place


def _tags(model: type[BaseModel]) -> set[str]:
    literals = (value for field in model.model_fields.values() for value in typing.get_args(field.annotation))
    return {model.__name__, *literals}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
