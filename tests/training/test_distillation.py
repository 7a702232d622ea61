"""Learning from soft labels beside the labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, load_from_disk
from peft import get_peft_model
from transformers import DataCollatorWithPadding, TrainingArguments

from glora_search import GLoraConfig
from glora_search.errors import UserError
from glora_search.scoring import IGNORED
from glora_search.training.distillation import (
    SOFT_CLASSES,
    SOFT_LABELS,
    DistillationTrainer,
    SoftCollator,
    with_soft_labels,
    with_unlabelled,
)

SOFT = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])


@pytest.fixture
def rows():
    ids = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]
    masks = [[1] * len(row) for row in ids]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": [0, 1, 2, 0]})


@pytest.fixture
def collator(tiny_model):
    from transformers import AutoTokenizer

    return DataCollatorWithPadding(AutoTokenizer.from_pretrained(tiny_model))


@pytest.fixture
def trainer(make_model, rows, collator, tmp_path):
    def make(train, **options):
        config = GLoraConfig(target_modules=["query"], config_A_B="lora", r=2, task_type="SEQ_CLS")
        model = get_peft_model(make_model("bert"), config)
        settings = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        args = TrainingArguments(str(tmp_path), per_device_train_batch_size=4, max_steps=1, **settings)
        return DistillationTrainer(
            model=model, args=args, train_dataset=train, eval_dataset=rows, data_collator=collator, **options
        )

    return make


def reference(model, batch, share):
    """The loss, written out in float64."""
    logits = model(**batch).logits.double()
    loss = F.cross_entropy(logits, batch["labels"])
    soft = SOFT.double()
    divergence = (soft * (torch.where(soft > 0, soft, 1.0).log() - F.log_softmax(logits, -1))).sum(-1).mean()
    return (1 - share) * loss + share * divergence


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_that_of_the_labels_and_of_the_teacher(trainer, rows, collator, share):
    made = trainer(with_soft_labels(rows, SOFT), teacher_share=share)
    model = without_dropout(made.model)
    batch = made.data_collator([made.train_dataset[row] for row in range(4)])
    plain = dict(collator([rows[row] for row in range(4)]))
    found = made.compute_loss(model, dict(batch))
    torch.testing.assert_close(found.double(), reference(model, plain, share), rtol=1e-5, atol=1e-6)


def test_the_models_own_loss_stays_its_own(trainer, rows, collator, monkeypatch):
    """Such as one with a weight for each class."""
    made = trainer(with_soft_labels(rows, SOFT), teacher_share=0.0)
    weight = torch.tensor([1.0, 5.0, 0.1])
    base = made.model.get_base_model()
    forward = type(base).forward

    def weighted(self, labels=None, **inputs):
        output = forward(self, **inputs)
        output["loss"] = F.cross_entropy(output.logits, labels, weight)
        return output

    monkeypatch.setattr(type(base), "forward", weighted)
    batch = collator(list(rows))
    loss = made.compute_loss(without_dropout(made.model), made.data_collator(list(made.train_dataset)))
    torch.testing.assert_close(loss, F.cross_entropy(made.model.eval()(**batch).logits, batch["labels"], weight))


def test_an_unlabelled_row_learns_from_the_teacher_alone(trainer, rows, collator):
    hidden = rows.remove_columns("labels").add_column("labels", [0, IGNORED, IGNORED, 0])
    made = trainer(with_soft_labels(hidden, SOFT), teacher_share=0.3)
    model = made.model.train()
    batch = dict(made.data_collator([made.train_dataset[row] for row in range(4)]))
    plain = {name: value for name, value in batch.items() if name not in ("labels", "soft_labels")}
    torch.manual_seed(0)
    own = F.log_softmax(model(**plain).logits.double(), -1)
    soft = SOFT.double()
    divergence = (soft * (torch.where(soft > 0, soft, 1.0).log() - own)).sum(-1)
    share = torch.tensor([0.3, 1.0, 1.0, 0.3], dtype=torch.float64)
    wanted = ((1 - share) * -own[torch.arange(4), [0, 0, 0, 0]] + share * divergence).mean()
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(made.compute_loss(model, batch).double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_batch_of_unlabelled_rows_alone_has_a_finite_loss(trainer, rows):
    hidden = rows.remove_columns("labels").add_column("labels", [IGNORED] * 4)
    made = trainer(with_soft_labels(hidden, SOFT))
    loss = made.compute_loss(
        without_dropout(made.model), made.data_collator([made.train_dataset[row] for row in range(4)])
    )
    assert torch.isfinite(loss)
    assert loss > 0


def test_labelled_rows_are_repeated_to_be_as_many_as_the_unlabelled_ones(rows):
    few = with_soft_labels(rows.select([0]), SOFT[:1])
    hidden = rows.remove_columns("labels").add_column("labels", [IGNORED] * 4)
    mixed = with_unlabelled(few, with_soft_labels(hidden, SOFT))
    assert list(mixed["labels"]) == [0] * 4 + [IGNORED] * 4
    assert len(with_unlabelled(with_soft_labels(rows, SOFT), with_soft_labels(hidden, SOFT).select([0]))) == 5


def test_rows_without_soft_labels_have_the_plain_loss_and_so_has_an_evaluation(trainer, rows, collator):
    made = trainer(with_soft_labels(rows, SOFT))
    model = made.model.eval()
    plain = dict(collator([rows[row] for row in range(4)]))
    expected = F.cross_entropy(model(**plain).logits, plain["labels"])
    torch.testing.assert_close(made.compute_loss(model, dict(plain)), expected)
    batch = made.data_collator([made.train_dataset[row] for row in range(4)])
    torch.testing.assert_close(made.compute_loss(model, batch), expected)
    assert made.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_it_trains(trainer, rows):
    made = trainer(with_soft_labels(rows, SOFT))
    before = {name: value.clone() for name, value in made.model.named_parameters() if value.requires_grad}
    made.train()
    assert any(not torch.equal(before[name], value) for name, value in made.model.named_parameters() if name in before)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(trainer, rows, share):
    with pytest.raises(UserError, match="teacher_share"):
        trainer(rows, teacher_share=share)


def test_a_batch_keeps_its_rows_as_they_are(rows, collator):
    given = [with_soft_labels(rows, SOFT)[row] for row in range(2)]
    batch = SoftCollator(collator)(given)
    assert batch["soft_labels"].shape == (2, 3)
    assert "soft_labels" in given[0]


def test_soft_labels_of_tokens_take_four_bytes_a_number_and_are_read_as_arrays(rows, tmp_path):
    soft = [torch.rand(items, 3) for items in (2, 0, 1, 4)]
    classes = [torch.randint(0, 99, (items, 3)) for items in (2, 0, 1, 4)]
    made = with_soft_labels(rows, soft, classes)
    assert made.features[SOFT_LABELS].feature.dtype == "float32"
    assert made.features[SOFT_CLASSES].feature.dtype == "int32"
    with_unlabelled(made, made.select([3, 2])).save_to_disk(str(tmp_path / "rows"))
    kept = load_from_disk(str(tmp_path / "rows"))
    for number, source in enumerate([0, 1, 2, 3, 3, 2]):
        row = kept[number]
        assert isinstance(row[SOFT_LABELS], np.ndarray)
        assert isinstance(row[SOFT_CLASSES], np.ndarray)
        assert row[SOFT_LABELS].tolist() == soft[source].flatten().tolist()
        assert row[SOFT_CLASSES].tolist() == classes[source].flatten().tolist()
        assert {name: row[name] for name in rows.column_names} == rows[source]


def test_rows_keep_the_format_that_a_collator_may_need(rows):
    def stack(batch):
        return {name: torch.stack([row[name] for row in batch]) for name in batch[0]}

    some = rows.select([0]).with_format("torch")
    made = with_soft_labels(some, SOFT[:1])
    assert (made.format["type"], made.column_names) == ("torch", [*some.column_names, SOFT_LABELS])
    batch = SoftCollator(stack)([made[0]])
    torch.testing.assert_close(batch.pop(SOFT_LABELS), SOFT[:1])
    torch.testing.assert_close(batch, stack([some[0]]))


def test_a_batch_pads_the_soft_labels_of_rows_with_fewer_tokens(rows, collator):
    soft = [torch.rand(items, 3) for items in (2, 0, 1, 4)]
    classes = [torch.randint(1, 99, (items, 3)) for items in (2, 0, 1, 4)]
    batch = SoftCollator(collator)([*with_soft_labels(rows, soft, classes)])
    assert batch[SOFT_CLASSES].dtype == torch.long
    for number in range(4):
        size = soft[number].numel()
        torch.testing.assert_close(batch[SOFT_LABELS][number, :size], soft[number].flatten())
        assert batch[SOFT_CLASSES][number, :size].tolist() == classes[number].flatten().tolist()
        assert not batch[SOFT_LABELS][number, size:].any()
