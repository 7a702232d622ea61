from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glora_search.tuners.glora.functional import Terms, collect, effective_bias, effective_weight, glora_linear
from glora_search.vocabulary import KINDS, PATHS, LayerPaths

Adapter = dict[str, dict[str, Tensor]]
SIZES = st.integers(1, 6)


@st.composite
def layers(draw: st.DrawFn, *, adapters: int = 2) -> tuple[Tensor, Tensor, Tensor | None, list[Adapter]]:
    """x, W0, b0 and adapters of any paths in float64; every tensor wants a gradient, or some of them do."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    in_features, out_features = draw(SIZES), draw(SIZES)
    lead = draw(st.lists(st.integers(1, 3), max_size=3))
    has_bias = draw(st.booleans())

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight = tensor(out_features, in_features)
    if draw(st.booleans()):  # the layout of a transposed Conv1D
        weight = weight.T.contiguous().T
    x, bias = tensor(*lead, in_features), tensor(out_features) if has_bias else None
    built: list[Adapter] = []
    for _ in range(draw(st.integers(1, adapters))):
        kinds = {path: draw(st.sampled_from(KINDS[path])) for path in PATHS if has_bias or path in "AB"}
        shapes = LayerPaths(**kinds, r=draw(st.integers(1, 4))).shapes(in_features, out_features)
        built.append({path: {name: tensor(*shape) for name, shape in s.items()} for path, s in shapes.items()})
    leaves = leaves_of(x, bias, built)
    frozen = draw(st.sets(st.integers(0, len(leaves) - 1))) if draw(st.booleans()) else set()
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(index not in frozen)
    return x, weight, bias, built


def leaves_of(x: Tensor, bias: Tensor | None, adapters: list[Adapter]) -> list[Tensor]:
    paths = [tensor for adapter in adapters for tensors in adapter.values() for tensor in tensors.values()]
    return [x, *([] if bias is None else [bias]), *paths]


def dense(adapter: Adapter, path: str) -> Tensor | float:
    """A path's matrix, vector or number, by the definition."""
    tensors = adapter.get(path)
    if tensors is None:
        return 0.0
    return tensors["X"] if "X" in tensors else tensors["Xd"] @ tensors["Xu"]


def reference(weight: Tensor, bias: Tensor | None, adapters: list[Adapter]) -> tuple[Tensor, Tensor | None]:
    """W and b by the definition, adapters added up."""
    W, b = weight, bias
    for adapter in adapters:
        W = W + weight * dense(adapter, "A") + dense(adapter, "B")
        if b is not None and bias is not None:
            b = b + bias * dense(adapter, "D") + dense(adapter, "E")
            if "C" in adapter:
                b = b + (weight @ dense(adapter, "C")).reshape(-1)
    return W, b


def forward_reference(x: Tensor, weight: Tensor, bias: Tensor | None, adapters: list[Adapter]) -> Tensor:
    W, b = reference(weight, bias, adapters)
    y = x @ W.T
    return y if b is None else y + b


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=200)
@given(layers())
def test_output_and_every_gradient_are_those_of_the_dense_formula(layer):
    x, weight, bias, adapters = layer
    expected = forward_reference(x, weight, bias, adapters)
    actual = glora_linear(x, weight, bias, collect(adapters, torch.float64))
    assert actual.shape == (*x.shape[:-1], weight.shape[0])
    close(actual, expected)
    leaves = [leaf for leaf in leaves_of(x, bias, adapters) if leaf.requires_grad]
    assert actual.requires_grad == bool(leaves)
    if leaves:
        direction = torch.randn(actual.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        wanted = torch.autograd.grad(expected, leaves, direction)
        for found, grad in zip(torch.autograd.grad(actual, leaves, direction), wanted, strict=True):
            close(found, grad)


@given(layers())
def test_folded_weight_and_bias_are_those_of_the_dense_formula(layer):
    _, weight, bias, adapters = layer
    terms = collect(adapters, torch.float64)
    W, b = reference(weight, bias, adapters)
    close(effective_weight(weight, terms), W)
    folded = effective_bias(weight, bias, terms)
    assert (folded is None) == (bias is None)
    if folded is not None and b is not None:
        close(folded, b)


@given(layers())
def test_no_input_is_changed_in_place(layer):
    x, weight, bias, adapters = layer
    tensors = [weight, *leaves_of(x, bias, adapters)]
    before = [tensor.detach().clone() for tensor in tensors]
    terms = collect(adapters, torch.float64)
    y = glora_linear(x, weight, bias, terms)
    if y.requires_grad:
        y.sum().backward()
    with torch.no_grad():
        effective_weight(weight, terms)
        effective_bias(weight, bias, terms)
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


@given(layers())
def test_the_frozen_weight_gets_no_gradient(layer):
    x, weight, bias, adapters = layer
    y = glora_linear(x, weight, bias, collect(adapters, torch.float64))
    if y.requires_grad:
        y.sum().backward()
    assert weight.grad is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
@settings(max_examples=30)
@given(layers())
def test_lower_precision_differs_from_float64_by_rounding_only(dtype, tolerance, layer):
    x, weight, bias, adapters = layer
    expected = forward_reference(x, weight, bias, adapters)
    low = [None if t is None else t.detach().to(dtype) for t in (x, weight, bias)]
    actual = glora_linear(*low, collect(adapters, dtype))
    assert actual.dtype == dtype
    scale = 1 + expected.abs().max() + x.abs().max() * weight.abs().max() * sum(map(magnitude, adapters))
    assert (actual.double() - expected).abs().max() <= tolerance * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=40)
