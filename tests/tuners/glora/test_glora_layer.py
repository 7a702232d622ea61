from __future__ import annotations

import itertools

import pytest
import torch
from glora_linears import ANY_PATHS, FULL, adapted, by_definition, inputs, linear
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from glora_search.errors import UserError
from glora_search.tuners.glora.layer import GLoraLinear, base_linear
from glora_search.vocabulary import KINDS, PATHS, LayerPaths


@given(first=ANY_PATHS, second=ANY_PATHS, kind=st.sampled_from([nn.Linear, Conv1D]), bias=st.booleans())
def test_the_layer_computes_the_definition_with_one_and_with_two_adapters(first, second, kind, bias):
    layer, x = adapted(linear(kind, bias=bias), one=first, two=second), inputs()
    for active in (["one"], ["two"], ["one", "two"]):
        layer.set_adapter(active)
        torch.testing.assert_close(layer(x), by_definition(layer, x, active), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("has_bias", [True, False])
def test_for_all_432_paths_an_adapter_has_exactly_the_parameters_that_it_is_said_to_cost(has_bias):
    layer = GLoraLinear(linear(bias=has_bias), "default", LayerPaths())
    for kinds in itertools.product(*(KINDS[path] for path in PATHS)):
        paths = LayerPaths(*kinds, r=3)
        layer.update_layer("default", paths)
        wanted = paths if has_bias else paths.without_bias()
        trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
        assert sum(p.numel() for p in trained.values()) == wanted.params(5, 7)
        assert {name.split(".")[0][-1] for name in trained} == {p for p, k in wanted.kinds.items() if k != "none"}
        assert all(name.startswith("glora_") for name in trained)


@given(paths=ANY_PATHS, kind=st.sampled_from([nn.Linear, Conv1D]))
def test_it_starts_as_the_base_layer_and_every_path_can_learn(paths, kind):
    base = linear(kind)
    expected = base(inputs())
    layer = GLoraLinear(base, "default", paths)
    y = layer(inputs())
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    if not paths.empty:
        (y * torch.arange(1.0, 8.0)).sum().backward()
    for tensors in layer.path_tensors("default").values():
        assert any(p.grad is not None and bool(p.grad.any()) for p in tensors.values())


@pytest.mark.parametrize(("path", "kind"), [(path, k) for path, kinds in KINDS.items() for k in kinds if k != "none"])
def test_init_weights_false_draws_every_path_at_random(path, kind):
    base = linear()
    expected = base(inputs())
    layer = GLoraLinear(base, "default", LayerPaths(**{path: kind}, r=2), init_weights=False)
    assert not torch.allclose(layer(inputs()), expected)
    layer.reset_parameters("default", init_weights=True)
    torch.testing.assert_close(layer(inputs()), expected, rtol=1e-12, atol=1e-12)


def test_the_base_layer_is_frozen_and_only_the_active_adapter_trains():
    layer = adapted(linear(), one=FULL, two=FULL)
    layer.set_adapter("two")
    trained = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".two." in name for name in trained)


def test_an_adapter_for_inference_is_frozen():
    layer = GLoraLinear(linear(), "default", FULL, inference_mode=True)
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_an_adapter_that_the_layer_does_not_hold_adds_nothing():
    layer = adapted(linear(), one=FULL)
    x = inputs()
    expected = layer(x)
    layer.set_adapter(["one", "elsewhere"])
    assert torch.equal(layer(x), expected)
    layer.set_adapter(["elsewhere"])
    assert torch.equal(layer(x), layer.get_base_layer()(x))
    layer.merge()
    assert not layer.merged


def test_replacing_an_adapter_leaves_nothing_of_the_old_one():
    layer = adapted(linear(), one=FULL)
    layer.update_layer("one", LayerPaths(A="vector"))
    assert [name for name, _ in layer.named_parameters() if "glora" in name] == ["glora_A.one.X"]


def test_a_deleted_adapter_leaves_nothing_behind():
    layer = adapted(linear(), one=FULL, two=LayerPaths(A="vector"))
    layer.delete_adapter("one")
    assert layer.active_adapters == ["two"]
    assert layer.paths == {"two": LayerPaths(A="vector")}
    assert not any("one" in name for name, _ in layer.named_parameters())


def test_each_row_of_a_mixed_batch_takes_its_own_adapter():
    layer = adapted(linear(), one=FULL, two=LayerPaths(A="vector", D="vector"))
    layer.set_adapter("one")
    x, names = inputs(rows=5), ["two", "__base__", "one", "two", "one"]
    mixed = layer(x, adapter_names=names)
    for row, name in enumerate(names):
        wanted = by_definition(layer, x[row], [] if name == "__base__" else [name])
        torch.testing.assert_close(mixed[row], wanted, rtol=1e-10, atol=1e-10)


