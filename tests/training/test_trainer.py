"""Learning rates by kind of path, and the loss of an evaluation."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments

from glora_search import RowMetric
from glora_search.errors import UserError
from glora_search.scoring import IGNORED, evaluate, length_sorted_batches
from glora_search.supernet import SupernetConfig, SupernetTrainer
from glora_search.training.distillation import SOFT_LABELS, DistillationTrainer
from glora_search.training.trainer import PathTrainer, path_and_kind
from glora_search.tuners.glora import GLoraConfig

GLORA = {"config_A_B": "lora", "config_C": "vector", "config_D_E": "constant", "target_modules": ["query", "value"]}


@pytest.fixture
def make_trainer(make_model, tmp_path):
    def make(config, lr_factors=None, **arguments):
        options = {"output_dir": str(tmp_path), "report_to": [], "disable_tqdm": True, "use_cpu": True}
        options |= {"save_strategy": "no", "learning_rate": 0.01, "logging_steps": 1, "warmup_steps": 0}
        ids = torch.randint(1, 50, (8, 6), generator=torch.Generator().manual_seed(0))
        rows = [{"input_ids": row, "labels": row.sum() % 3} for row in ids]
        model = get_peft_model(make_model("bert"), config)
        args = TrainingArguments(**{**options, **arguments})
        return PathTrainer(model=model, args=args, train_dataset=rows, lr_factors=lr_factors)

    return make


def rates(trainer):
    """Kind -> the learning rates of its parameters, and how many parameters are in the optimizer."""
    optimizer = trainer.create_optimizer()
    found, count = {}, 0
    names = {id(p): (name, p) for name, p in trainer.model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found.setdefault(path_and_kind(*names[id(parameter)])[1], set()).add(round(group["lr"], 6))
            count += 1
    return found, count


@pytest.mark.parametrize("config", ["glora", "separate", "nested", "lora"])
def test_every_trained_parameter_has_the_rate_of_its_kind(config, make_trainer, bind):
    made = {
        "glora": lambda: GLoraConfig(**GLORA, task_type="SEQ_CLS"),
        "lora": lambda: LoraConfig(target_modules=["query"], task_type="SEQ_CLS"),
    }.get(config, lambda: SupernetConfig(space=bind("glora-paper"), sharing=config, task_type="SEQ_CLS"))()
    trainer = make_trainer(made, {"vector": 5, "constant": 2, "head": 0.5})
    found, count = rates(trainer)
    assert count == sum(p.requires_grad for p in trainer.model.parameters())
    expected = {"lora": 0.01, "vector": 0.05, "constant": 0.02, "head": 0.005}
    absent = {"lora": {"vector", "constant"}, "nested": {"constant"}}.get(config, set())
    assert {kind: next(iter(values)) if len(values) == 1 else values for kind, values in found.items()} == {
        kind: rate for kind, rate in expected.items() if kind not in absent
    }


@pytest.mark.parametrize("adapter", [True, False])
def test_the_rate_of_a_kind_of_one_path_comes_before_that_of_its_kind(adapter, make_trainer, bind):
    config = {"task_type": "SEQ_CLS", "target_modules": ["query"], "config_A": "vector", "config_B": "vector"}
    made = GLoraConfig(**config) if adapter else SupernetConfig(space=bind("glora-paper"), task_type="SEQ_CLS")
    trainer = make_trainer(made, {"vector": 5, "B.vector": 0.1})
    names = {id(p): (name, p) for name, p in trainer.model.named_parameters()}
    found = {
        (*path_and_kind(*names[id(parameter)]), round(group["lr"], 6))
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }
    assert {("A", "vector", 0.05), ("B", "vector", 0.001), ("", "head", 0.01)} <= found
    assert len(found) == len({(path, kind) for path, kind, _ in found})


def test_the_schedule_keeps_the_factors(make_trainer):
    config = GLoraConfig(**GLORA, task_type="SEQ_CLS")
    trainer = make_trainer(config, {"head": 4}, max_steps=4, lr_scheduler_type="linear")
    trainer.create_optimizer_and_scheduler(4)
    for step in range(4):
        values = sorted({group["lr"] for group in trainer.optimizer.param_groups})
        assert values == pytest.approx([0.01 * (1 - step / 4), 0.04 * (1 - step / 4)])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


def test_without_factors_the_optimizer_is_the_trainers_own(make_trainer):
    trainer = make_trainer(GLoraConfig(**GLORA, task_type="SEQ_CLS"))
    assert [group["lr"] for group in trainer.create_optimizer().param_groups] == [0.01, 0.01]


def test_a_classifiers_loss_does_not_grow_with_gradient_accumulation(make_trainer):
    losses = []
    for size, accumulation in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        trainer = make_trainer(GLoraConfig(**GLORA, task_type="SEQ_CLS"), max_steps=1, **arguments)
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize(
    ("factors", "words"),
    [({"loar": 2}, ["lr_factors", "loar", "vector"]), ("atuo", ["lr_factors", "atuo", "auto"]),
     ({"lora": 0}, ["lr_factors.lora", "0"]), ({"head": "2"}, ["lr_factors.head", "'2'"]), ({"head": True}, ["True"])],
)  # fmt: skip
def test_a_wrong_factor_is_refused(factors, words, make_trainer):
    with pytest.raises(UserError) as error:
        make_trainer(GLoraConfig(**GLORA, task_type="SEQ_CLS"), factors)
    for word in words:
        assert word in str(error.value)


LABELLED = {"tokens": (1, 9, 2, 6, 4), "classes": (1, 1, 0, 1, 1)}
"""How many labels of each of five rows count."""


@pytest.fixture
def evaluated(make_model, bind, tmp_path):
    """``evaluated(kind, trainer class)``: a trainer of five rows, of which each has other counts of labels."""

    def make(kind, trainer_cls=PathTrainer, **arguments):
        generator, tokens = torch.Generator().manual_seed(0), kind == "tokens"
        rows = []
        for number, count in enumerate(LABELLED[kind]):
            ids = torch.randint(1, 50, (10,), generator=generator)
            labels = torch.where(torch.arange(10) < 10 - count, IGNORED, ids) if tokens else number % 3
            rows.append({"input_ids": ids, "labels": labels if tokens or count else IGNORED})
        base = make_model("llama" if tokens else "bert")
        if trainer_cls is SupernetTrainer:
            config = SupernetConfig(space=bind("glora-paper", "llama" if tokens else "bert"))
        else:
            config = LoraConfig(target_modules=["q_proj" if tokens else "query"])
        options = {"use_cpu": True, "report_to": [], "per_device_eval_batch_size": 2}
        args = TrainingArguments(str(tmp_path), **{**options, **arguments})
        trainer = trainer_cls(model=get_peft_model(base, config), args=args, train_dataset=rows, eval_dataset=rows)
        if trainer_cls is SupernetTrainer:
            trainer.probes = {"largest": trainer._supernet.space.largest}
            trainer._supernet.activate(trainer.probes["largest"])
        return trainer, Rows(rows)

    return make


class Rows(list):
    """Rows as a data set without texts has them: they stay in their order."""

    column_names = ()


@pytest.mark.parametrize("kind", ["tokens", "classes"])
@pytest.mark.parametrize("trainer_cls", [PathTrainer, DistillationTrainer, SupernetTrainer])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_an_evaluation_is_that_of_the_search_the_mean_over_all_labels_that_count(
    evaluated, kind, trainer_cls, smoothing
):
    trainer, rows = evaluated(kind, trainer_cls, label_smoothing_factor=smoothing)
    scoring = RowMetric(lambda logits, labels: torch.zeros(len(labels)))
    expected = evaluate(trainer.model, length_sorted_batches(rows, scoring.collator, 2), scoring).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.predict(rows).metrics["test_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("hidden", [True, False])
def test_an_evaluation_has_no_finite_loss_where_a_batch_has_none(evaluated, hidden):
    trainer, _ = evaluated("tokens", logging_nan_inf_filter=hidden)
    last = trainer.eval_dataset[-1]["input_ids"]

    def broken(module, args, kwargs, outputs):
        if torch.equal(kwargs["input_ids"][-1], last):
            outputs["loss"] = outputs["loss"] * torch.nan

    trainer.model.get_base_model().register_forward_hook(broken, with_kwargs=True)
    assert math.isnan(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize("trainer_cls", [PathTrainer, DistillationTrainer])
def test_batch_statistics_stay_those_of_the_base_model(tmp_path, trainer_cls):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.score = nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x, labels=None):
            logits = self.score(self.norm(x))
            loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
            return {**loss, "logits": logits}

    generator = torch.Generator().manual_seed(0)
    rows = [{"x": 5 + torch.randn(4, generator=generator), "labels": n % 2} for n in range(16)]
    if trainer_cls is DistillationTrainer:
        rows = [{**row, SOFT_LABELS: [0.5, 0.5]} for row in rows]
    model, args = Model(), TrainingArguments(str(tmp_path), max_steps=4, use_cpu=True, report_to=[], learning_rate=1e-2)
    before = {name: value.clone() for name, value in model.named_buffers()}
    weight = model.norm.weight.detach().clone()
    trainer_cls(model=model, args=args, train_dataset=rows).train()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert not torch.equal(model.norm.weight, weight)


def test_factors_beside_an_optimizer_of_ones_own_are_refused(make_trainer):
    trainer = make_trainer(GLoraConfig(**GLORA, task_type="SEQ_CLS"))
    own = (torch.optim.SGD(trainer.model.parameters(), lr=0.1), None)
    options = {"model": trainer.model, "args": trainer.args, "optimizers": own}
    assert PathTrainer(**options).create_optimizer() is own[0]
    with pytest.raises(
        UserError, match=r"lr_factors: got \{'head': 2.0\}; allowed: None with an optimizer of your own"
    ):
        PathTrainer(**options, lr_factors={"head": 2})
