"""A few training steps of a candidate before it is scored."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model, set_peft_model_state_dict
from transformers import DataCollatorWithPadding, TrainingArguments

from glora_search import PathTrainer, SupernetConfig, write_report
from glora_search.adapters.load import load_adapter
from glora_search.errors import UserError
from glora_search.recipe.schema import Recipe
from glora_search.run.runner import Run
from glora_search.scoring import RowMetric, evaluate
from glora_search.search import Calibration, SubnetEvaluator, calibration_args

pytestmark = pytest.mark.slow


def accuracy(logits, labels):
    return logits.argmax(-1) == labels


def rows(count, seed):
    """The first token tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size=count)
    ids = [[5 + int(label), *rng.integers(10, 50, size=rng.integers(2, 8)).tolist()] for label in labels]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(r) for r in ids], "labels": labels})


@pytest.fixture
def collator(tiny_model):
    from transformers import AutoTokenizer

    return DataCollatorWithPadding(AutoTokenizer.from_pretrained(tiny_model))


@pytest.fixture
def parts(make_model, bind, randomize, collator, tmp_path):
    """``parts(**training)``: a supernet, its calibration and the evaluator with it."""

    def make(**training):
        config = SupernetConfig(space=bind("glora-ranks"), task_type="SEQ_CLS")
        supernet = randomize(get_peft_model(make_model("bert"), config))
        settings = {"learning_rate": 2e-2, "per_device_train_batch_size": 8, "use_cpu": True, "report_to": "none"}
        args = TrainingArguments(str(tmp_path / "none"), **{**settings, "save_strategy": "epoch", **training})
        calibration = Calibration(supernet, rows(64, 0), calibration_args(args, 10), data_collator=collator)
        evaluator = SubnetEvaluator(supernet, rows(40, 1), RowMetric(accuracy, collator), 16, calibration=calibration)
        return supernet, calibration, evaluator

    return make


def genomes(supernet, count=3):
    return [supernet.space.sample(np.random.default_rng(seed)) for seed in range(count)]


def test_a_subnet_scores_as_the_adapter_with_its_calibrated_weights_does(parts, make_model, collator):
    supernet, calibration, evaluator = parts()
    genome = genomes(supernet)[0]
    with calibration(genome):
        config, weights = supernet.subnet_config(genome), supernet.subnet_state_dict(genome)
    adapter = get_peft_model(make_model("bert"), config)
    set_peft_model_state_dict(adapter, weights)
    alone, found = evaluate(adapter, evaluator.batches, RowMetric(accuracy, collator)), evaluator(genome)
    assert found.metric == alone.metric
    assert found.loss == pytest.approx(alone.loss, rel=1e-5)


def test_it_learns_from_the_train_rows(parts):
    supernet, _, evaluator = parts()
    genome = genomes(supernet)[0]
    inherited = SubnetEvaluator(supernet, evaluator._dataset, evaluator.scoring)(genome)
    assert evaluator(genome).loss < inherited.loss


def test_the_supernet_is_the_same_bit_for_bit_afterwards(parts):
    supernet, calibration, evaluator = parts()
    before = copy.deepcopy(supernet.state_dict())
    evaluator(genomes(supernet)[0])
    with pytest.raises(KeyError), calibration(genomes(supernet)[1]):
        raise KeyError("the block fails")
    next(evaluator.legs(genomes(supernet)[2]))
    after = supernet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in supernet.parameters())


def test_only_the_subnet_and_the_head_are_trained(parts):
    supernet, calibration, _ = parts()
    smallest = supernet.space.smallest
    before = {name: value.detach().clone() for name, value in supernet.named_parameters()}
    with calibration(smallest):
        changed = {name for name, value in supernet.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert all("modules_to_save" in name for name in changed)


def test_a_subnet_without_anything_to_train_scores_what_it_inherits(make_model, bind, randomize, tmp_path):
    config = SupernetConfig(space=bind("glora-ranks", "llama"), task_type="CAUSAL_LM")
    supernet = randomize(get_peft_model(make_model("llama"), config))
    ids = np.random.default_rng(0).integers(5, 20, size=(16, 6))
    dataset = Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})
    args = TrainingArguments(str(tmp_path / "none"), use_cpu=True, report_to="none")
    calibration = Calibration(supernet, dataset, calibration_args(args, 2))

    def changed(genome):
        before = [value.detach().clone() for value in supernet.parameters()]
        with calibration(genome):
            return not all(torch.equal(*pair) for pair in zip(supernet.parameters(), before, strict=True))

    assert supernet.space.params(supernet.space.smallest) == 0
    assert not changed(supernet.space.smallest)
    assert changed(supernet.space.largest)


