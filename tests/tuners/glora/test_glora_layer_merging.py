from __future__ import annotations

import copy

import pytest
import torch
from glora_linears import ANY_PATHS, FULL, adapted, by_definition, inputs, linear, same, snapshot
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from glora_search.vocabulary import PATHS, LayerPaths


@given(first=ANY_PATHS, second=ANY_PATHS, kind=st.sampled_from([nn.Linear, Conv1D]), bias=st.booleans())
def test_merged_the_base_layer_computes_the_same_and_unmerged_it_is_the_same_bit_for_bit(first, second, kind, bias):
    layer, x = adapted(linear(kind, bias=bias), one=first, two=second), inputs()
    expected, bits = layer(x), snapshot(layer)
    layer.merge()
    assert layer.merged_adapters == ["one", "two"]
    torch.testing.assert_close(layer.get_base_layer()(x), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(layer(x), layer.get_base_layer()(x))
    layer.unmerge()
    assert not layer.merged
    assert same(layer, bits)
    assert torch.equal(layer(x), expected)


def test_a_layer_without_a_bias_takes_no_bias_paths_and_merging_adds_no_parameter():
    layer = adapted(linear(bias=False), one=FULL)
    assert set(layer.path_tensors("one")) == {"A", "B"}
    assert layer.paths["one"] == LayerPaths("lora", "lora", r=2)
    layer.merge()
    assert [name for name, _ in layer.get_base_layer().named_parameters()] == ["weight"]


# Kinds that a division could not undo: a constant A of -1 leaves 1 + A = 0, and so does a D of -1.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_unmerging_is_exact_even_where_paths_a_and_d_turn_the_layer_off(kind, dtype):
    layer = adapted(linear(kind, dtype=dtype), one=LayerPaths("constant", "lora", "lora", "constant", "vector", r=2))
    layer.glora_A["one"]["X"].data.fill_(-1)
    layer.glora_D["one"]["X"].data.fill_(-1)
    bits = snapshot(layer)
    layer.merge()
    assert not same(layer, bits)
    layer.unmerge()
    assert same(layer, bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merging_one_after_the_other_is_merging_at_once(dtype):
    other = LayerPaths("vector", "vector", "vector", "constant", "constant")
    at_once = adapted(linear(dtype=dtype), one=FULL, two=other)
    in_turn = copy.deepcopy(at_once)
    bits = snapshot(at_once)
    at_once.merge(adapter_names=["one", "two"])
    in_turn.merge(adapter_names=["one"])
    assert not same(in_turn, snapshot(at_once))
    with pytest.warns(UserWarning, match="Already following adapters were merged one"):
        in_turn.merge(adapter_names=["two"])
    assert in_turn.merged_adapters == ["one", "two"]
    assert same(in_turn, snapshot(at_once))
    in_turn.unmerge()
    assert same(in_turn, bits)


def test_a_subset_can_be_merged_and_a_subset_unmerged():
    layer = adapted(linear(), one=FULL, two=LayerPaths(A="vector", E="vector"), three=LayerPaths(B="lora", r=1))
    bits = snapshot(layer)
    layer.merge(adapter_names=["two"])
    only_two = snapshot(layer)
    layer.unmerge()
    layer.merge()
    layer.unmerge(["one", "three"])
    assert layer.merged_adapters == ["two"]
    assert same(layer, only_two)
    layer.unmerge(["one"])
    assert same(layer, only_two)
    layer.unmerge(["two"])
    assert same(layer, bits)


def test_merging_what_is_merged_changes_nothing():
    layer = adapted(linear(), one=FULL)
    layer.merge()
    bits = snapshot(layer)
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        layer.merge()
    assert same(layer, bits)
    assert layer.merged_adapters == ["one"]


def test_a_half_precision_merge_is_rounded_only_once():
    layer = adapted(linear(dtype=torch.bfloat16), one=FULL)
    exact = copy.deepcopy(layer).double()
    bias = by_definition(exact, torch.zeros(1, 5, dtype=torch.float64), ["one"])
    weight = (by_definition(exact, torch.eye(5, dtype=torch.float64), ["one"]) - bias).T
    layer.merge()
    for merged, wanted in ((layer.get_base_layer().weight, weight), (layer.get_base_layer().bias, bias[0])):
        assert merged.dtype == torch.bfloat16
        assert ((merged.double() - wanted).abs() <= 2**-8 * 1.001 * wanted.abs()).all()


def test_a_layer_that_is_moved_to_another_dtype_while_merged_can_be_unmerged():
    layer = adapted(linear(dtype=torch.float32), one=FULL)
    bits = snapshot(layer)
    layer.merge()
    layer.double()
    layer.unmerge()
    assert same(layer, [tensor.double() for tensor in bits])


@pytest.mark.filterwarnings("ignore:Already following adapters were merged")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_safe_merge_refuses_what_is_not_finite_and_leaves_the_base_as_it_is(path, broken):
    layer = adapted(linear(), good=FULL, bad=FULL)
    next(iter(layer.path_tensors("bad")[path].values())).data.flatten()[0] = broken
    bits = snapshot(layer)
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights\. The adapter bad seems to be broken"):
        layer.merge(safe_merge=True, adapter_names=["bad"])
    assert same(layer, bits)
    assert not layer.merged
    layer.merge(safe_merge=True, adapter_names=["good"])
    merged = snapshot(layer)
    with pytest.raises(ValueError, match="NaNs detected"):
        layer.merge(safe_merge=True)
    assert same(layer, merged)
    assert layer.merged_adapters == ["good"]
    layer.unmerge()
    assert same(layer, bits)


def test_disabled_it_is_the_base_layer_and_what_was_merged_is_taken_out():
    layer, x = adapted(linear(), one=FULL), inputs()
    plain, expected = layer.get_base_layer()(x), layer(x)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), plain)
    layer.enable_adapters(True)
    assert torch.equal(layer(x), expected)
    layer.merge()
    layer.enable_adapters(False)
    assert torch.equal(layer(x), plain)
    assert not layer.merged


def test_a_mixed_batch_needs_one_name_a_row_and_nothing_merged():
    layer = adapted(linear(), one=FULL)
    with pytest.raises(ValueError, match="should be the same as the number of inputs, but got 1 and 4"):
        layer(inputs(), adapter_names=["one"])
    layer.merge()
    with pytest.raises(ValueError, match="please call `unmerge_adapter` first"):
        layer(inputs(), adapter_names=["one"] * 4)


def test_an_adapter_named_twice_is_merged_once():
    layer = adapted(linear(), one=FULL)
    expected = layer(inputs())
    layer.merge(adapter_names=["one", "one"])
    assert layer.merged_adapters == ["one"]
    torch.testing.assert_close(layer(inputs()), expected)
