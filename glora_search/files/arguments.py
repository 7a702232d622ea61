"""The arguments of a call, checked by their annotations before it begins."""

from __future__ import annotations

import functools
import inspect
import numbers
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, cast

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, validate_call
from pydantic.fields import FieldInfo

from glora_search.errors import UserError, invalid

Function = TypeVar("Function", bound=Callable[..., Any])


STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def _plain(value: Any) -> Any:
    """NumPy's integers are integers; True is none."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


Whole = Annotated[int, BeforeValidator(_plain), Field(ge=0, description="an int >= 0")]
Count = Annotated[int, BeforeValidator(_plain), Field(ge=1, description="an int >= 1")]
Share = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number >= 0")]


def checked_arguments(key: str = "") -> Callable[[Function], Function]:
    """Make a function check its arguments against their annotations, as pydantic's ``validate_call`` does.

    Nothing is converted: True is no 1, and "3" no 3. An argument that is unknown or missing is Python's own
    `TypeError`. Annotate numbers with `Whole`, `Count`, `Share`, `Amount`, or one of your own whose ``description``
    says what is allowed.

    Args:
        key: what stands before the argument's name in messages, e.g. ``search`` for ``search.trials``.

    Returns:
        A decorator. The function that it makes raises a `UserError` with one line for each argument that is wrong.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)

        @validate_call(config=STRICT)
        @functools.wraps(function)
        def accepted(*args: Any, **kwargs: Any) -> Any:  # not the function itself: its own errors are its own
            return args, kwargs

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            signature.bind(*args, **kwargs)
            try:
                args, kwargs = accepted(*args, **kwargs)
            except ValidationError as error:
                raise _refusal(function, key, error) from None
            return function(*args, **kwargs)

        return cast(Function, call)

    return decorate


def check_some(function: Callable[..., Any], key: str, given: Mapping[str, Any]) -> None:
    """Check some of the arguments that a function will be called with, long before it is.

    Args:
        function: annotated as for `checked_arguments`.
        key: see there.

    Raises:
        UserError: one line for each argument that is wrong.
        TypeError: the function has no such argument.
    """
    inspect.signature(function).bind_partial(**given)
    annotations = typing.get_type_hints(function, include_extras=True)
    lines = []
    for name, value in given.items():
        try:
            TypeAdapter(annotations[name], config=STRICT).validate_python(value)
        except ValidationError as error:
            lines.append(_line(key, name, value, annotations[name], error.errors()))
    if lines:
        raise UserError("\n".join(lines))


def keyed(error: UserError, key: str, names: Collection[str]) -> UserError:
    """The same error with a key before the arguments' names.

    Args:
        key: e.g. ``search.options``.
        names: of the arguments; a line about something else stays as it is.
    """
    lines = str(error).split("\n")
    return UserError("\n".join(f"{key}.{line}" if line.partition(":")[0] in names else line for line in lines))


def _refusal(function: Callable[..., Any], key: str, error: ValidationError) -> UserError:
    annotations = typing.get_type_hints(function, include_extras=True)
    names = list(inspect.signature(function).parameters)
    wrong: dict[str, list[Any]] = {}
    for problem in error.errors():
        place = problem["loc"][0]  # of an argument without a name, its number
        wrong.setdefault(names[place] if isinstance(place, int) else place, []).append(problem)
    lines = (_line(key, name, problems[0]["input"], annotations[name], problems) for name, problems in wrong.items())
    return UserError("\n".join(lines))


def _line(key: str, name: str, value: Any, annotation: Any, problems: Sequence[Any]) -> str:
    """What is said of one argument."""
    allowed = list(_described(annotation)) or [_said(problem) for problem in problems]
    allowed += ["None"] * (type(None) in typing.get_args(annotation))
    return str(invalid(f"{key}.{name}" if key else name, value, " or ".join(allowed)))


def _described(annotation: Any) -> Iterator[str]:
    """What annotations say is allowed."""
    for part in typing.get_args(annotation):
        if isinstance(part, FieldInfo) and part.description:
            yield part.description
        yield from _described(part)


def _said(problem: Any) -> str:
    """What pydantic says is allowed."""
    return str(problem["msg"]).removeprefix("Input should be ").removeprefix("Input is not ")
