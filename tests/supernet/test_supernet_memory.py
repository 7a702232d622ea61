"""Whether there is memory to fold subnets."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
from peft import get_peft_model

from glora_search.supernet import SupernetConfig


def test_memory_that_an_earlier_subnet_has_left_need_not_be_free_again(make_model, bind, monkeypatch):
    config = SupernetConfig(space=bind("glora-paper"), task_type="SEQ_CLS")
    supernet = get_peft_model(make_model("bert"), config).eval()
    weights = [layer.get_base_layer().weight for layer in supernet.layers().values()]
    free = SimpleNamespace(available=2 * sum(weight.numel() * weight.element_size() for weight in weights))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert supernet.folding_fits()
    with supernet.folded(supernet.space.largest):
        free.available //= 2
    assert supernet.folding_fits()
    supernet.train()
    assert not supernet.folding_fits()
