"""Logits for the labelled tokens alone: the same loss, gradients and perplexity as with all of them."""

from __future__ import annotations

import pytest
import torch

from glora_search.scoring import evaluate, length_sorted_batches
from glora_search.tasks.labelled import LabelledTokens


def rows(make, count=10):
    long = "the a new old big of and says " * 2
    return [{"text": long[: 20 + 3 * n], "answer": text} for n, (text, _) in enumerate(make.sentences(count))]


@pytest.fixture
def answers(task, make):
    """``answers(architecture)``: a task of long prompts and short answers."""

    def build(architecture):
        found = task(architecture, "causal-lm", rows(make), data={"response_column": "answer"}, max_length=48)
        return found, found.model()

    return build


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_loss_gradients_and_perplexity_are_those_of_all_logits(answers, architecture):
    task, model = answers(architecture)
    batches = [length_sorted_batches(task.train, one, 4) for one in (task.collator, task.collator.collator)]
    for cut, whole in zip(*batches, strict=True):
        found = []
        for batch in (cut, whole):
            model.zero_grad()
            output = model(**batch)
            output.loss.backward()
            found.append((output, [parameter.grad.clone() for parameter in model.parameters()]))
        (few, ours), (all_, theirs) = found
        torch.testing.assert_close(few.loss, all_.loss)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert few.logits.shape[1] == cut["labels"].shape[1] < all_.logits.shape[1]
        torch.testing.assert_close(task.tally(few.logits, cut["labels"]), task.tally(all_.logits, whole["labels"]))
    scored = [evaluate(model, own, task) for own in batches]
    assert scored[0].metric == pytest.approx(scored[1].metric, rel=1e-5)
    assert scored[0].loss == pytest.approx(scored[1].loss, rel=1e-5)


def test_where_all_tokens_are_learned_a_batch_stays_as_it_is():
    def collator(labels):
        return {"input_ids": torch.ones(1, 4), "labels": torch.tensor(labels)}

    learned, few = [[-100, 1, 2, 3]], [[-100, -100, -100, 3]]
    made = LabelledTokens(collator)
    assert "logits_to_keep" not in made(learned)
    cut = made(few)
    assert cut["logits_to_keep"].tolist() == [2, 3]
    assert cut["labels"].tolist() == [[-100, 3]]
