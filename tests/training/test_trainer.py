"""Learning rates by kind of path."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from glora_search.errors import UserError
from glora_search.supernet import SupernetConfig
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
