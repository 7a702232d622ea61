from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import TrainerCallback, TrainingArguments

from glora_search.space import Genome
from glora_search.supernet import SizeSampling, SupernetConfig, SupernetTrainer, UniformSampling

STEPS = 4


def dataset(size: int = 24) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (size, 6), generator=generator)
    return [{"input_ids": row, "labels": row.sum() % 3} for row in ids]


@pytest.fixture
def make_trainer(make_model, bind, tmp_path):
    """``make_trainer(**arguments)``: a supernet of ``glora-paper`` on BERT with dropout, and its trainer."""

    def make(*, seed: int = 5, sampling: Any = None, folder: str = "out", **arguments: Any) -> SupernetTrainer:
        torch.manual_seed(seed)
        config = SupernetConfig(space=bind("glora-paper"), task_type="SEQ_CLS")
        options = {
            "output_dir": str(tmp_path / folder),
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 7,
        }
        return SupernetTrainer(
            model=get_peft_model(make_model("bert"), config),
            args=TrainingArguments(**{**options, **arguments}),
            train_dataset=dataset(),
            eval_dataset=dataset(8),
            sampling=sampling,
        )

    return make


def trained(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


class Subnets(TrainerCallback):
    """What was active in every forward pass of the training, by the optimizer's step."""

    def __init__(self, trainer: SupernetTrainer) -> None:
        self.seen: list[tuple[int, Genome]] = []
        model = trainer.model

        def note(module: Any, args: Any) -> None:
            if module.training:
                self.seen.append((trainer.state.global_step, dict(model.active_genome)))

        model.base_model.model.bert.embeddings.register_forward_pre_hook(note)


def test_training_changes_the_supernet_and_the_head_and_not_the_base(make_trainer, weights):
    trainer = make_trainer()
    base, before = weights(trainer.model), trained(trainer.model)
    result = trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) for loss in [*losses, result.training_loss])
    after = trained(trainer.model)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {f"base_model.model.classifier.modules_to_save.default.{n}" for n in ("weight", "bias")} <= changed
    for path in "ABCDE":
        assert any(f"supernet_{path}" in name for name in changed)
    assert all(torch.equal(value, base[name]) for name, value in weights(trainer.model).items())


def test_the_subnet_of_a_step_is_the_one_that_the_sampling_says(make_trainer):
    trainer = make_trainer()
    assert isinstance(trainer.sampling, SizeSampling)
    assert trainer.sampling.seed == 7
    subnets = Subnets(trainer)
    trainer.train()
    assert [step for step, _ in subnets.seen] == list(range(STEPS))
    assert all(genome == trainer.sampling(step) for step, genome in subnets.seen)


def test_another_sampling_can_be_given(make_trainer, bind):
    sampling = UniformSampling(bind("glora-paper"), seed=11)
    trainer = make_trainer(sampling=sampling, max_steps=2)
    subnets = Subnets(trainer)
    trainer.train()
    assert [genome for _, genome in subnets.seen] == [sampling(0), sampling(1)]


def test_all_micro_batches_of_a_step_train_one_subnet(make_trainer):
    trainer = make_trainer(gradient_accumulation_steps=3, per_device_train_batch_size=2)
    subnets = Subnets(trainer)
    trainer.train()
    assert [step for step, _ in subnets.seen] == [step for step in range(STEPS) for _ in range(3)]
    assert all(genome == trainer.sampling(step) for step, genome in subnets.seen)
    assert len({tuple(genome.items()) for _, genome in subnets.seen}) == STEPS


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_the_forward_that_gradient_checkpointing_repeats_sees_the_same_subnet(make_trainer):
    runs, forwards = [], []
    for checkpointing in (False, True):
        trainer = make_trainer(gradient_checkpointing=checkpointing, folder=str(checkpointing))
        calls: list[Any] = []
        first = next(iter(trainer.model.layers().values()))
        first.register_forward_pre_hook(lambda module, args, calls=calls: calls.append(module.active_paths))
        trainer.train()
        runs.append(trained(trainer.model))
        forwards.append(calls)
    assert forwards[1] == [paths for paths in forwards[0] for _ in range(2)]
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, rtol=1e-5, atol=1e-6)


def test_a_resumed_training_ends_with_the_same_weights_bit_for_bit(make_trainer, tmp_path):
    whole = make_trainer(save_strategy="steps", save_steps=STEPS // 2)
    whole.train()
    checkpoint = Path(whole.args.output_dir) / f"checkpoint-{STEPS // 2}"
    resumed = make_trainer(seed=99, folder="resumed")  # other initial weights: all must come from the checkpoint
    subnets = Subnets(resumed)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert [step for step, _ in subnets.seen] == list(range(STEPS // 2, STEPS))
    expected, found = trained(whole.model), trained(resumed.model)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_same_seed_gives_the_same_weights(make_trainer):
    runs = []
    for index in range(2):
        trainer = make_trainer(folder=str(index))
        trainer.train()
        runs.append(trained(trainer.model))
    first, second = runs
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_an_evaluation_takes_the_largest_subnet_and_training_goes_on_with_its_own(make_trainer):
    trainer = make_trainer(eval_strategy="steps", eval_steps=1)
    evaluated = []
    trainer.model.base_model.model.bert.embeddings.register_forward_pre_hook(
        lambda module, args: None if module.training else evaluated.append(dict(trainer.model.active_genome))
    )
    subnets = Subnets(trainer)
    trainer.train()
    assert evaluated
    assert all(genome == trainer.model.space.largest for genome in evaluated)
    assert all(genome == trainer.sampling(step) for step, genome in subnets.seen)
    assert math.isfinite(trainer.evaluate()["eval_loss"])
