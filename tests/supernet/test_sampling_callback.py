"""All subnets of a supernet in somebody else's trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trainers import trained
from transformers import Trainer, TrainerCallback

from glora_search.errors import UserError
from glora_search.supernet import SamplingCallback, SandwichSampling, SizeSampling, UniformSampling


def test_the_callback_trains_as_the_trainer_does(make_trainer, bind):
    options = {"architecture": "llama", "gradient_accumulation_steps": 2}
    sampling = SizeSampling(bind("glora-paper", "llama"), seed=7)
    ours = make_trainer(sampling=sampling, **options)
    theirs = make_trainer(trainer_cls=Trainer, callbacks=[SamplingCallback(sampling)], **options)
    ours.train()
    theirs.train()
    expected, found = trained(ours.model), trained(theirs.model)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


def test_the_callback_leaves_the_largest_subnet_to_evaluations(make_trainer, bind):
    space = bind("glora-paper")
    evaluated = []

    class Note(TrainerCallback):
        def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
            evaluated.append(dict(trainer.model.active_genome))

    callbacks = [SamplingCallback(UniformSampling(space)), Note()]
    trainer = make_trainer(trainer_cls=Trainer, callbacks=callbacks, eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert evaluated == [space.largest] * len(evaluated) != []


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
