from __future__ import annotations

import peft
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

from glora_search.tuners.targets import exact_targets, namesakes

BLOCKS, LAYERS = st.lists(st.sampled_from(["a", "b", "0", "10"]), max_size=2), st.sampled_from(["q", "aq", "a_q", "1"])
NAMES = st.sets(st.builds(lambda blocks, layer: ".".join([*blocks, layer]), BLOCKS, LAYERS))
"""Names of which many end like others; a dot, taken for a pattern's, would match more."""


def model_of(names: set[str]) -> nn.Module:
    """A model with a linear layer under each of these names."""
    root = nn.Module()
    for name in names:
        *blocks, layer = name.split(".")
        parent = root
        for block in blocks:
            if not hasattr(parent, block):
                parent.add_module(block, nn.Module())
            parent = parent.get_submodule(block)
        parent.add_module(layer, nn.Linear(2, 2))
    return root


@given(others=NAMES, meant=NAMES.filter(bool))
def test_of_any_names_peft_adapts_exactly_those_that_are_meant(others, meant):
    model = model_of(others | meant)
    targets = exact_targets(meant, [name for name, _ in model.named_modules()])
    adapted = get_peft_model(model, peft.LoraConfig(target_modules=targets))
    assert set(adapted.targeted_module_names) == meant


@pytest.mark.parametrize(
    ("names", "modules", "targets"),
    [
        (["b", "a"], ["a", "b", "c"], ["a", "b"]),
        (["a"], ["a", "ba", "b.ba"], ["a"]),  # peft's ends begin after a dot
        (["a"], ["a", "b.a"], "a"),
        (["x.a", "b.c"], ["b.c", "x.a", "y.x.a"], r"b\.c|x\.a"),
        (["a", "b.a"], ["a", "b.a"], ["a", "b.a"]),
    ],
)
def test_the_targets_are_a_list_of_names_unless_another_module_ends_like_one_of_them(names, modules, targets):
    assert exact_targets(names, modules) == targets
    assert isinstance(targets, str) == bool(namesakes(names, modules))
