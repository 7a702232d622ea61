"""A supernet's subnets teach every kind of task: what they say is their mean, and a student learns from it."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F
from transformers import TrainingArguments

from glora_search import Recipe, Run, SearchSpace, SupernetConfig
from glora_search.errors import UserError
from glora_search.finals import lessons
from glora_search.scoring import IGNORED
from glora_search.supernet.teacher import Teacher, draw_members
from glora_search.training.answers import TOP
from glora_search.training.distillation import SOFT_CLASSES, SOFT_LABELS, DistillationTrainer


def classes(make):
    return make.rows()


def decisions(make):
    return [{**row, "label": [row["label"], *["news"][: n % 2]]} for n, row in enumerate(make.rows())]


def numbers(make):
    return [{**row, "label": n / 4} for n, row in enumerate(make.rows())]


def tags(make):
    kinds = [(row["text"].split(), row["label"]) for row in make.rows()]
    return [{"text": w, "label": ["O" if word in make.filler else kind for word in w]} for w, kind in kinds]


def answers(make):
    return [{"text": row["text"], "output": f"the {row['label']} team"} for row in make.rows()]


CASES = {
    "class": ("bert", "text-classification", classes, {}),
    "decisions": ("bert", "multi-label", decisions, {}),
    "numbers": ("bert", "text-regression", numbers, {}),
    "tokens": ("distilbert", "token-classification", tags, {}),
    "next tokens": ("llama", "causal-lm", answers, {"response_column": "output"}),
    "tokens of a decoder": ("t5", "seq2seq-lm", answers, {"response_column": "output"}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def taught(request, task, make):
    """A task, its supernet with large weights, and the teacher."""
    architecture, kind, rows, data = request.param
    made = task(architecture, kind, rows(make), data)
    base = made.model()
    space = SearchSpace.load("glora-ranks").bind(base, made.modules_to_save)
    options = {"task_type": made.task_type, "modules_to_save": made.modules_to_save or None}
    supernet = get_peft_model(base, SupernetConfig(space=space, **options))
    torch.manual_seed(0)
    for _name, parameter in supernet.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return made, supernet, Teacher(supernet, draw_members(space, count=3), made, batch_size=7)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def said(task, supernet, teacher, row):
    """What the members say of a row, one by one: the mean for each item; the items' labels; written out in float64."""
    batch = dict(task.collator([row]))
    found = []
    for genome in teacher.members:
        with torch.no_grad(), supernet.scored(genome):
            found.append(supernet.eval()(**batch).logits[0].double())
    logits, labels = torch.stack(found), batch["labels"][0]
    if task.task_type == "CAUSAL_LM":
        logits, labels = logits[:, :-1], labels[1:]
    if labels.is_floating_point():
        return (logits if labels.ndim == 0 else logits.sigmoid()).mean(0)[None], labels[None]
    if labels.ndim == 0:
        return logits.softmax(-1).mean(0)[None], labels[None]
    counts = labels != IGNORED
    return logits[:, counts].softmax(-1).mean(0), labels[counts]


def test_soft_labels_are_the_members_mean_in_the_rows_order(taught):
    task, supernet, teacher = taught
    rows = teacher.teach(task.train)
    assert len(rows) == len(task.train)
    for plain, row in zip(task.train, rows, strict=True):
        wanted, _ = said(task, supernet, teacher, plain)
        found = torch.tensor(row[SOFT_LABELS], dtype=torch.double)
        if SOFT_CLASSES in row:
            best = wanted.topk(min(TOP, wanted.shape[-1]))
            wanted = wanted.gather(-1, torch.tensor(row[SOFT_CLASSES]).view(best.values.shape))
            torch.testing.assert_close(wanted, best.values, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found.reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-5)


def test_a_teacher_is_scored_as_a_model_is(taught):
    task, supernet, teacher = taught
    found = teacher.evaluate(task.validation)
    losses = []
    for row in task.validation:
        mean, labels = said(task, supernet, teacher, row)
        if not labels.is_floating_point():
            losses += (-mean.gather(-1, labels[:, None]).log()).flatten().tolist()
        elif labels.ndim == 1:
            losses.append(float((mean[:, 0] - labels).square()))
        else:
            losses.append(float(F.binary_cross_entropy(mean, labels.double())))
    assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    if task.metric == "perplexity":
        assert found.metric == pytest.approx(torch.tensor(found.loss).exp().item(), rel=1e-4)