@given(layers())
def test_in_lower_precision_output_and_every_gradient_keep_their_leading_digits(dtype, layer):
    """Bound: a few roundings of the sum of the absolute values of all that is added up (the formula's condition)."""
    x, weight, bias, adapters = layer
    base = [None if t is None else t.detach().to(dtype) for t in (x, weight, bias)]
    built = [{p: {n: t.detach().float() for n, t in own.items()} for p, own in a.items()} for a in adapters]
    for low in (leaves := leaves_of(base[0], base[2], built)):
        low.requires_grad_()

    def reference_of(change: Any) -> list[Tensor]:
        wide = [None if t is None else change(t.detach().double()) for t in base]
        own = [{p: {n: change(t.detach().double()) for n, t in o.items()} for p, o in a.items()} for a in built]
        wide_leaves = [leaf.requires_grad_() for leaf in leaves_of(wide[0], wide[2], own)]
        y = forward_reference(*wide, own)
        return [y, *torch.autograd.grad(y, wide_leaves, change(direction).expand_as(y), allow_unused=True)]

    y = glora_linear(*base, collect(built, dtype))
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(dtype).double()
    found = [y, *torch.autograd.grad(y, leaves, direction.to(y.dtype))]
    for low, wanted, scale in zip(found, reference_of(lambda t: t), reference_of(torch.abs), strict=True):
        assert ((low.double() - wanted).abs() <= 16 * torch.finfo(dtype).eps * scale + 1e-6).all()


def magnitude(adapter: Adapter) -> float:
    return 1 + sum(float(torch.as_tensor(dense(adapter, path)).detach().abs().sum()) for path in PATHS)


def test_paths_are_cast_to_the_layers_dtype_and_keep_their_own_gradient():
    X = torch.ones(1, dtype=torch.float32, requires_grad=True)
    y = glora_linear(
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(4, 3, dtype=torch.bfloat16),
        None,
        collect([{"A": {"X": X}}], torch.bfloat16),
    )
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert X.grad is not None
    assert X.grad.dtype == torch.float32
    assert X.grad.item() == 2 * 3 * 4


def test_nothing_collected_is_the_base_layer():
    assert collect([], torch.float32).empty
    assert collect([{}, {}], torch.float32).empty
    assert not collect([{"D": {"X": torch.zeros(1)}}], torch.float32).empty


def test_path_c_multiplies_the_frozen_weight_and_not_the_scaled_one():
    weight, bias = torch.tensor([[2.0, 3.0]]), torch.tensor([10.0])
    terms = Terms(a=torch.tensor([4.0]), b=torch.tensor([5.0]), c=torch.tensor([[1.0], [100.0]]))
    assert effective_bias(weight, bias, terms).tolist() == [10 + 2 * 1 + 3 * 100]


def test_a_vector_on_path_b_shifts_every_weight_of_its_row():
    y = glora_linear(torch.tensor([[1.0, 10.0]]), torch.zeros(2, 2), None, Terms(b=torch.tensor([[1.0], [2.0]])))
    assert y.tolist() == [[11.0, 22.0]]


class Shapes(TorchDispatchMode):
    """Collects the shape of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # Only new memory counts; a transposed view of W0 costs nothing.
        if isinstance(result, Tensor) and result._base is None and "t.default" not in str(func):
            self.made.add(tuple(result.shape))
        return result


@pytest.mark.parametrize("a", ["vector", "constant", "none"])
@pytest.mark.parametrize("b", ["lora", "vector", "constant", "none"])
def test_no_dense_weight_is_made_where_path_a_is_not_low_rank(a, b):
    shapes = LayerPaths(A=a, B=b, C="lora", D="vector", E="vector", r=2).shapes(11, 13)
    adapter = {path: {n: torch.randn(s, requires_grad=True) for n, s in own.items()} for path, own in shapes.items()}
    x, weight = torch.randn(3, 11, requires_grad=True), torch.randn(13, 11)
    with Shapes() as shapes_made:
        glora_linear(x, weight, torch.randn(13), collect([adapter], torch.float32)).sum().backward()
    assert (3, 13) in shapes_made.made
    assert not {(13, 11), (11, 13)} & shapes_made.made


def test_no_dense_weight_but_the_frozen_one_is_kept_for_the_backward_pass():
    shapes = LayerPaths(A="lora", B="lora", r=2).shapes(11, 13)
    adapter = {path: {n: torch.randn(s, requires_grad=True) for n, s in own.items()} for path, own in shapes.items()}
    weight, kept = torch.randn(13, 11), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        glora_linear(torch.randn(3, 11), weight, None, collect([adapter], torch.float32))
    dense_kept = [t for t in kept if t.shape in (weight.shape, weight.T.shape)]
    assert dense_kept
    assert all(t.data_ptr() == weight.data_ptr() for t in dense_kept)