def test_inputs_of_another_dtype_are_cast_to_the_layers():
    layer = adapted(linear(dtype=torch.float32), one=FULL)
    x = inputs(torch.bfloat16)
    assert layer(x).dtype == torch.float32
    assert torch.equal(layer(x), layer(x.float()))


@pytest.mark.parametrize("a", ["lora", "vector"])
def test_under_autocast_it_computes_in_the_lower_dtype_and_gradients_keep_theirs(a):
    layer = adapted(linear(dtype=torch.float32), one=LayerPaths(a, "lora", "lora", "vector", "vector", r=2))
    x = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.1, atol=0.3)
    y.float().square().sum().backward()
    low = {name: p.grad.clone() for name, p in layer.named_parameters() if p.requires_grad}
    layer.zero_grad()
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            assert low[name].dtype == torch.float32
            error = (low[name] - parameter.grad).norm() / parameter.grad.norm()
            assert error < 0.1, name


class QuantizedLinear(nn.Linear):
    """A subclass: it may compute something else."""


@pytest.mark.parametrize("base", [nn.Embedding(3, 4), nn.Conv2d(3, 4, 1), QuantizedLinear(3, 4), nn.ReLU()])
def test_another_type_of_layer_is_refused_by_the_modules_name(base):
    with pytest.raises(UserError) as error:
        GLoraLinear(base, "default", FULL, name="model.layers.3.odd")
    message = str(error.value)
    assert "model.layers.3.odd" in message
    assert type(base).__qualname__ in message
    assert "torch.nn.modules.linear.Linear" in message
    assert "transformers.pytorch_utils.Conv1D" in message


def test_a_layer_that_is_adapted_already_is_refused():
    """Its own weight is all that would be computed from."""
    with pytest.raises(UserError, match=r"target module 'a\.b': got '.*layer layer'; allowed: a layer without another"):
        GLoraLinear(adapted(linear(), one=FULL), "default", FULL, name="a.b")


def test_a_layer_prints_as_a_glora_layer():
    assert repr(adapted(linear(), one=FULL)).startswith("glora.GLoraLinear(")


def test_small_scales_are_not_lost_in_half_precision():
    """1 + A and 1 + D are 1 in bfloat16 for all A and D below 0.004."""
    base = nn.Linear(64, 64, dtype=torch.bfloat16)
    layer = GLoraLinear(base, "one", LayerPaths(A="vector", D="constant"))
    for path in layer.path_tensors("one").values():
        path["X"] = nn.Parameter(torch.full(path["X"].shape, 0.003))
    x = torch.randn(256, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        y, wanted = layer(x).double(), base(x).double() * 1.003
    slope = (y * wanted).sum() / (wanted * wanted).sum()
    assert abs(slope - 1) < 5e-4  # 0.003 without the paths


@pytest.mark.parametrize("a", ["lora", "vector"])
def test_a_backward_pass_inside_autocast_gives_the_gradients_of_the_forwards_dtype(a):
    layer = adapted(linear(dtype=torch.float32), one=LayerPaths(a, "lora", "vector", "vector", "vector", r=2))
    gradients = []
    for inside in (False, True):
        layer.zero_grad()
        y = layer(inputs(torch.float32))
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            y.backward(torch.ones_like(y))
        gradients.append([p.grad.clone() for p in layer.parameters() if p.requires_grad])
    for outside, within in zip(*gradients, strict=True):
        assert torch.equal(outside, within)


def test_under_autocast_a_double_base_stays_double_as_a_plain_layer_does():
    layer = adapted(linear(), one=FULL)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs()).dtype == layer.get_base_layer()(inputs()).dtype == torch.float64


def test_a_base_weight_that_shall_be_trained_is_refused_and_not_left_without_a_gradient():
    layer = adapted(linear(), one=FULL)
    layer.get_base_layer().weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match="base weights are frozen"):
        layer(inputs()).sum().backward()


def test_an_adapter_that_is_active_twice_counts_once():
    layer, x = adapted(linear(), one=FULL), inputs()
    once = layer(x)
    layer.set_adapter(["one", "one"])
    assert torch.equal(layer(x), once)
    layer.merge()
    torch.testing.assert_close(layer(x), once, rtol=1e-10, atol=1e-10)


def test_a_weight_that_is_sharded_over_devices_is_refused():
    sharded = linear()
    sharded.weight.device_mesh = "two devices"  # as a DTensor has, which needs several processes
    with pytest.raises(UserError, match=r"a weight sharded over devices.*; allowed: a model loaded without tp_plan"):
        base_linear(sharded, "o_proj")
