from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from glora_search.errors import UserError
from glora_search.space.layers import SpaceLayer
from glora_search.supernet.layer import SHARING, SupernetLinear
from glora_search.tuners.glora.layer import GLoraLinear
from glora_search.vocabulary import KINDS, PATHS, LayerPaths

FREE = {path: list(kinds) for path, kinds in KINDS.items()}
ANY_PATHS = st.builds(LayerPaths, **{path: st.sampled_from(KINDS[path]) for path in PATHS}, r=st.sampled_from([1, 3]))


def linear(kind: type[nn.Module] = nn.Linear, *, bias: bool = True) -> nn.Module:
    """5 features in, 7 out, float64."""
    layer = Conv1D(7, 5) if kind is Conv1D else nn.Linear(5, 7, bias=bias)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return layer.double()


def supernet(
    base: nn.Module,
    kinds: dict[str, list[str]] = FREE,
    ranks: tuple[int, ...] = (1, 3),
    sharing: str = "separate",
) -> SupernetLinear:
    space = SpaceLayer("layer", 5, 7, base.bias is not None, kinds, list(ranks))
    return SupernetLinear(base, "default", space, sharing=sharing)


def randomized(layer: SupernetLinear) -> SupernetLinear:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in layer.named_parameters():
        if name.startswith("supernet_"):
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter)
    return layer


def inputs() -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(2)).double()


def shared(layer: SupernetLinear) -> dict[str, Tensor]:
    return {name: p for name, p in layer.named_parameters() if name.startswith("supernet_")}


@given(paths=ANY_PATHS, kind=st.sampled_from([nn.Linear, Conv1D]), sharing=st.sampled_from(SHARING))
def test_a_subnet_computes_what_an_adapter_with_its_weights_computes(paths, kind, sharing):
    layer = randomized(supernet(linear(kind), sharing=sharing))
    layer.activate(paths)
    adapter = GLoraLinear(linear(kind), "default", paths)
    for path, tensors in layer.subnet_tensors(paths, "default").items():
        for name, value in tensors.items():
            assert adapter.path_tensors("default")[path][name].shape == value.shape
            adapter.path_tensors("default")[path][name].data = value.detach().clone()
    torch.testing.assert_close(layer(inputs()), adapter(inputs()), rtol=1e-12, atol=1e-12)


@given(paths=ANY_PATHS, bias=st.booleans(), sharing=st.sampled_from(SHARING))
def test_a_new_supernet_is_the_base_layer_whatever_is_active(paths, bias, sharing):
    base = linear(bias=bias)
    expected = base(inputs())
    layer = supernet(base, sharing=sharing)
    layer.activate(paths if bias else paths.without_bias())
    torch.testing.assert_close(layer(inputs()), expected, rtol=1e-12, atol=1e-12)


def test_every_kind_of_every_path_has_tensors_of_its_own_at_the_largest_rank():
    shapes = {name: tuple(p.shape) for name, p in shared(supernet(linear())).items()}
    assert shapes == {
        **{f"supernet_{p}.default.lora_Xd": (7, 3) for p in "AB"},
        **{f"supernet_{p}.default.lora_Xu": (3, 5) for p in "AB"},
        "supernet_C.default.lora_Xd": (5, 3),
        "supernet_C.default.lora_Xu": (3, 1),
        **{f"supernet_{p}.default.vector_X": (7, 1) for p in "AB"},
        "supernet_C.default.vector_X": (5, 1),
        **{f"supernet_{p}.default.vector_X": (7,) for p in "DE"},
        **{f"supernet_{p}.default.constant_X": (1,) for p in "ABDE"},
    }


def test_tied_paths_have_tensors_of_their_own_each():
    names = set(shared(supernet(linear(), {"A_B": ["vector", "none"], "D_E": ["constant", "none"]})))
    assert names == {f"supernet_{p}.default.vector_X" for p in "AB"} | {
        f"supernet_{p}.default.constant_X" for p in "DE"
    }


def test_a_layer_without_a_bias_has_no_tensors_for_it():
    assert {name[9] for name in shared(supernet(linear(bias=False)))} == {"A", "B"}


def test_a_space_of_rank_0_alone_makes_no_low_rank_tensors():
    layer = supernet(linear(), {"B": ["lora"], "E": ["vector", "none"]}, ranks=(0,))
    assert set(shared(layer)) == {"supernet_E.default.vector_X"}


def test_a_rank_is_the_first_columns_and_rows_of_the_largest():
    layer = randomized(supernet(linear(), {"B": ["lora"]}, ranks=(0, 1, 3)))
    tensors = shared(layer)
    down, up = tensors["supernet_B.default.lora_Xd"], tensors["supernet_B.default.lora_Xu"]
    base = layer.get_base_layer()
    for rank in (0, 1, 2, 3):
        layer.activate(LayerPaths(B="lora", r=rank))
        delta = sum((torch.outer(down[:, i], up[i]) for i in range(rank)), torch.zeros(7, 5, dtype=torch.float64))
        expected = inputs() @ (base.weight + delta).T + base.bias
        torch.testing.assert_close(layer(inputs()), expected, rtol=1e-12, atol=1e-12)