def test_a_teacher_folds_all_of_its_subnets_or_none(taught, monkeypatch):
    task, supernet, teacher = taught
    fits = iter([True])
    monkeypatch.setattr(supernet.base_model, "folding_fits", lambda: next(fits))
    folds, scored = [], supernet.base_model.scored
    monkeypatch.setattr(supernet.base_model, "scored", lambda genome, fold: folds.append(fold) or scored(genome, fold))
    teacher.teach(task.train)
    assert len(folds) > len(teacher.members)
    assert all(folds)


def test_of_tokens_the_likeliest_classes_alone_leave_the_device(taught, monkeypatch):
    task, _, teacher = taught
    moved, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: moved.append(self.shape) or cpu(self))
    teacher.teach(task.train)
    assert moved
    if teacher.answers.by_token:
        assert max(shape[-1] for shape in moved) <= TOP


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_student_comes_nearer_to_its_teacher(taught, tmp_path, accumulation):
    task, _supernet, teacher = taught
    rows = teacher.teach(task.train)
    student = without_dropout(task.model())
    settings = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 30}
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        **settings,
    )
    trainer = DistillationTrainer(
        model=student, args=args, train_dataset=rows, data_collator=task.collator, teacher_share=1.0
    )

    def distance():
        with torch.no_grad():
            return float(trainer.compute_loss(student.train(), trainer.data_collator([*rows])))

    before = distance()
    trainer.train()
    assert 0 < distance() < 0.8 * before


def test_without_the_teachers_share_the_loss_is_the_plain_one(taught, tmp_path):
    task, _, teacher = taught
    model = without_dropout(task.model())
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    rows = teacher.teach(task.train)
    trainer = DistillationTrainer(model=model, args=args, train_dataset=rows, data_collator=task.collator)
    batch = trainer.data_collator([rows[number] for number in range(3)])
    plain = dict(task.collator([task.train[number] for number in range(3)]))
    with torch.no_grad():
        whole = trainer.compute_loss(model.train(), dict(batch))
        trainer.teacher_share = 0.0
        none = trainer.compute_loss(model, dict(batch))
        torch.testing.assert_close(none, model(**plain).loss, rtol=1e-5, atol=1e-6)
    assert whole != none


def test_soft_labels_of_other_tokens_than_those_of_the_batch_are_refused(taught, tmp_path):
    task, _, teacher = taught
    rows = teacher.teach(task.train)
    if not teacher.answers.by_token:
        return
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    trainer = DistillationTrainer(model=task.model(), args=args, train_dataset=rows, data_collator=task.collator)
    batch = trainer.data_collator([rows[number] for number in range(3)])
    batch[SOFT_LABELS], batch[SOFT_CLASSES] = batch[SOFT_LABELS][:, :-1], batch[SOFT_CLASSES][:, :-1]
    with pytest.raises(UserError, match="soft_labels: got"):
        trainer.compute_loss(trainer.model.train(), batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "poor"),
    [*((case, False) for case in ("next tokens", "tokens", "numbers", "decisions")), ("next tokens", True)],
)
def test_a_run_of_every_kind_ends_in_finals_with_a_teacher_and_where_it_is_poor_nobody_teaches_tokens(
    tiny, recipe, make, tmp_path, monkeypatch, case, poor
):
    monkeypatch.setattr(lessons.Lesson, "poor", lambda self, loss: poor)
    architecture, kind, rows, data = CASES[case]
    source = {"source": "json", "train": make.json(tmp_path / "rows.jsonl", rows(make)), **data}
    made = recipe(tiny(architecture), source, type=kind)
    settings = {"subnets": 1, "methods": ["lora"], "rates": [1], "teacher": 2}
    made["finals"] = {**settings, "training": made.pop("retrain")["training"]}
    made["baselines"] = []
    run = Run.create(Recipe.model_validate(made), tmp_path / "run")
    metrics = run.all_stages()
    done = run.view.result("finals")
    assert {"by", "members", "validation", "validation_loss", *(["taught"] if poor else [])} == set(done["teacher"])
    assert poor != any(row["name"].endswith("+ teacher") for row in done["finalists"])
    subnets = [row["name"] for row in done["finalists"] if row["name"].startswith("subnet")]
    assert subnets
    assert all(name.endswith("+ teacher") != poor for name in subnets)
    assert metrics["merged"]["max_abs_logit_difference"] < 1e-4
    again = run.do("refitted")
    assert again["rows"] == len(run.context.task.train) + len(run.context.task.validation)
    assert again["max_abs_logit_difference"] < 1e-4
