"""Merging is checked: the model that transformers loads computes what the adapter does."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from glora_search.errors import UserError
from glora_search.run import merge
from glora_search.scoring import Evaluation


def test_a_merged_model_that_differs_is_refused_and_removed(copied, monkeypatch):
    copied.forget("merged")
    original = merge.merge

    def broken(model):
        plain = original(model)
        plain.classifier.bias.data += 0.01
        return plain

    monkeypatch.setattr(merge, "merge", broken)
    with pytest.raises(UserError, match=r"does not compute what .* does: logits of up to .* differ by 0\.01"):
        copied.do("merged")
    assert not (copied.folder / "merged").exists()


def test_what_is_compared_is_what_transformers_loads(copied, monkeypatch):
    copied.forget("merged")
    original = AutoModelForSequenceClassification.from_pretrained

    def other(path, **options):
        model = original(path, **options)
        if str(path).endswith("merged"):
            model.classifier.weight.data.zero_()
        return model

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", other)
    with pytest.raises(UserError, match="does not compute what"):
        copied.do("merged")


def test_an_adapter_that_cannot_be_merged_is_a_message(copied, monkeypatch):
    copied.forget("merged")
    load = copied.context.load

    def with_nan(adapter):
        model = load(adapter)
        for name, parameter in model.named_parameters():
            if "glora_" in name:
                parameter.data.fill_(float("nan"))
        return model

    monkeypatch.setattr(copied.context, "load", with_nan)
    with pytest.raises(UserError, match=r"cannot be merged \(NaN"):
        copied.do("merged")


@pytest.mark.parametrize(
    ("logit", "metric", "loss", "words"),
    [
        (1e-5, 0.9, 1.0, ""),
        (1e-5, 0.88, 1.0, ""),  # two rows of 100 on the edge
        (1e-2, 0.9, 1.0, "logits of up to 1 differ by 0.01"),
        (1e-5, 0.5, 1.0, "the validation metric was 0.9000 and is 0.5000"),
        (1e-5, 0.9, 1.1, "the validation loss was 1.0000 and is 1.1000"),
        (float("nan"), 0.9, 1.0, "differ by nan"),
        (1e-5, 0.9, float("nan"), "the validation loss"),
    ],
)
def test_rounding_is_let_through_and_nothing_else(logit, metric, loss, words):
    before, after = torch.zeros(3, 2), torch.zeros(3, 2) + logit
    scored = (Evaluation(0.9, 1.0), Evaluation(metric, loss))
    found = merge._differences([before], [after], *scored, epsilon=torch.finfo(torch.float32).eps, rows=100)
    assert words in found
    assert bool(found) == bool(words)


def test_layers_that_share_a_weight_are_named(make_model):
    model = make_model("gpt2")  # its output layer is its embedding
    found = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))
    assert "transformer.wte and lm_head share a weight" in merge.shared_weights(found)
    other = get_peft_model(make_model("gpt2"), LoraConfig(r=2, target_modules=["c_proj"], fan_in_fan_out=True))
    assert merge.shared_weights(other) == ""