def test_a_score_depends_on_nothing_but_the_genome_and_draws_go_on(parts):
    supernet, _, evaluator = parts()
    first, second, _ = genomes(supernet)
    score = evaluator(first)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.random(), float(torch.rand(1))
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    evaluator(second)
    assert (random.random(), np.random.random(), float(torch.rand(1))) == expected
    assert evaluator(first) == score


def test_the_last_leg_is_the_whole_evaluation(parts):
    supernet, _, evaluator = parts()
    genome = genomes(supernet)[0]
    legs, whole = list(evaluator.legs(genome)), evaluator(genome)
    assert legs[-1].metric == whole.metric
    assert legs[-1].loss == pytest.approx(whole.loss, rel=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_score_is_the_same_wherever_it_stands(parts, bf16):
    supernet, _, evaluator = parts(bf16=bf16)
    first, second, _ = genomes(supernet)
    scores = [evaluator(genome).loss for genome in (first, second, first, first)]
    assert scores[0] == scores[2] == scores[3]
    assert scores[0] != scores[1]


def test_mixed_precision_is_that_of_the_arguments(parts):
    genome = genomes(parts()[0])[0]
    assert parts()[2](genome).loss != parts(bf16=True)[2](genome).loss


@pytest.mark.parametrize("training", [True, False])
def test_model_and_trainer_leave_each_other_alone(parts, monkeypatch, training):
    supernet, calibration, evaluator = parts(bf16=True, neftune_noise_alpha=5)
    first, second, _ = genomes(supernet)
    attributes, hooks = set(vars(supernet)), len(supernet.get_input_embeddings()._forward_hooks)
    expected = evaluator(first)
    supernet.train(training)
    with calibration(first):
        assert supernet.training is training
    with monkeypatch.context() as patch:
        patch.setattr(PathTrainer, "training_step", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            evaluator(second)
    assert supernet.training is training
    assert set(vars(supernet)) == attributes
    assert len(supernet.get_input_embeddings()._forward_hooks) == hooks
    assert evaluator(first) == expected


def out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("not enough memory")


def test_buffers_stay_as_they_are(parts):
    supernet, calibration, _ = parts()
    norm = torch.nn.BatchNorm1d(3)
    supernet.base_model.model.norm = norm
    supernet.base_model.model.classifier.register_forward_hook(lambda module, inputs, output: norm(output))
    with calibration(genomes(supernet)[0]):
        assert norm.num_batches_tracked == 0
        assert torch.equal(norm.running_mean, torch.zeros(3))


def test_the_arguments_are_the_supernets_for_a_few_steps_and_nothing_is_written(parts, tmp_path):
    whole = {"eval_strategy": "epoch", "load_best_model_at_end": True, "eval_on_start": True}
    rows = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2}
    supernet, calibration, evaluator = parts(weight_decay=0.1, **whole, **rows)
    args = calibration.args
    assert (args.max_steps, args.learning_rate, args.weight_decay) == (10, 1e-2, 0.1)
    assert args.dataloader_num_workers == 0
    evaluator(genomes(supernet)[0])
    assert not list((tmp_path / "none").glob("*"))


def test_a_supernet_loaded_for_inference_is_refused(parts, collator):
    supernet, calibration, _ = parts()
    supernet.requires_grad_(False)
    with pytest.raises(UserError, match="is_trainable"):
        Calibration(supernet, rows(8, 0), calibration.args, data_collator=collator)


def test_even_one_step_trains(parts, collator):
    supernet, calibration, evaluator = parts()
    one = Calibration(supernet, calibration.dataset, calibration_args(calibration.args, 1), data_collator=collator)
    genome = genomes(supernet)[0]
    plain = SubnetEvaluator(supernet, evaluator._dataset, evaluator.scoring)
    inherited = plain(genome).loss
    with one(genome):
        assert plain(genome).loss != inherited


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "40"])
def test_a_wrong_number_of_steps_is_refused(parts, steps):
    _, calibration, _ = parts()
    with pytest.raises(UserError, match="calibration_steps"):
        calibration_args(calibration.args, steps)


def test_what_a_run_exports_is_what_it_scored(tiny_recipe, tmp_path):
    search = {**tiny_recipe["search"], "calibration_steps": 4, "trials": 5}
    run = Run.create(Recipe.model_validate({**tiny_recipe, "search": search}), tmp_path / "run")
    metrics = run.all_stages()
    assert not list(run.folder.rglob("checkpoints"))
    model = load_adapter(run.context.task.model(), run.folder / "best")
    scored = evaluate(model, run.context.validation, run.context.task)
    assert scored.metric == metrics["search"]["best"]["validation"]
    assert scored.loss == pytest.approx(run.view.result("search")["best"]["validation_loss"], rel=1e-5)
    assert metrics["search"]["calibration_steps"] == 4
    assert "inherited weights and 4 steps" in write_report(run.folder).read_text()
