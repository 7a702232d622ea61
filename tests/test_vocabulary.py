from __future__ import annotations

import itertools

import pytest

from glora_search.errors import UserError
from glora_search.vocabulary import KINDS, PATHS, LayerPaths, check_kind, expand_tied, path_shapes

ALL = [dict(zip(PATHS, kinds, strict=True)) for kinds in itertools.product(*(KINDS[path] for path in PATHS))]


def test_the_five_paths_have_432_combinations_and_none_equals_another():
    assert len(ALL) == 432
    assert len({LayerPaths(**kinds, r=2) for kinds in ALL}) == 432


@pytest.mark.parametrize("spelling", ["lora", "LoRA", "LORA"])
def test_a_kind_may_be_written_in_any_letter_case(spelling):
    assert check_kind("config_A", "A", spelling) == "lora"
    assert LayerPaths(A=spelling, r=3) == LayerPaths(A="lora", r=3)
    assert LayerPaths(A=spelling, r=3).A == "lora"


@pytest.mark.parametrize(
    ("path", "kind"),
    [("A", "dense"), ("B", None), ("C", "constant"), ("D", "lora"), ("E", 3), ("A_B", "loraa"), ("D_E", "lora")],
)
def test_a_kind_that_a_path_does_not_know_is_refused_with_key_value_and_what_is_allowed(path, kind):
    with pytest.raises(UserError) as error:
        check_kind("my.key", path, kind)
    message = str(error.value)
    assert message.startswith("my.key: ")
    assert repr(kind) in message
    for allowed in KINDS[path[0]]:
        assert repr(allowed) in message


def test_a_tied_name_sets_both_of_its_paths():
    assert expand_tied({"A_B": "LoRA", "D_E": "vector"}) == {"A": "lora", "B": "lora", "D": "vector", "E": "vector"}


@pytest.mark.parametrize("settings", [{"A_B": "lora", "B": "none"}, {"B": "none", "A_B": "lora"}])
def test_a_paths_own_entry_wins_over_its_tied_one_in_any_order(settings):
    assert expand_tied(settings) == {"A": "lora", "B": "none"}


def test_an_unknown_path_is_refused_with_key_value_and_what_is_allowed():
    with pytest.raises(UserError, match=r"here: got 'F'; allowed: one of 'A_B', 'D_E', 'A', 'B', 'C', 'D', 'E'"):
        expand_tied({"F": "lora"}, key="here")
    with pytest.raises(UserError, match=r"here\.C: got 'constant'"):
        expand_tied({"C": "constant"}, key="here")


def test_a_low_rank_path_of_rank_0_is_none():
    assert LayerPaths(A="lora", B="vector", C="lora", r=0) == LayerPaths(B="vector")
    assert LayerPaths(A="lora", r=0).empty


def test_the_rank_is_0_where_no_path_is_low_rank():
    assert LayerPaths(A="vector", D="constant", r=8) == LayerPaths(A="vector", D="constant")
    assert LayerPaths(A="vector", r=8).r == 0
    assert hash(LayerPaths(A="vector", r=8)) == hash(LayerPaths(A="vector"))


def test_the_rank_tells_low_rank_paths_apart():
    assert LayerPaths(B="lora", r=2) != LayerPaths(B="lora", r=3)


@pytest.mark.parametrize("rank", [-1, True, 1.0, "4", None])
def test_a_rank_that_is_no_whole_number_of_0_or_more_is_refused(rank):
    with pytest.raises(UserError) as error:
        LayerPaths(A="lora", r=rank)
    assert str(error.value) == f"r: got {rank!r}; allowed: an int >= 0"


def test_a_wrong_kind_is_refused_by_the_path_that_has_it():
    with pytest.raises(UserError, match=r"^E: got 'lora'"):
        LayerPaths(E="lora", r=1)


@pytest.mark.parametrize(
    ("path", "kind", "count"),
    [
        ("A", "lora", 3 * (5 + 7)),
        ("B", "lora", 3 * (5 + 7)),
        ("C", "lora", 3 * (5 + 1)),
        ("A", "vector", 7),
        ("B", "vector", 7),
        ("C", "vector", 5),
        ("D", "vector", 7),
        ("E", "vector", 7),
        *((path, "constant", 1) for path in "ABDE"),
        *((path, "none", 0) for path in "ABCDE"),
    ],
)
def test_the_cost_of_one_path(path, kind, count):
    assert LayerPaths(**{path: kind}, r=3).params(in_features=5, out_features=7) == count


def test_the_cost_of_a_layer_is_the_sum_over_its_paths():
    for kinds in ALL:
        alone = sum(LayerPaths(**{path: kind}, r=3).params(5, 7) for path, kind in kinds.items())
        assert LayerPaths(**kinds, r=3).params(5, 7) == alone


def test_low_rank_factors_multiply_to_the_shape_of_what_they_change():
    for path, product in (("A", (7, 5)), ("B", (7, 5)), ("C", (5, 1))):
        shapes = path_shapes(path, "lora", 5, 7, r=3)
        assert shapes["Xd"][1] == shapes["Xu"][0] == 3
        assert (shapes["Xd"][0], shapes["Xu"][1]) == product


def test_a_layer_without_a_bias_keeps_only_paths_a_and_b():
    paths = LayerPaths(A="lora", B="vector", C="lora", D="vector", E="constant", r=2)
    assert paths.without_bias() == LayerPaths(A="lora", B="vector", r=2)
    assert LayerPaths(C="lora", r=2).without_bias() == LayerPaths()


def test_paths_describe_themselves_in_one_line():
    assert LayerPaths(A="vector", B="lora", r=4).describe() == "A=vector B=lora(r=4)"
    assert LayerPaths().describe() == "none"
