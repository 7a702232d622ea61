from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from trainers import STEPS, dataset, trained
from transformers import EarlyStoppingCallback, TrainerCallback

from glora_search.errors import UserError
from glora_search.space.layers import Genome
from glora_search.supernet import (
    Sampling,
    SizeSampling,
    SupernetTrainer,
    UniformSampling,
)


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
    assert all([genome] == trainer.sampling(step) for step, genome in subnets.seen)


def test_another_sampling_can_be_given(make_trainer, bind):
    sampling = UniformSampling(bind("glora-paper"), seed=11)
    trainer = make_trainer(sampling=sampling, max_steps=2)
    subnets = Subnets(trainer)
    trainer.train()
    assert [genome for _, genome in subnets.seen] == [*sampling(0), *sampling(1)]


def test_all_micro_batches_of_a_step_train_one_subnet(make_trainer):
    trainer = make_trainer(gradient_accumulation_steps=3, per_device_train_batch_size=2)
    subnets = Subnets(trainer)
    trainer.train()
    assert [step for step, _ in subnets.seen] == [step for step in range(STEPS) for _ in range(3)]
    assert all([genome] == trainer.sampling(step) for step, genome in subnets.seen)
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


@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_a_training_resumed_within_an_epoch_ends_with_the_same_weights_bit_for_bit(make_trainer, tmp_path, order):
    options = {"train_sampling_strategy": order, "per_device_train_batch_size": 8, "max_steps": 8}
    whole = make_trainer(save_strategy="steps", save_steps=4, **options)  # the second of the three steps of epoch 2
    whole.train()
    checkpoint = Path(whole.args.output_dir) / "checkpoint-4"
    # other initial weights: all must come from the checkpoint
    resumed = make_trainer(seed=99, folder="resumed", **options)
    subnets = Subnets(resumed)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert [step for step, _ in subnets.seen] == [4, 5, 6, 7]
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


