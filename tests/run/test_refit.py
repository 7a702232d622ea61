"""The winner of the finals, trained again on train and validation rows."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import signal

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from glora_search import Run
from glora_search.adapters.load import load_adapter
from glora_search.errors import UserError
from glora_search.files.text import read_json, write_json
from glora_search.finals import lessons
from glora_search.finals import refit as refitting
from glora_search.finals.contest import PEERS
from glora_search.finals.finalists import TAUGHT
from glora_search.run import finals
from glora_search.run import refit as stage
from glora_search.run.status import at_work, status
from glora_search.scoring import IGNORED, Evaluation, evaluate
from glora_search.supernet.trainer import SupernetTrainer
from glora_search.training.distillation import SOFT_LABELS, DistillationTrainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def refitted(raced, tmp_path_factory):
    """A run with a refit winner."""
    run = Run(shutil.copytree(raced[0].folder, tmp_path_factory.mktemp("refit") / "run"))
    run.do("refitted")
    return run


@pytest.fixture
def ended(raced, tmp_path):
    """A copy of a run that is done, but for the refit."""
    return Run(shutil.copytree(raced[0].folder, tmp_path / "run"))


@pytest.fixture
def searched_by_peers(ended, monkeypatch):
    """A run whose supernet was poor, so that finalists taught; one of those that they taught has won."""
    monkeypatch.setattr(lessons, "POOR_SUPERNET", 0.0)
    ended.forget("finals")
    ended.do("finals")
    winner_is(ended, taught=True)
    return ended


def winner_is(run, *, taught):
    """Let a LoRA have won, with a teacher or without one."""
    path = run.folder / "finals" / "stage.json"
    noted = read_json(path)
    names = [row["name"] for row in noted["finalists"] if row["name"].startswith("LoRA")]
    noted["winner"] = next(name for name in names if name.endswith(TAUGHT) == taught)
    write_json(path, noted)


def rows_trained_on(run, monkeypatch):
    """The rows, arguments and last step of the refit, which is not done."""
    seen = {}

    def spy(model, scoring, rows, validation, args, **options):
        seen.update(rows=rows, args=args, last=options["callbacks"][0].step)
        raise InterruptedError

    monkeypatch.setattr(refitting, "train", spy)
    with pytest.raises(InterruptedError):
        run.do("refitted")
    return seen


def test_the_winner_learns_from_the_validation_rows_too(raced, refitted):
    before, done, task = raced[0].view.result("finals"), refitted.view.result("refitted"), refitted.context.task
    assert done["winner"] == before["winner"]
    assert done["params"] == before["params"]
    assert done["rows"] == len(task.train) + len(task.validation)
    model = load_adapter(task.model(), refitted.folder / "refitted")
    assert evaluate(model, refitted.context.validation, task).loss < 1.1 * before["validation_loss"]
    card = (refitted.folder / "refitted" / "README.md").read_text()
    assert f"{done['rows']} rows, those for validation too" in card
    assert "validation accuracy" not in card
    assert not list((refitted.folder / "refitted").rglob("checkpoint-*"))


def test_the_merged_model_computes_what_the_adapter_does(refitted):
    folder = refitted.folder / "refitted"
    model = load_adapter(refitted.context.task.model(), folder).eval()
    merged = AutoModelForSequenceClassification.from_pretrained(folder / "merged").eval()
    batch = {name: value for name, value in refitted.context.validation[0].items() if name != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)


def test_what_the_run_has_found_and_tested_stays_as_it_is(raced, refitted):
    assert raced[0].view.done("refitted") is None  # a run does not do it
    assert refitted.view.final()[0] == "finals"
    for name in ("metrics.json", "finals/adapter_model.safetensors", "merged/model.safetensors"):
        assert (refitted.folder / name).read_bytes() == (raced[0].folder / name).read_bytes()
    assert refitted.do("refitted") == refitted.view.result("refitted")


def test_new_finals_remove_it(refitted, tmp_path):
    run = Run(shutil.copytree(refitted.folder, tmp_path / "run"))
    run.forget("finals")
    assert not (run.folder / "refitted").exists()
    with pytest.raises(UserError, match="run first: glora-search finals"):
        run.do("refitted")


def test_without_finals_there_is_no_winner(copied):
    with pytest.raises(UserError, match="has no section finals"):
        copied.do("refitted")


def test_it_ends_at_the_share_of_the_steps_at_which_it_was_best(ended, monkeypatch):
    path = ended.folder / "finals" / "stage.json"
    noted = read_json(path)
    row = next(row for row in noted["finalists"] if row["name"] == noted["winner"])
    row["best_step"] = 4  # of 16
    write_json(path, noted)
    seen = rows_trained_on(ended, monkeypatch)
    task = ended.context.task
    batches = math.ceil((len(task.train) + len(task.validation)) / 16)
    whole = 16 * math.ceil(4 * batches / 16)
    assert seen["args"].max_steps == whole
    assert seen["last"] == whole // 4
    assert seen["args"].learning_rate == pytest.approx(1e-2 * row["rate"])


def test_supernet_and_winner_learn_from_all_rows_and_the_teacher_speaks_of_all(ended, monkeypatch):
    learned, original = {}, stage.supernet.train

    def train(run, folder):
        learned["supernet"] = (len(run.task.train), folder)
        return original(run, folder)

    monkeypatch.setattr(stage.supernet, "train", train)
    winner_is(ended, taught=True)
    before = (ended.folder / "supernet" / "adapter_model.safetensors").read_bytes()
    rows, task = rows_trained_on(ended, monkeypatch)["rows"], ended.context.task
    every = [row["input_ids"] for row in (*task.train, *task.validation)]
    assert learned["supernet"] == (len(every), ended.folder / "refitted" / "trained" / "supernet")
    assert [row["input_ids"] for row in rows] == every
    assert {len(row[SOFT_LABELS]) for row in rows} == {len(task.outputs)}
    assert (ended.folder / "supernet" / "adapter_model.safetensors").read_bytes() == before


def test_what_nobody_teaches_and_inherits_nothing_needs_no_supernet(ended, monkeypatch):
    monkeypatch.setattr(stage.supernet, "train", lambda *args: pytest.fail("trained"))
    winner_is(ended, taught=False)
    rows, task = rows_trained_on(ended, monkeypatch)["rows"], ended.context.task
    assert SOFT_LABELS not in rows.column_names
    assert len(rows) == len(task.train) + len(task.validation)


@pytest.mark.parametrize("unlabelled", [0, 40])
def test_of_what_finalists_taught_further_rows_are_labelled_ones(raced, unlabelled):
    run = raced[0].context
    lesson = finals.contest_of(run, run.folder / "finals", run.recipe.finals).lesson
    count, further = len(lesson.rows), lesson.rows.select(range(8))
    more = [{**row, "labels": IGNORED} for row in lesson.rows.select(range(unlabelled))]
    own = dataclasses.replace(
        lesson, rows=Dataset.from_list([*lesson.rows, *more]), further=further, unlabelled=unlabelled
    )
    rows = refitting.with_further(own, count)
    known = [row["input_ids"] for row in rows if row["labels"] != IGNORED]
    assert known == [row["input_ids"] for row in (*lesson.rows, *further)]
    assert len(rows) - len(known) == unlabelled


def test_every_finalist_of_a_race_is_known_by_what_was_noted_of_it(raced):
    run = raced[0].context
    contest = finals.contest_of(run, run.folder / "finals", run.recipe.finals)
    for row in raced[0].view.result("finals")["finalists"]:
        one = refitting.finalist_of(contest, row["name"], row["method"], row["rate"])
        assert (one.name, one.method, one.rate, one.params) == tuple(
            row[name] for name in ("name", "method", "rate", "params")
        )
        assert one.inherits == (one.method == "subnet 1")
    scratch = refitting.finalist_of(contest, "subnet 1 from scratch", "subnet 1 from scratch", 1.0)
    assert not scratch.inherits
    assert not scratch.taught


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(SupernetTrainer, "training_step", 3), (DistillationTrainer, "training_step", 4), (stage, "merge_adapter", 1)],
)
def test_a_refit_killed_and_begun_again_ends_the_same(refitted, ended, owner, name, call):
    child = os.fork()
    if child == 0:
        calls, original = iter(range(1, 100)), getattr(owner, name)

        def killed(*args, **kwargs):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, killed)
        ended.do("refitted")
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    run = Run(ended.folder)
    assert run.view.done("refitted") is None
    again = run.do("refitted")
    assert again["steps"] == refitted.view.result("refitted")["steps"]
    ours, theirs = (load_file(one.folder / "refitted" / "adapter_model.safetensors") for one in (run, refitted))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("loss", [math.nan, 1e9])
def test_one_that_has_diverged_is_not_written(ended, monkeypatch, loss):
    monkeypatch.setattr(stage, "evaluate", lambda *args: Evaluation(0.5, loss))
    with pytest.raises(UserError, match=r"no adapter is written.*finals has the adapter as it was"):
        ended.do("refitted")
    assert not (ended.folder / "refitted" / "adapter_model.safetensors").exists()
    assert ended.view.done("refitted") is None


def test_a_supernet_that_diverges_says_what_is_left(ended, monkeypatch):
    monkeypatch.setattr(stage.supernet, "has_diverged", lambda model: True)
    winner_is(ended, taught=True)
    with pytest.raises(UserError, match=r"refit: no supernet of all rows .*finals has the adapter as it was"):
        ended.do("refitted")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"patience": 2}, "supernet.patience: got 2"),
        ({"training": {"load_best_model_at_end": True}}, "supernet.training.load_best_model_at_end: got True"),
        ({"training": {"lr_scheduler_type": "reduce_lr_on_plateau"}}, "supernet.training.lr_scheduler_type: got"),
    ],
)
def test_a_supernet_that_asks_validation_rows_is_refused(ended, settings, named):
    run = ended.context
    winner_is(ended, taught=True)
    for name, value in settings.items():
        setattr(run.recipe.supernet, name, value)
    with pytest.raises(UserError, match=named):
        ended.do("refitted")


def test_a_schedule_that_asks_validation_rows_is_refused(ended):
    ended.context.recipe.finals.training["lr_scheduler_type"] = "reduce_lr_on_plateau"
    with pytest.raises(UserError, match=r"finals\.training\.lr_scheduler_type: got 'reduce_lr_on_plateau'"):
        ended.do("refitted")


@pytest.mark.parametrize("missing", ["method", "rate"])
def test_a_race_of_an_earlier_version_says_what_to_do(ended, missing):
    path = ended.folder / "finals" / "stage.json"
    noted = read_json(path)
    noted["finalists"] = [{key: row[key] for key in row if key != missing} for row in noted["finalists"]]
    write_json(path, noted)
    with pytest.raises(UserError, match=r"an earlier version has made .*run first: glora-search finals"):
        ended.do("refitted")


def test_trainings_on_all_rows_have_the_same_epochs_and_rows_of_a_step(ended):
    run = ended.context
    path = ended.folder / "supernet" / "stage.json"
    write_json(path, {**read_json(path), "processes": 3, "max_params": 1234})
    run.recipe.supernet.training["max_steps"] = 10
    run.recipe.finals.training["max_steps"] = 20
    every, task = stage._context(run, ended.folder / "other"), run.task
    ratio = (len(task.train) + len(task.validation)) / len(task.train)
    assert len(every.task.train) == len(every.task.train_rows) == round(ratio * len(task.train))
    assert every.recipe.supernet.training["max_steps"] == round(10 * ratio)
    assert every.recipe.finals.training["max_steps"] == round(20 * ratio)
    assert every.recipe.supernet.training["gradient_accumulation_steps"] == 3
    assert every.recipe.supernet_max_params == 1234
    assert run.recipe.supernet.training["max_steps"] == 10


def test_the_runs_cost_is_without_it_and_its_status_has_it(raced, refitted):
    assert refitted.view.seconds() == raced[0].view.seconds()
    shown = {stage["command"]: stage for stage in status(refitted.view)["stages"]}
    assert shown["refit"]["state"] == "done"
    assert shown["refit"]["seconds"] == refitted.view.result("refitted")["seconds"]
    assert "refit" not in {stage["command"] for stage in status(raced[0].view)["stages"]}


def test_while_it_works_the_status_says_so_and_left_behind_it_hides_no_other(raced, ended, monkeypatch):
    monkeypatch.setattr(type(ended.view), "is_busy", lambda view: True)
    (ended.folder / "refitted").mkdir()
    assert at_work(ended.view) == "refitted"
    (ended.folder / "metrics.json").unlink()
    assert at_work(ended.view) == "test"
    (ended.folder / "merged" / "stage.json").unlink()
    assert at_work(ended.view) == "merged"


def test_where_finalists_taught_their_word_on_the_validation_rows_is_kept(ended):
    run = ended.context
    contest = finals.contest_of(run, run.folder / "finals", run.recipe.finals)
    lesson, further = contest.lesson, contest.lesson.rows.select(range(8))
    lesson.save(contest.folder / PEERS)
    with pytest.raises(UserError, match=r"run first: glora-search finals .* --again"):
        stage._peers(run, contest)
    shutil.rmtree(contest.folder / PEERS)
    dataclasses.replace(lesson, further=further).save(contest.folder / PEERS)
    rows = stage._peers(run, contest).rows
    assert [row["input_ids"] for row in rows] == [row["input_ids"] for row in (*lesson.rows, *further)]


def test_one_that_finalists_taught_is_refit_with_their_word(searched_by_peers):
    done = searched_by_peers.do("refitted")
    task = searched_by_peers.context.task
    assert done["rows"] == len(task.train) + len(task.validation)
    assert not (searched_by_peers.folder / "refitted" / "trained").exists()
