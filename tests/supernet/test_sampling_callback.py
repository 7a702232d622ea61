"""All subnets of a supernet in somebody else's trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trainers import trained
from transformers import Trainer, TrainerCallback

from glora_search.errors import UserError
from glora_search.space.layers import Genome
from glora_search.supernet import SamplingCallback, SandwichSampling, SizeSampling, UniformSampling


class NowAndThenNothing(SizeSampling):
    """Every other step trains the subnet without any path."""

    def __call__(self, step: int) -> list[Genome]:
        return [dict(self.space.smallest)] if step % 2 else super().__call__(step)


@pytest.mark.parametrize("strategy", [SizeSampling, NowAndThenNothing])
def test_the_callback_trains_as_the_trainer_does(make_trainer, bind, strategy):
    options = {"architecture": "llama", "gradient_accumulation_steps": 2}
    sampling = strategy(bind("glora-paper", "llama"), seed=7)
    assert sampling.space.params(sampling.space.smallest) == 0
    ours = make_trainer(sampling=sampling, **options)
    theirs = make_trainer(trainer_cls=Trainer, callbacks=[SamplingCallback(sampling)], **options)
    ours.train()
    theirs.train()
    expected, found = trained(ours.model), trained(theirs.model)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("budget", [None, 200])
def test_an_evaluation_scores_the_largest_subnet_that_is_trained(make_trainer, bind, budget):
    sampling = UniformSampling(bind("glora-paper"), max_params=budget)
    evaluated = []

    class Note(TrainerCallback):
        def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
            evaluated.append(dict(trainer.model.active_genome))

    callbacks = [SamplingCallback(sampling), Note()]
    trainer = make_trainer(trainer_cls=Trainer, callbacks=callbacks, eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert evaluated == [evaluated[0]] * len(evaluated)
    size, space = sampling.space.params(evaluated[0]), sampling.space
    assert evaluated[0] == space.largest if budget is None else budget / 2 < size <= budget


@pytest.mark.parametrize(
    ("sampling", "arguments", "named"),
    [
        (SandwichSampling, {}, "SandwichSampling"),
        (SizeSampling, {"ddp_find_unused_parameters": False}, "ddp_find_unused_parameters"),
    ],
)
def test_the_callback_refuses_what_it_cannot_train(make_trainer, bind, sampling, arguments, named):
    callback = SamplingCallback(sampling(bind("glora-paper")))
    trainer = make_trainer(trainer_cls=Trainer, callbacks=[callback], **arguments)
    with pytest.raises(UserError, match=named):
        trainer.train()