def test_an_evaluation_scores_every_probe_and_their_mean_and_training_goes_on_with_its_own_subnets(make_trainer):
    trainer = make_trainer(eval_strategy="steps", eval_steps=2)
    evaluated = []
    trainer.model.base_model.model.bert.embeddings.register_forward_pre_hook(
        lambda module, args: None if module.training else evaluated.append(dict(trainer.model.active_genome))
    )
    subnets = Subnets(trainer)
    trainer.train()
    assert evaluated == [*trainer.probes.values()] * (STEPS // 2)
    assert all([genome] == trainer.sampling(step) for step, genome in subnets.seen)
    curves = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(curves) == STEPS // 2
    for entry in curves:
        losses = [entry[f"eval_{name}_loss"] for name in trainer.probes]
        assert len(set(losses)) > 2
        assert entry["eval_loss"] == pytest.approx(sum(losses) / len(losses))


def test_what_a_probe_scores_is_what_its_subnet_scores(make_trainer):
    trainer = make_trainer()
    trainer.train()
    metrics = trainer.evaluate()
    name = "size_1/4"
    trainer.model.eval()
    trainer.model.activate(trainer.probes[name])
    batch = trainer.data_collator(dataset(8))
    with torch.no_grad():
        assert metrics[f"eval_{name}_loss"] == pytest.approx(float(trainer.model(**batch).loss), abs=1e-5)


def test_predictions_are_those_of_the_largest_probe(make_trainer):
    trainer = make_trainer()
    trainer.train()
    predicted = trainer.predict(dataset(8)).predictions
    trainer.model.activate(trainer.probes["size_1/1"])
    with torch.no_grad():
        expected = trainer.model.eval()(**trainer.data_collator(dataset(8))).logits
    torch.testing.assert_close(torch.tensor(predicted), expected, rtol=1e-4, atol=1e-5)


def test_training_stops_early_on_the_probes_mean(make_trainer):
    trainer = make_trainer(
        max_steps=20,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        learning_rate=1e-30,  # nothing gets better
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    assert trainer.state.global_step == 3


class Several(Sampling):
    """The largest subnet and two others, in every step."""

    def __call__(self, step):
        return [self.space.largest, *(self.space.sample(self.rng(10 * step + index)) for index in range(2))]


def gradients(trainer: SupernetTrainer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def loss_of(logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None = None) -> torch.Tensor:
    """A subnet's loss, or its divergence from the teacher's logits: the mean over labelled rows, or tokens."""
    if labels.ndim == 2:
        labels, places = labels[:, 1:], labels[:, 1:] != -100
        labels, logits = labels[places], logits[:, :-1][places]
        teacher = None if teacher is None else teacher[:, :-1][places]
    if teacher is None:
        return F.cross_entropy(logits, labels)
    p, q = teacher.softmax(-1), logits.softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("distill", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_gradient_of_a_step_is_the_mean_over_its_subnets(
    accumulation, distill, architecture, make_trainer, bind, randomize
):
    """Against autograd through the mean loss of all rows or tokens, written out; dropout is off."""
    sampling = Several(bind("glora-paper", architecture), seed=3)
    sampling.distill = distill
    trainer = make_trainer(
        sampling=sampling,
        max_steps=1,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0,
        dropout=False,
        architecture=architecture,
    )
    found: dict[str, torch.Tensor] = {}
    batches = []
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, n=None: batches.append(inputs) or step(model, inputs, n)
    model = randomize(trainer.model)
    initial = trained(model)

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            found.update(gradients(trainer))

    trainer.add_callback(Keep())
    trainer.train()
    for name, value in initial.items():
        model.get_parameter(name).data = value
    model.zero_grad()
    rows = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    losses, teacher = [], None
    for genome in trainer.sampling(0):
        model.activate(genome)
        logits = model(**rows).logits
        losses.append(loss_of(logits, rows["labels"], teacher))
        teacher = logits.detach() if distill and teacher is None else teacher
    torch.stack(losses).mean().backward()
    expected = gradients(trainer)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(torch.stack(losses).detach().mean()), abs=1e-4)


def test_distilled_subnets_learn_from_the_first_ones_outputs(make_trainer, bind):
    """Without labels of their own: where all subnets are the first one there is nothing left to learn from it."""

    class Same(Sampling):
        distill = True

        def __call__(self, step):
            return [self.space.largest] * 3

    runs = {}
    for distill in (True, False):
        sampling = Same(bind("glora-paper"))
        sampling.distill = distill
        trainer = make_trainer(sampling=sampling, max_steps=1, dropout=False, folder=str(distill))
        trainer.train()
        runs[distill] = trainer.state.log_history[0]["loss"]
    assert runs[True] == pytest.approx(runs[False] / 3, abs=1e-4)


def test_a_step_that_failed_leaves_no_teacher_for_the_next_one(make_trainer, bind):
    sampling = Several(bind("glora-paper"))
    sampling.distill = True
    trainer = make_trainer(sampling=sampling, dropout=False)
    batch = trainer.data_collator(dataset(4))
    trainer.current_gradient_accumulation_steps = 1
    wanted = trainer.training_step(trainer.model, dict(batch))
    forward, calls = trainer.model.forward, []

    def fail(**inputs: Any) -> Any:
        calls.append(inputs)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return forward(**inputs)

    trainer.model.forward = fail
    with pytest.raises(torch.OutOfMemoryError):
        trainer.training_step(trainer.model, trainer.data_collator(dataset(6)))
    torch.testing.assert_close(trainer.training_step(trainer.model, dict(batch)), wanted)


def test_a_distributed_run_that_may_leave_no_parameter_out_is_refused(make_trainer):
    with pytest.raises(UserError, match="ddp_find_unused_parameters: got False"):
        make_trainer(ddp_find_unused_parameters=False)


def test_training_runs_in_bfloat16(make_trainer):
    trainer = make_trainer(bf16=True, eval_strategy="steps", eval_steps=2)
    before = trained(trainer.model)
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    assert all(value.dtype == torch.float32 for value in trained(trainer.model).values())
    assert any(not torch.equal(value, before[name]) for name, value in trained(trainer.model).items())


def test_of_a_model_that_train_makes_anew_the_same_is_trained(make_trainer):
    given = make_trainer(dropout=False)
    start = copy.deepcopy(given.model)
    data = {"args": given.args, "train_dataset": given.train_dataset, "eval_dataset": given.eval_dataset}
    made = SupernetTrainer(model_init=lambda: copy.deepcopy(start), **data)
    given.train()
    made.train()
    weights = trained(given.model)
    assert all(torch.equal(value, weights[name]) for name, value in trained(made.model).items())
    assert made.evaluate()["eval_loss"] == pytest.approx(given.evaluate()["eval_loss"])


def test_an_evaluation_leaves_the_active_subnet(make_trainer):
    trainer = make_trainer()
    genome = trainer.probes["size_1/4"]
    trainer.model.activate(genome)
    trainer.evaluate()
    assert trainer.model.active_genome == genome


def test_of_what_is_no_number_each_probe_has_its_own(make_trainer):
    trainer = make_trainer()
    trainer.compute_metrics = lambda predicted: {"first": predicted.predictions[0].tolist(), "rows": 8}
    found = trainer.evaluate()
    assert "eval_first" not in found
    assert len(found["eval_size_1/4_first"]) == 3
    assert found["eval_rows"] == found["eval_size_1/4_rows"] == 8
