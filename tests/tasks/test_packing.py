"""Packing: rows that share a sequence are learned as if each were alone."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import AutoModelForCausalLM, TrainingArguments

from glora_search import Recipe, Run, SearchSpace, SupernetConfig
from glora_search.errors import UserError
from glora_search.files.text import write_json
from glora_search.finals.finalists import TAUGHT
from glora_search.run.plan import plan
from glora_search.supernet.teacher import Teacher, draw_members
from glora_search.tasks.packing import best_fit, leak
from glora_search.training.distillation import SOFT_CLASSES, SOFT_LABELS, DistillationTrainer

ATTENTION = [("llama", "eager"), ("llama", "sdpa"), ("gpt2", "eager"), ("gpt2", "sdpa")]
ROUNDING = {"rtol": 1e-5, "atol": 1e-7}  # Llama's norms are computed in float32, also in a float64 model
LOOSE = {"rtol": 1e-3, "atol": 1e-5}


def answers(make, count=40):
    return [{"text": text, "answer": f"the {label} team"} for text, label in make.sentences(count)]


@pytest.fixture
def packing(task, make):
    """``packing(architecture, attention, packing=True)``: a task with prompts and answers."""

    def build(architecture="llama", attention="sdpa", **options):
        options = {"packing": True, "max_length": 48, "attn_implementation": attention, **options}
        return task(architecture, "causal-lm", answers(make), {"response_column": "answer"}, **options)

    return build


@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=80))
def test_every_row_is_in_one_sequence_and_none_is_over_full(lengths):
    packs = best_fit(lengths, 30)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    sizes = [sum(lengths[row] for row in pack) for pack in packs]
    assert max(sizes) <= 30
    assert sum(size <= 15 for size in sizes) <= 1  # two half empty ones would be one


def test_a_row_is_put_where_it_leaves_the_least_room():
    assert best_fit([3, 8, 6, 2, 4], 10) == [[1, 3], [2, 4], [0]]


def test_no_token_and_no_label_is_lost_and_only_train_is_packed(packing):
    made, plain = packing(), packing(packing=False)
    assert len(made.train) < len(made.train_rows) == len(plain.train)
    assert made.train_rows[:] == plain.train[:]
    assert made.validation[:] == plain.validation[:]
    rows = []
    for row in made.train:
        starts = [number for number, position in enumerate(row["position_ids"]) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True):
            assert row["position_ids"][start:end] == [*range(end - start)]
            assert row["labels"][start] == -100
            rows.append((tuple(row["input_ids"][start:end]), tuple(row["labels"][start:end])))
    wanted = [(tuple(row["input_ids"]), tuple(row["labels"])) for row in plain.train]
    assert sorted(rows) == sorted(wanted)
    assert f"{len(wanted)} rows of data.train are packed into {len(made.train)} sequences" in made.row_notes()
    assert made.best_constant(made.validation) == plain.best_constant(plain.validation)


def learned(model, task, rows, size):
    """The sum of the losses of all learned tokens, and its gradients."""
    model.zero_grad()
    total = 0.0
    for start in range(0, len(rows), size):
        batch = task.collator([rows[n] for n in range(start, min(start + size, len(rows)))])
        logits, labels = task.aligned(model(**batch).logits, batch["labels"])  # transformers' loss is in float32
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        loss.backward()
        total += loss.item()
    return total, {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(("architecture", "attention"), ATTENTION)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_loss_and_gradients_are_those_of_rows_by_themselves(packing, architecture, attention, checkpointed):
    task = packing(architecture, attention)
    model = task.model().double()
    assert model.config.use_cache  # a cache would hide from the mask which rows are apart
    assert model.config._attn_implementation == attention
    if checkpointed:
        model.train().gradient_checkpointing_enable()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
    assert any(row.count(0) > 1 for row in task.train["position_ids"])
    (ours, found), (theirs, wanted) = (learned(model, task, rows, 3) for rows in (task.train, task.train_rows))
    assert ours == pytest.approx(theirs, rel=1e-9)
    torch.testing.assert_close(found, wanted, **ROUNDING)


@pytest.mark.parametrize(("architecture", "attention"), ATTENTION)
def test_a_supernets_gradients_are_those_of_rows_by_themselves(packing, architecture, attention):
    task = packing(architecture, attention)
    base = task.model()
    space = SearchSpace.load("glora").bind(base)
    supernet = get_peft_model(base, SupernetConfig(space=space, task_type="CAUSAL_LM")).double().eval()
    for name, parameter in supernet.named_parameters():
        if ".supernet_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    rng = np.random.default_rng(0)
    for _ in range(2):
        supernet.activate(space.sample(rng))
        (ours, found), (theirs, wanted) = (learned(supernet, task, rows, 3) for rows in (task.train, task.train_rows))
        assert found
        assert ours == pytest.approx(theirs, rel=1e-9)
        torch.testing.assert_close(found, wanted, **ROUNDING)


def test_a_teacher_says_of_packed_rows_what_it_says_of_each(packing, tmp_path):
    task = packing()
    base = task.model()
    space = SearchSpace.load("glora").bind(base)
    supernet = get_peft_model(base, SupernetConfig(space=space, task_type="CAUSAL_LM"))
    for name, parameter in supernet.named_parameters():
        if ".supernet_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    teacher = Teacher(supernet, draw_members(space, count=2), task, batch_size=5)
    together, alone = teacher.teach(task.train), teacher.teach(task.train_rows)
    by_row = {(*row["input_ids"],): (torch.tensor(row[SOFT_LABELS]), torch.tensor(row[SOFT_CLASSES])) for row in alone}
    for row in together:
        starts = [number for number, position in enumerate(row["position_ids"]) if position == 0]
        ends = [*starts[1:], len(row["input_ids"])]
        rows = [by_row[(*row["input_ids"][start:end],)] for start, end in zip(starts, ends, strict=True)]
        torch.testing.assert_close(torch.tensor(row[SOFT_LABELS]), torch.cat([soft for soft, _ in rows]), **LOOSE)
        assert row[SOFT_CLASSES].tolist() == torch.cat([classes for _, classes in rows]).tolist()

    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, save_strategy="no")
    distances = []
    for rows in (together, alone):
        student = task.model()
        trainer = DistillationTrainer(model=student, args=args, train_dataset=rows, data_collator=task.collator)
        batch = trainer.data_collator([*rows])
        with torch.no_grad():
            distances.append(trainer.compute_loss(student.train(), batch).item())
    assert distances[0] == pytest.approx(distances[1], rel=1e-4)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-4), (torch.bfloat16, 0.06)])
def test_a_model_that_lets_packed_rows_see_each_other_is_refused(packing, monkeypatch, dtype, rounding):
    task = packing()
    model = task.model().to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            parameter.data *= 10  # a model that looks at other tokens, as one does that has learned something
    task.check_model(model)
    assert 0 < leak(model, [*task.train.select(range(2))], task.collator) < rounding
    apart = type(model).forward

    def together(self, *args, position_ids=None, **options):
        return apart(self, *args, **options)

    monkeypatch.setattr(type(model), "forward", together)
    refused = r"^task\.packing: got True; .*a LlamaForCausalLM with attn_implementation sdpa does not keep"
    with pytest.raises(UserError, match=refused):
        task.check_model(model)


def test_a_model_without_positions_is_refused(packing):
    task = packing()

    class Recurrent(type(task.model())):
        def forward(self, input_ids=None, **options):
            return super().forward(input_ids, **options)

    with pytest.raises(UserError, match=r"^task\.packing: .*a Recurrent takes no position_ids"):
        task.check_model(Recurrent(task.model().config).eval())


@pytest.mark.parametrize(
    ("architecture", "kind", "data"),
    [("t5", "seq2seq-lm", {"response_column": "answer"}), ("bert", "text-classification", {"label_column": "answer"})],
)
def test_other_tasks_do_not_pack(task, make, architecture, kind, data):
    with pytest.raises(UserError, match=rf"^task\.packing: got True; .*only causal-lm packs rows, not {kind}"):
        task(architecture, kind, answers(make), data, packing=True)


def test_a_run_trains_on_packed_rows_from_supernet_to_finals(tiny, recipe, make, tmp_path):
    source = {"source": "json", "train": make.json(tmp_path / "rows.jsonl", answers(make)), "response_column": "answer"}
    made = recipe(tiny("llama"), source, type="causal-lm", packing=True, max_length=48)
    settings = {"subnets": 1, "methods": ["lora"], "rates": [1], "teacher": 2}
    made["finals"] = {**settings, "training": made.pop("retrain")["training"]}
    made["baselines"] = []
    made["search"]["calibration_steps"] = 1
    planned = plan(Recipe.model_validate(made), tmp_path / "planned")
    run = Run.create(Recipe.model_validate(made), tmp_path / "run")
    metrics = run.all_stages()
    task = run.context.task
    assert planned.stages["train-supernet"].steps == -(-len(task.train) // 8)
    assert metrics["rows"]["train"] == len(task.train_rows) > len(task.train)
    assert any("rows of data.train are packed into" in note for note in metrics["notes"])
    assert any(row["name"].endswith("+ teacher") for row in run.view.result("finals")["finalists"])
    assert metrics["merged"]["max_abs_logit_difference"] < 1e-4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged").config.use_cache
    raced = run.view.result("finals")
    for taught in (True, False):  # whoever has won
        names = [row["name"] for row in raced["finalists"] if row["name"].startswith("LoRA")]
        winner = next(name for name in names if name.endswith(TAUGHT) == taught)
        write_json(run.folder / "finals" / "stage.json", {**raced, "winner": winner})
        shutil.rmtree(run.folder / "refitted", ignore_errors=True)
        assert run.do("refitted")["rows"] == len(task.train_rows) + len(task.validation)