def test_nested_a_vector_is_the_first_column_of_the_low_rank_factor_and_a_constant_its_first_entry():
    layer = randomized(supernet(linear(), sharing="nested"))
    tensors = shared(layer)
    assert {name.removeprefix("supernet_") for name in tensors} == {
        *(f"{path}.default.lora_{name}" for path in "ABC" for name in ("Xd", "Xu")),
        *(f"{path}.default.vector_X" for path in "DE"),
    }
    vectors = layer.subnet_tensors(LayerPaths("vector", "vector", "vector", "vector", "vector"), "default")
    constants = layer.subnet_tensors(LayerPaths("constant", "constant", "none", "constant", "constant"), "default")
    for path in "ABC":
        assert torch.equal(vectors[path]["X"], tensors[f"supernet_{path}.default.lora_Xd"][:, :1])
    for path in "DE":
        assert torch.equal(vectors[path]["X"], tensors[f"supernet_{path}.default.vector_X"])
    for path, found in constants.items():
        assert torch.equal(found["X"], vectors[path]["X"].flatten()[:1])


@pytest.mark.parametrize(
    ("kinds", "ranks", "names"),
    [
        (["constant", "vector"], (2,), {"vector_X"}),
        (["none", "constant"], (2,), {"constant_X"}),
        (["constant", "lora"], (2,), {"lora_Xd", "lora_Xu"}),
        (["vector", "lora"], (0,), {"vector_X"}),
    ],
)
def test_nested_a_path_holds_the_tensors_of_the_largest_kind_that_it_may_take(kinds, ranks, names):
    layer = randomized(supernet(linear(), {"A": kinds}, ranks, sharing="nested"))
    assert {name.removeprefix("supernet_A.default.") for name in shared(layer)} == names
    for kind in kinds:
        paths = LayerPaths(A=kind, r=ranks[0])
        found = {
            name: tuple(value.shape) for name, value in layer.subnet_tensors(paths, "default").get("A", {}).items()
        }
        assert found == paths.shapes(5, 7).get("A", {})


def test_nested_a_step_on_the_vector_moves_the_low_rank_path_and_separate_it_does_not():
    for sharing, moves in (("nested", True), ("separate", False)):
        layer = randomized(supernet(linear(), sharing=sharing))
        layer.activate(LayerPaths(B="lora", r=3))
        before = layer(inputs())
        layer.activate(LayerPaths(B="vector"))
        layer(inputs()).square().sum().backward()
        for parameter in shared(layer).values():
            if parameter.grad is not None:
                parameter.data -= 0.1 * parameter.grad
        layer.activate(LayerPaths(B="lora", r=3))
        assert torch.equal(layer(inputs()), before) is not moves


@pytest.mark.parametrize("sharing", SHARING)
def test_subnet_tensors_are_views_of_the_shared_ones(sharing):
    layer = randomized(supernet(linear(), sharing=sharing))
    paths = LayerPaths("lora", "vector", "lora", "constant", "vector", r=1)
    storages = {p.untyped_storage().data_ptr() for p in shared(layer).values()}
    for tensors in layer.subnet_tensors(paths, "default").values():
        assert all(value.untyped_storage().data_ptr() in storages for value in tensors.values())


@pytest.mark.parametrize(("path", "kind"), [(path, k) for path, kinds in KINDS.items() for k in kinds if k != "none"])
def test_only_the_tensors_that_are_active_get_a_gradient(path, kind):
    layer = randomized(supernet(linear()))
    layer.activate(LayerPaths(**{path: kind}, r=1))
    layer(inputs()).square().sum().backward()
    touched = {name for name, p in shared(layer).items() if p.grad is not None}
    assert touched
    assert {name.rsplit("_", 1)[0] for name in touched} == {f"supernet_{path}.default.{kind}"}
    if kind == "lora":
        gradient = shared(layer)[f"supernet_{path}.default.lora_Xd"].grad
        assert gradient[:, :1].any()
        assert not gradient[:, 1:].any()


def test_a_merged_subnet_computes_the_same_and_another_takes_it_out_first():
    layer = randomized(supernet(linear()))
    bits = [p.detach().clone() for p in layer.get_base_layer().parameters()]
    subnets = [LayerPaths(*kinds, r=3) for kinds in itertools.islice(itertools.product(*FREE.values()), 0, 432, 37)]
    for paths in subnets:
        layer.activate(paths)
        assert not layer.merged
        assert all(torch.equal(p, b) for p, b in zip(layer.get_base_layer().parameters(), bits, strict=True))
        expected = layer(inputs())
        layer.merge()
        assert layer.merged
        torch.testing.assert_close(layer.get_base_layer()(inputs()), expected, rtol=1e-10, atol=1e-10)
        assert torch.equal(layer(inputs()), layer.get_base_layer()(inputs()))


def test_disabled_it_is_the_base_layer_and_what_was_merged_is_taken_out():
    layer = randomized(supernet(linear()))
    layer.activate(LayerPaths(A="lora", r=3))
    plain = linear()(inputs())
    assert not torch.allclose(layer(inputs()), plain)
    layer.merge()
    layer.enable_adapters(False)
    assert torch.equal(layer(inputs()), plain)
    assert not layer.merged


def test_another_type_of_layer_is_refused_by_the_modules_name():
    with pytest.raises(UserError, match=r"'odd\.one': got 'Embedding'"):
        SupernetLinear(nn.Embedding(5, 7), "default", SpaceLayer("odd.one", 5, 7, False, FREE, [1]), name="odd.one")
