"""A training: which metric is better, and what has nothing to train."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import BertTokenizerFast, DataCollatorWithPadding, TrainingArguments

from glora_search import GLoraConfig, RowMetric
from glora_search.errors import UserError
from glora_search.training import loop
from glora_search.training.loop import _go, _note_processes, steps_for, total_steps, train, training_arguments


@pytest.fixture
def rows():
    return Dataset.from_dict({"input_ids": [[5, 6]] * 4, "attention_mask": [[1, 1]] * 4, "labels": [0, 1, 2, 0]})


def settings(**more):
    return {"use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no", **more}


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("name", ["metric", "eval_metric"])
def test_the_best_checkpoint_is_that_of_the_metrics_direction(make_model, rows, tmp_path, direction, name):
    config = GLoraConfig(target_modules=["query"], task_type="SEQ_CLS")
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best |= {"load_best_model_at_end": True, "metric_for_best_model": name}
    args = training_arguments(settings(**best), tmp_path, 0)
    scoring = RowMetric(lambda logits, labels: logits.argmax(-1) == labels, direction=direction)
    trainer = train(get_peft_model(make_model("bert"), config), scoring, rows, rows, args)
    assert trainer.args.greater_is_better is (direction == "maximize")
    assert args.greater_is_better is True  # the caller's own arguments stay


def test_a_training_that_goes_on_in_another_folder_still_knows_its_best_checkpoint(make_model, rows, tmp_path):
    model = get_peft_model(make_model("bert"), GLoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    best |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 3.0}
    scoring = RowMetric(lambda logits, labels: logits.argmax(-1) == labels)
    first = train(model, scoring, rows, rows, training_arguments(settings(**best), tmp_path / "first", 0))
    (tmp_path / "first").rename(tmp_path / "moved")
    args = training_arguments(settings(**best), tmp_path / "moved", 0)
    again = train(model, scoring, rows, rows, args, resume=True)
    known = Path(first.state.best_model_checkpoint).name
    assert known != "checkpoint-4"
    assert again.state.best_model_checkpoint == str(tmp_path / "moved" / known)


def test_an_evaluation_computes_hardly_any_padding(make_model, tmp_path):
    ids = [[5] * length for length in (2, 9, 2, 9)]
    mixed = Dataset.from_dict({"input_ids": ids, "attention_mask": ids, "labels": [0, 1, 2, 0]})
    model = get_peft_model(make_model("bert"), GLoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    shapes = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda module, given: shapes.append(tuple(given[0].shape)) if not module.training else None
    )
    args = training_arguments(settings(eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=2), tmp_path, 0)
    collator = DataCollatorWithPadding(BertTokenizerFast(vocab={"[PAD]": 0, "[UNK]": 1}))
    scoring = RowMetric(lambda logits, labels: logits.argmax(-1) == labels, collator)
    train(model, scoring, mixed, mixed, args)
    assert shapes == [(2, 2), (2, 9)]


def test_a_model_with_nothing_to_train_is_left_as_it_is(make_model, rows, tmp_path):
    model = make_model("bert").requires_grad_(False)
    args = training_arguments(settings(), tmp_path, 0)
    assert train(model, RowMetric(lambda logits, labels: labels), rows, rows, args) is None


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"max_steps": 7}, 7),
        ({"max_steps": -1, "num_train_epochs": 3}, 18),
        ({"max_steps": -1, "num_train_epochs": 3, "dataloader_drop_last": True}, 15),
        ({"max_steps": -1, "num_train_epochs": 3, "gradient_accumulation_steps": 4}, 6),
        ({"max_steps": -1, "num_train_epochs": 0.7}, 5),
    ],
)
def test_the_steps_of_a_training_are_known_before_it(tmp_path, more, expected):
    assert steps_for(training_arguments(settings(**more), tmp_path, 0), 11) == expected


def test_a_broken_epoch_has_as_many_steps_as_the_trainer_makes(make_model, rows, tmp_path):
    model = get_peft_model(make_model("bert"), GLoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    args = training_arguments(settings(max_steps=-1, num_train_epochs=1.7, logging_steps=1), tmp_path, 0)
    trainer = train(model, RowMetric(lambda logits, labels: labels), rows, rows, args)
    assert trainer.state.global_step == total_steps(trainer) == steps_for(args, len(rows)) == 4


def test_a_process_with_several_devices_has_fewer_steps(tmp_path, monkeypatch):
    args = training_arguments(settings(max_steps=-1, num_train_epochs=3), tmp_path, 0)
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    assert steps_for(args, 11) == 9


@pytest.mark.parametrize(("drop", "expected"), [(False, 9), (True, 6)])
def test_processes_that_train_together_have_fewer_steps(tmp_path, drop, expected):
    args = training_arguments(settings(max_steps=-1, num_train_epochs=3, dataloader_drop_last=drop), tmp_path, 0)
    assert steps_for(args, 11, processes=2) == expected


def test_another_number_of_processes_does_not_go_on(tmp_path):
    folder = tmp_path / "checkpoints"
    _note_processes(folder, 2, None, writes=False)
    assert not folder.exists()
    _note_processes(folder, 2, None, writes=True)
    _note_processes(folder, 2, "checkpoint-4", writes=True)
    with pytest.raises(UserError, match="processes: got 1; allowed: 2, which have trained up to checkpoint-4"):
        _note_processes(folder, 1, "checkpoint-4", writes=True)
    _note_processes(folder, 1, None, writes=True)  # nothing to go on from
    _note_processes(folder, 1, "checkpoint-4", writes=True)


def test_several_devices_of_one_process_are_noted_as_processes_are(make_model, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    monkeypatch.setattr(loop, "_go", lambda *args: None)
    trainer = SimpleNamespace(is_world_process_zero=lambda: True, remove_callback=lambda callback: None)
    args, scoring = training_arguments(settings(), tmp_path, 0), RowMetric(lambda logits, labels: labels)
    train(make_model("bert"), scoring, rows, rows, args, resume=True, trainer_cls=lambda **options: trainer)
    assert (tmp_path / loop.PROCESSES).read_text() == "2"


def test_a_compiled_training_starts_anew_and_torch_does_not_warn_of_its_limit(monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(logging.getLogger("torch._dynamo"), "level", logging.WARNING)
    resets = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    trained = []
    for compiles in (False, True):
        args, together = SimpleNamespace(torch_compile=compiles), SimpleNamespace(wait_for_everyone=lambda: None)
        _go(SimpleNamespace(args=args, accelerator=together, train=lambda **now: trained.append(now)), None)
        assert len(resets) == compiles
    assert not logging.getLogger("torch._dynamo.convert_frame").isEnabledFor(logging.WARNING)
    assert trained == [{"resume_from_checkpoint": None}] * 2
