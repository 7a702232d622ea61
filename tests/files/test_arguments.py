"""Arguments that are checked by their annotations."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, InstanceOf

from glora_search.errors import UserError
from glora_search.files.arguments import Amount, Count, Share, Whole, checked_arguments, keyed


class Model(BaseModel):
    size: int


@checked_arguments("search")
def call(
    one: Whole = 0,
    *,
    many: Count | None = None,
    part: Share = 0.5,
    width: Amount = 1.0,
    kind: Literal["a", "b"] = "a",
    use: Callable[[int], int] | None = None,
    model: InstanceOf[Model] | None = None,
    where: str | Exception | None = None,
    **others: Any,
) -> dict[str, Any]:
    """What was given."""
    return {"one": one, "many": many, "part": part, "width": width, **others}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("one", -1, "an int >= 0"),
        ("one", True, "an int >= 0"),
        ("one", "3", "an int >= 0"),
        ("one", 1.0, "an int >= 0"),
        ("many", 0, "an int >= 1 or None"),
        ("many", "x", "an int >= 1 or None"),
        ("part", 1.01, "a number from 0 to 1"),
        ("part", False, "a number from 0 to 1"),
        ("part", math.nan, "a number from 0 to 1"),
        ("part", None, "a number from 0 to 1"),
        ("width", math.inf, "a number >= 0"),
        ("width", "wide", "a number >= 0"),
        ("kind", "c", "'a' or 'b'"),
        ("use", 3, "callable or None"),
        ("model", 3, "an instance of Model or None"),
        ("where", 3, "a valid string or an instance of Exception or None"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name_with_what_is(name, value, allowed):
    with pytest.raises(UserError) as error:
        call(**{name: value})
    assert str(error.value) == f"search.{name}: got {value!r}; allowed: {allowed}"


def test_each_wrong_argument_has_its_line():
    with pytest.raises(UserError) as error:
        call(-1, part=2, width=1)
    assert [line.partition(":")[0] for line in str(error.value).split("\n")] == ["search.one", "search.part"]


@given(st.integers(0), st.floats(0, 1), st.floats(0, allow_infinity=False))
def test_what_is_allowed_arrives_as_it_was(one, part, width):
    assert call(one, part=part, width=width, more=[one]) == {
        "one": one, "many": None, "part": part, "width": width, "more": [one]
    }  # fmt: skip


def test_numbers_of_numpy_arrive_as_numbers():
    given = call(np.int64(3), many=np.uint8(4), part=np.float32(0.5), width=np.float64(2))
    assert given == {"one": 3, "many": 4, "part": 0.5, "width": 2.0}
    assert [type(value) for value in given.values()] == [int, int, float, float]


def test_objects_arrive_as_the_same_objects():
    @checked_arguments()
    def same(model: InstanceOf[Model], use: Callable[[], int], error: Exception) -> tuple[Any, ...]:
        return model, use, error

    objects = (Model(size=3), lambda: 3, ValueError())
    assert all(one is other for one, other in zip(same(*objects), objects, strict=True))


def test_an_argument_that_is_missing_or_unknown_is_pythons_own_error():
    @checked_arguments()
    def strict(one: Whole, *, two: Whole = 2) -> int:
        return one + two

    with pytest.raises(TypeError, match="missing a required argument: 'one'"):
        strict()
    with pytest.raises(TypeError, match="unexpected keyword argument 'three'"):
        strict(1, three=3)
    assert list(inspect.signature(strict).parameters) == ["one", "two"]


def test_an_error_inside_of_the_call_stays_what_it_is():
    @checked_arguments()
    def fails(one: Whole) -> Model:
        return Model(size="large")

    with pytest.raises(ValueError, match="size") as error:
        fails(1)
    assert not isinstance(error.value, UserError)


def test_a_key_is_put_before_the_arguments_that_it_has_alone():
    error = keyed(UserError("pool: got 0; allowed: more\nspace: got 3; allowed: a space"), "search.options", {"pool"})
    assert str(error) == "search.options.pool: got 0; allowed: more\nspace: got 3; allowed: a space"
