"""How logits of each kind are read, and how far a student is from its teacher, against float64 written out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertGenerationConfig,
    CLIPVisionConfig,
    Gemma3Config,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from glora_search.errors import UserError
from glora_search.scoring import IGNORED, RowMetric, evaluate, predicts_next
from glora_search.training.answers import Answers, check_teachable

torch.manual_seed(0)


class TinyForCausalLM(nn.Module):
    """Only its name counts."""


def draw(*shape):
    return torch.randn(*shape)


def test_the_kind_is_told_by_labels_and_model():
    plain, causal = nn.Linear(1, 1), TinyForCausalLM()
    tokens = torch.tensor([[1, IGNORED], [0, 2]])
    assert Answers.of(plain, draw(2, 3), torch.tensor([0, 1])).kind == "class"
    assert Answers.of(plain, draw(2, 3), torch.tensor([[0.0, 1, 1], [1, 0, 0]])).kind == "decisions"
    assert Answers.of(plain, draw(2, 1), torch.tensor([0.5, 1.5])).kind == "numbers"
    assert Answers.of(plain, draw(2, 1), torch.tensor([[0.5], [1.5]])).kind == "numbers"
    assert Answers.of(plain, draw(2, 2, 3), tokens).kind == "tokens"
    assert Answers.of(causal, draw(2, 2, 3), tokens).kind == "next tokens"


@pytest.mark.parametrize(
    ("problem", "labels", "kind"),
    [("regression", 2, "numbers"), ("multi_label_classification", 1, "decisions"), (None, 2, "decisions")],
)
def test_a_models_problem_type_tells_numbers_from_decisions(problem, labels, kind):
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(problem_type=problem)
    assert Answers.of(model, draw(3, labels), draw(3, labels)).kind == kind


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**SIZES, "vocab_size": 20, "num_key_value_heads": 1, "head_dim": 8}
VISION = {**SIZES, "image_size": 28, "patch_size": 14}
CAUSAL = {
    "Gemma3ForConditionalGeneration": lambda: Gemma3Config(text_config=TEXT, vision_config=VISION),
    "BertGenerationDecoder": lambda: BertGenerationConfig(**SIZES, vocab_size=20, is_decoder=True),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_is_known_whatever_its_class_is_called(name):
    model = AutoModelForCausalLM.from_config(CAUSAL[name]()).eval()
    assert type(model).__name__ == name
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    labels = torch.tensor([[IGNORED, 6, 7, IGNORED], [IGNORED, IGNORED, 11, 12]])
    with torch.no_grad():
        found = model(input_ids=ids, labels=labels)
    answers = Answers.of(model, found.logits, labels)
    assert answers.kind == "next tokens"
    torch.testing.assert_close(answers.losses(*answers.items(found.logits, labels)).mean(), found.loss)
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear", r=1))
    assert predicts_next(wrapped)


def test_a_model_that_writes_about_images_predicts_the_next_token_and_counts_no_first_label():
    text, vision = LlamaConfig(**TEXT), CLIPVisionConfig(**SIZES, image_size=8, patch_size=4, projection_dim=16)
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=19))
    assert predicts_next(model)
    ids = torch.randint(1, 19, (2, 5))
    scoring = RowMetric(lambda logits, labels: torch.zeros(len(labels)))
    parts = [{"input_ids": ids[:1], "labels": ids[:1]}, {"input_ids": ids[1:, :2], "labels": ids[1:, :2]}]
    with torch.no_grad():
        losses = [model.eval()(**part).loss for part in parts]
    assert evaluate(model, parts, scoring).loss == pytest.approx(float(4 * losses[0] + losses[1]) / 5)


def test_a_model_that_reads_images_and_has_an_encoder_of_texts_does_not_predict_the_next_token():
    text = T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    parts = {"vision_config": VISION, "qformer_config": {**SIZES, "vocab_size": 20, "encoder_hidden_size": 16}}
    config = InstructBlipConfig(text_config=text.to_dict(), num_query_tokens=2, **parts)
    assert not predicts_next(InstructBlipForConditionalGeneration(config))


def test_a_decoder_beside_an_encoder_does_not_predict_the_next_token():
    config = T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    assert not predicts_next(T5ForConditionalGeneration(config))


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (draw(2, 3, 4), torch.tensor([0, 1])),
        (draw(2, 3), torch.tensor([0.5, 1.5])),
        (draw(2, 3), torch.ones(2, 3).long()),
    ],
)
def test_logits_that_nothing_can_be_learned_from_are_refused(logits, labels):
    with pytest.raises(UserError, match=r"finals\.teacher.*\.distill: .*cannot be learned from"):
        Answers.of(nn.Linear(1, 1), logits, labels)


def test_items_of_next_tokens_are_those_that_count_one_to_the_left():
    logits, labels = draw(2, 3, 5), torch.tensor([[IGNORED, 1, 2], [IGNORED, IGNORED, 4]])
    found, truth = Answers("next tokens").items(logits, labels)
    torch.testing.assert_close(found, torch.stack([logits[0, 0], logits[0, 1], logits[1, 1]]))
    assert truth.tolist() == [1, 2, 4]


@pytest.mark.parametrize("kind", ["class", "tokens", "next tokens"])
def test_a_distance_of_distributions_is_the_divergence(kind):
    logits, taught = draw(4, 6), draw(4, 6).softmax(-1)
    p, q = taught.double(), logits.double().softmax(-1)
    wanted = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(Answers(kind).distances(logits, taught).double(), wanted, rtol=1e-5, atol=1e-6)


def test_of_the_likeliest_classes_alone_the_rest_is_one_class():
    logits, taught = draw(4, 6), draw(4, 6).softmax(-1)
    best, classes = taught.topk(2)
    p, q = best.double(), logits.double().softmax(-1).gather(-1, classes)
    rest_p, rest_q = 1 - p.sum(-1), 1 - q.sum(-1)
    wanted = (p * (p / q).log()).sum(-1) + rest_p * (rest_p / rest_q).log()
    found = Answers("tokens").distances(logits, best, classes)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    assert (found.double() <= (taught.double() * (taught / logits.softmax(-1)).double().log()).sum(-1) + 1e-6).all()


def test_all_classes_are_compared_exactly_also_where_they_are_named():
    logits, taught = draw(4, 3).requires_grad_(), draw(4, 3).softmax(-1)
    best, classes = taught.topk(3)
    found = Answers("tokens").distances(logits, best, classes)
    torch.testing.assert_close(found, Answers("class").distances(logits, taught), rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_a_distance_of_decisions_is_the_mean_divergence_of_each_label():
    logits, taught = draw(4, 3), torch.rand(4, 3)
    p, q = taught.double(), logits.double().sigmoid()
    wanted = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(-1)
    torch.testing.assert_close(Answers("decisions").distances(logits, taught).double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_distance_of_numbers_is_the_squared_error():
    logits, taught = draw(4, 1), draw(4, 1)
    torch.testing.assert_close(Answers("numbers").distances(logits, taught), (logits - taught)[:, 0] ** 2)


@pytest.mark.parametrize("kind", ["class", "decisions", "numbers"])
def test_logits_say_what_they_were_made_from(kind):
    answers, logits = Answers(kind), draw(4, 3)
    said = answers.said(logits)
    torch.testing.assert_close(answers.said(answers.logits_of(said)), said)


class Says(nn.Module):
    """A model whose logits are given."""

    def __init__(self, *shape):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(shape))

    def forward(self, labels):
        return SimpleNamespace(logits=self.logits)


def test_a_model_whose_logits_cannot_be_learned_from_is_refused():
    check_teachable(Says(2, 3), {"labels": torch.zeros(2, dtype=torch.long)})
    with pytest.raises(UserError, match=r"finals\.teacher.*logits \(2, 3, 8, 8\) for labels \(2, 32, 32\)"):
        check_teachable(Says(2, 3, 8, 8), {"labels": torch.zeros(2, 32, 32, dtype=torch.long)})
