"""Layers whose weight is quantised: by bitsandbytes to 4 and 8 bit, and by torchao to int8."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from glora_linears import ANY_PATHS, FULL, adapted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from glora_search.errors import UserError
from glora_search.space.layers import SpaceLayer
from glora_search.supernet.layer import SupernetLinear
from glora_search.tuners.glora.layer import GLoraLinear
from glora_search.tuners.quantized import dense_weight
from glora_search.vocabulary import LayerPaths

METHODS = ("4bit", "8bit", "int8")


def plain_linear(bias=True):
    layer = nn.Linear(64, 32, bias=bias)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return layer


def quantized(method, bias=True):
    """64 features in, 32 out."""
    plain = plain_linear(bias)
    if method == "int8":
        torchao = pytest.importorskip("torchao.quantization")
        torchao.quantize_(plain, torchao.Int8WeightOnlyConfig())
        return plain
    bnb = pytest.importorskip("bitsandbytes")
    kind = bnb.nn.Linear4bit if method == "4bit" else bnb.nn.Linear8bitLt
    options = {"compute_dtype": torch.float32} if method == "4bit" else {"has_fp16_weights": False}
    layer = kind(64, 32, bias=bias, **options)
    layer.load_state_dict(plain.state_dict())
    return layer.to("cpu")


def doubled(layer):
    """The same adapters on a plain float64 layer of the dequantised weight."""
    base = nn.Linear(64, 32, bias=layer.has_bias).double()
    base.weight.data = dense_weight(layer.base_layer).double()
    if layer.has_bias:
        base.bias.data = layer.base_layer.bias.detach().double()
    twin = copy.deepcopy(layer)
    twin.base_layer = base.requires_grad_(False)
    twin.quantized = False
    return twin.double()


def inputs(rows=6):
    return torch.randn(rows, 64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25)
@given(paths=ANY_PATHS, bias=st.booleans())
def test_outputs_and_gradients_are_those_of_the_dequantised_weight_in_float64(method, paths, bias):
    layer = adapted(quantized(method, bias), one=paths)
    twin = doubled(layer)
    x, x64 = inputs().requires_grad_(), inputs().double().requires_grad_()
    y, wanted = layer(x), twin(x64)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-3)
    y.square().sum().backward()
    wanted.square().sum().backward()
    expected = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in {**found, "x": x.grad}.items():
        reference = expected[name] if name != "x" else x64.grad
        assert (gradient.double() - reference).norm() <= 1e-4 * reference.norm() + 1e-6, name


@pytest.mark.parametrize("method", METHODS)
def test_no_dense_weight_is_kept_between_the_passes(method):
    layer = adapted(quantized(method), one=FULL)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.shape), t)[1], lambda t: t):
        layer(inputs().requires_grad_())
    assert kept
    assert (32, 64) not in [tuple(shape) for shape in kept]


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_makes_the_layer_plain_and_unmerging_brings_the_quantised_one_back(method):
    base = quantized(method)
    layer = adapted(base, one=FULL).eval()
    before, dense = layer(inputs()), dense_weight(base)
    layer.merge(safe_merge=True)
    assert type(layer.get_base_layer()) is nn.Linear
    assert type(layer.get_base_layer().weight.data) is torch.Tensor
    torch.testing.assert_close(layer(inputs()), before, rtol=1e-4, atol=1e-3)
    layer.unmerge()
    assert layer.get_base_layer() is base
    assert torch.equal(dense_weight(base), dense)
    assert torch.equal(layer(inputs()), before)


@pytest.mark.parametrize("method", METHODS)
def test_a_supernets_layer_scores_the_same_folded_and_unfolded(method):
    kinds = {"A_B": ["lora", "vector", "none"], "D_E": ["vector", "none"], "C": ["lora", "none"]}
    layer = SupernetLinear(quantized(method), "default", SpaceLayer("layer", 64, 32, True, kinds, [2])).eval()
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    for paths in (LayerPaths(), FULL, LayerPaths("vector", "vector", "lora", "none", "none", r=2)):
        layer.activate(paths)
        unfolded = layer(inputs())
        layer.merge()
        torch.testing.assert_close(layer(inputs()), unfolded, rtol=1e-4, atol=1e-3)
        layer.unmerge()
        assert torch.equal(layer(inputs()), unfolded)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_computes_in_its_inputs_dtype_or_in_the_one_that_it_was_given(method, dtype):
    layer = adapted(quantized(method), one=FULL)
    assert layer(inputs().to(dtype)).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs()).dtype == torch.bfloat16


def test_a_quantisation_of_inputs_is_refused_by_the_layers_name():
    torchao = pytest.importorskip("torchao.quantization")
    plain = plain_linear()
    torchao.quantize_(plain, torchao.Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(UserError, match=r"layers\.0\.odd.*quantised inputs.*weights alone: bitsandbytes"):
        GLoraLinear(plain, "default", FULL, name="layers.0.odd")


def test_a_layer_that_is_not_quantised_yet_is_refused_by_its_name():
    bnb = pytest.importorskip("bitsandbytes")
    with pytest.raises(UserError, match=r"layers\.0\.odd.*dense weight.*moved to a device"):
        GLoraLinear(bnb.nn.Linear4bit(64, 32), "default", FULL, name="layers.0.odd")


@pytest.mark.parametrize("method", ["4bit", "8bit"])
def test_a_pickled_layer_computes_the_same(method):
    layer = adapted(quantized(method), one=FULL).eval()
    x = torch.randn(3, 64)
    expected = layer(x)
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x), expected)
