"""What `find_adapter` refuses of its model and its rows."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import MixtralConfig, MixtralForCausalLM, TrainingArguments

from glora_search import SupernetTrainer, find_adapter
from glora_search.errors import UserError


def rows(labels, token=3):
    ids = [[token, 2, 1, 0]] * 16
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 4] * 16, "labels": [labels] * 16})


GOOD = rows([-100, 2, 1, 0])
MASKED = {
    "none": (None, r"got 'NoneType'; allowed: a datasets\.Dataset with rows"),
    "no rows": (GOOD.select([]), r"got 'a datasets\.Dataset of 0 rows'; allowed: a datasets\.Dataset with rows"),
    "a list": ([{"labels": 0}], r"got 'list'; allowed: a datasets\.Dataset with rows"),
    "a stream": (IterableDataset.from_generator(lambda: iter(())), r"got 'IterableDataset'; allowed: a datasets"),
    "masked": (rows([-100] * 4), r"got '16 rows whose labels are all -100'; allowed: rows with a label that counts"),
    "only the first token": (rows([3, -100, -100, -100]), r"got '16 rows whose labels are all -100'"),
    "unknown tokens, as tensors": (
        rows([-100, 2, 1, 0], token=70).with_format("torch"),
        r"got 'a row with token 70'; allowed: .* below 50",
    ),
    "unknown tokens": (rows([-100, 2, 1, 0], token=70), r"got 'a row with token 70'; allowed: .* below 50"),
}


@pytest.fixture
def find(make_model, tmp_path, monkeypatch):
    """``find(model, train, validation)``, which would fail if it trained."""
    monkeypatch.setattr(SupernetTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none")

    def call(train=GOOD, validation=GOOD, model=None):
        metric = lambda logits, labels: logits[:, 0, 0] > 0  # noqa: E731
        model = make_model("llama") if model is None else model
        return find_adapter(model, train, validation, task_type="CAUSAL_LM", metric=metric, args=args)

    return call


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(("given", "words"), MASKED.values(), ids=MASKED.keys())
def test_rows_of_which_nothing_can_be_learned_are_refused_before_the_training(find, split, given, words):
    with pytest.raises(UserError, match=rf"{split}: {words}"):
        find(**{split: given})


def test_a_model_that_adds_its_routers_loss_is_refused(find):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = MixtralConfig(
        vocab_size=64, num_key_value_heads=1, num_local_experts=2, **sizes, output_router_logits=True
    )
    with torch.random.fork_rng():
        model = MixtralForCausalLM(config)
    with pytest.raises(UserError, match=r"model\.config\.output_router_logits: got True; allowed: False"):
        find(model=model)
