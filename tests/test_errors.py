from __future__ import annotations

from glora_search.errors import UserError, invalid


def test_the_message_names_the_key_the_value_and_the_values_that_are_allowed():
    error = invalid("search.sampler", "evolutoin", ("evolution", "random"))
    assert isinstance(error, UserError)
    assert str(error) == "search.sampler: got 'evolutoin'; allowed: one of 'evolution', 'random'"


def test_what_is_allowed_may_be_a_sentence():
    assert str(invalid("r", 0, "an int >= 1")) == "r: got 0; allowed: an int >= 1"


def test_a_users_mistake_is_a_value_error():
    assert issubclass(UserError, ValueError)
