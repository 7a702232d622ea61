"""The finals of a run: what they leave, and going on after a kill."""

from __future__ import annotations

import gc
import json
import math
import os
import re
import shutil
import signal
import time
import weakref
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from glora_search import Recipe, Run, lora_within
from glora_search.adapters.load import adapter_params, load_adapter
from glora_search.errors import UserError
from glora_search.files.text import write_json
from glora_search.finals import lessons
from glora_search.run import finals
from glora_search.run.folder import digest
from glora_search.run.formats import export_as
from glora_search.scoring import Evaluation
from glora_search.training.distillation import DistillationTrainer

pytestmark = pytest.mark.slow


def test_the_winner_is_the_final_adapter_and_what_is_merged(raced):
    run, metrics = raced
    done = run.view.result("finals")
    assert run.view.final() == ("finals", done)
    assert run.view.done("retrained") is None
    assert metrics["final"]["source"] == done["winner"]
    assert metrics["final"]["validation"] == done["validation"]
    assert metrics["merged"]["test"] == metrics["final"]["test"]
    model = load_adapter(run.context.task.model(), run.folder / "finals").eval()
    merged = AutoModelForSequenceClassification.from_pretrained(run.folder / "merged").eval()
    batch = {name: value for name, value in run.context.validation[0].items() if name != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)


def test_the_table_has_every_finalist_and_the_lowest_loss_wins_unless_it_is_passed_over(raced):
    run, _ = raced
    done = run.view.result("finals")
    names = [row["name"] for row in done["finalists"]]
    assert len(set(names)) == len(names)
    searched = {row["method"]: row for row in done["finalists"] if row["method"].startswith("subnet")}
    ((method, row),) = searched.items()
    alone = min(one["validation_loss"] for one in done["finalists"] if "teacher" not in one["name"])
    inherits = run.view.result("best")["validation_loss"] < alone
    assert method == ("subnet 1" if inherits else "subnet 1 from scratch")
    assert row["name"].endswith(" + teacher")
    assert any(name.startswith("LoRA") and " x0.5" in name for name in names)
    last = [row for row in done["finalists"] if row["steps"] == 16]
    lowest = min(last, key=lambda row: row["validation_loss"])["name"]
    assert lowest == done.get("passed_over", {"name": done["winner"]})["name"]
    assert all(row["params"] <= 1000 for row in done["finalists"])
    assert done["trainings"] < len(names)
    assert {"by", "members", "validation", "validation_loss"} == set(done["teacher"])


def test_every_field_of_the_result_files_is_documented(raced):
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    known = set(re.findall(r"`(\w+)`", page))
    for file in ("metrics.json", "finals/stage.json"):
        found = json.loads((raced[0].folder / file).read_text())
        named = ("seconds", "curves")  # their keys are names of others
        values = [value for name, value in found.items() if name not in named]
        rows = [row for value in values for row in (value if isinstance(value, list) else [value])]
        for keys in (found, *(row for row in rows if isinstance(row, dict))):
            assert set(keys) <= known


def test_a_run_has_its_own_tuned_baseline_scored_on_test(raced):
    run, metrics = raced
    (entry,) = metrics["baselines"]
    assert entry["name"].endswith(", tuned")
    assert "teacher" not in entry["name"]
    assert 0 <= entry["test"] <= 1
    assert (run.folder / "finals" / "baseline" / "adapter_model.safetensors").is_file()


def test_a_lora_that_has_won_is_exported_as_the_lora_that_it_is(raced, tmp_path):
    run = Run(shutil.copytree(raced[0].folder, tmp_path / "copied"))
    context = run.context
    config = lora_within(context.space, 1000, context.task.task_type, context.task.modules_to_save)
    get_peft_model(context.task.model(), config).save_pretrained(str(run.folder / "finals"))
    noted = {**run.view.result("finals"), "weights": digest(run.folder / "finals" / "adapter_model.safetensors")}
    (run.folder / "finals" / "stage.json").write_text(json.dumps(noted))
    folder = export_as(run, "lora")
    assert isinstance(PeftConfig.from_pretrained(folder), LoraConfig)
    assert (folder / "tokenizer_config.json").is_file()
    ours, theirs = (load_file(where / "adapter_model.safetensors") for where in (folder, run.folder / "finals"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_teacher_labels_rows_that_have_no_labels_wherever_they_lie(searched, finals_recipe, tmp_path):
    def run_with(name, rows=40):
        (tmp_path / name).write_text("text\n" + "".join(f"good film {n}\n" for n in range(rows)))
        data = finals_recipe.model_dump(by_alias=True)
        data["data"]["unlabelled"] = str(tmp_path / name)
        return Run.create(Recipe.model_validate(data), searched.folder)

    assert run_with("a.csv").do("finals")["teacher"]["unlabelled"] == 40
    assert run_with("moved.csv").view.done("finals") is not None
    assert run_with("other.csv", rows=30).view.done("finals") is None


@pytest.mark.parametrize("section", [None, {"teacher": 0}])
def test_unlabelled_rows_without_a_teacher_are_refused(finals_recipe, section):
    data = finals_recipe.model_dump(by_alias=True)
    data["data"]["unlabelled"], data["finals"] = "more.csv", section
    with pytest.raises(ValidationError, match=r"data\.unlabelled.*finals\.teacher"):
        Recipe.model_validate(data)


def test_a_supernet_that_teaches_trains_larger_subnets_than_the_search_looks_at(finals_recipe):
    data = finals_recipe.model_dump(by_alias=True)
    assert Recipe.model_validate(data).supernet_max_params == 4000
    assert Recipe.model_validate({**data, "finals": {"teacher": 0}}).supernet_max_params == 1000
    data["supernet"]["max_params"] = 2000
    assert Recipe.model_validate(data).supernet_max_params == 2000
    data["supernet"]["max_params"] = 999
    with pytest.raises(ValidationError, match=r"supernet\.max_params.*at least search\.max_params"):
        Recipe.model_validate(data)


def test_no_checkpoints_are_left(raced):
    assert not list(raced[0].folder.rglob("checkpoint-*"))


@pytest.mark.parametrize(
    ("step", "where"),
    [
        *((0, ""), (1, ""), (6, ""), (13, "")),
        *((0, "joined"), (3, "joined")),
        *((0, "teacher"), (13, "teacher")),
    ],
)
def test_a_race_that_was_killed_in_any_rung_ends_as_one_that_was_not(raced, searched, monkeypatch, step, where):
    rows = raced[0].view.result("finals")["finalists"]
    (joined,) = {row["rate"] for row in rows} - {0.5, 1} - {row["rate"] for row in rows if "teacher" in row["name"]}
    where = f"-x{joined:g}/" if where == "joined" else where
    child = os.fork()
    if child == 0:
        original = DistillationTrainer.training_step

        def killed(self, *args, **kwargs):
            if self.state.global_step == step and where in self.args.output_dir:  # rungs end at 4, 8 and 16
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, *args, **kwargs)

        DistillationTrainer.training_step = killed
        searched.do("finals")
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    run = Run(searched.folder)
    assert run.view.done("finals") is None
    monkeypatch.setattr(finals, "Teacher", lambda *args: pytest.fail("what it teaches was made before the kill"))
    run.do("finals")
    results = [one.view.result("finals") for one in (run, raced[0])]
    ours, theirs = ({k: v for k, v in one.items() if not k.startswith("seconds")} for one in results)
    assert ours == theirs


def test_a_subnet_starts_with_what_it_inherits_and_from_scratch_as_the_base_model(raced, tmp_path):
    run = Run(shutil.copytree(raced[0].folder, tmp_path / "copied")).context
    contest = finals.contest_of(run, run.folder / "finals", run.recipe.finals)
    finals.write_starts(run, run.folder / "finals", contest)
    batch = {name: value for name, value in run.validation[0].items() if name != "labels"}
    for trained in (math.inf, 0.0):
        (one,) = finals.subnet_finalists(contest.subnets, trained)
        model = contest._begin(one).eval()
        assert adapter_params(model) == one.params
        with torch.no_grad(), model.disable_adapter():
            base = model(**batch).logits
        assert torch.equal(model(**batch).logits, base) != one.inherits


def test_what_a_rung_has_trained_is_not_trained_again(raced, searched, monkeypatch):
    run = searched
    monkeypatch.setattr(finals, "write_card", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.do("finals")
    monkeypatch.undo()
    monkeypatch.setattr(DistillationTrainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    assert run.do("finals")["winner"] == raced[0].view.result("finals")["winner"]


def test_where_every_finalist_diverges_the_key_to_lower_is_named(searched, finals_recipe):
    data = finals_recipe.model_dump(by_alias=True)
    data["finals"]["training"] |= {"learning_rate": 1e30, "max_grad_norm": 0.0, "warmup_steps": 0}
    run = Run.create(Recipe.model_validate(data), searched.folder)
    with pytest.raises(UserError, match=r"finals\.training\.learning_rate.*diverged"):
        run.do("finals")
    assert run.view.done("finals") is None


def test_weights_that_score_no_number_are_not_kept(raced, tmp_path, monkeypatch):
    run, _ = raced
    monkeypatch.setattr(finals, "evaluate", lambda *args: Evaluation(0.5, float("nan")))
    with pytest.raises(UserError, match=r"has diverged.*finals\.training\.learning_rate"):
        finals._keep(run.context, run.folder / "finals", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_where_nothing_fits_the_budget_there_is_nothing_to_race(finals_recipe, tmp_path):
    data = finals_recipe.model_dump(by_alias=True)
    data["search"]["max_params"] = 0
    with pytest.raises(UserError, match=r"search\.max_params: got 0; allowed: with finals, a budget"):
        Run.create(Recipe.model_validate(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"rates": []}, ["finals.rates"]),
        ({"rates": [0]}, ["finals.rates"]),
        ({"teacher": -1}, ["finals.teacher", "-1"]),
        ({"teacher_share": 2}, ["finals.teacher_share", "2"]),
        ({"training": {"save_steps": 5}}, ["finals.training.save_steps", "the race sets it"]),
        ({"subnet": 3}, ["finals.subnet", "subnets"]),
    ],
)
def test_a_wrong_section_is_refused(tiny_recipe, tmp_path, section, words):
    import yaml

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**tiny_recipe, "finals": section}))
    with pytest.raises(UserError) as error:
        Recipe.load(path)
    for word in words:
        assert word in str(error.value)


def test_processes_share_the_trainings_and_the_result_is_that_of_one(raced, searched):
    searched.all_stages(workers=2)
    assert searched.view.result("finals")["workers"] == 2
    ours, theirs = (one.view.result("finals") for one in (searched, raced[0]))
    assert ours["winner"] == theirs["winner"]
    assert ours["trainings"] == theirs["trainings"]
    assert [row["name"] for row in ours["finalists"]] == [row["name"] for row in theirs["finalists"]]
    for mine, other in zip(ours["finalists"], theirs["finalists"], strict=True):
        assert mine["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-3)


def raced_by_two(run):
    """The finals of a run, begun by a process that this one joins; what this one's call returns."""
    child = os.fork()
    if child == 0:
        Run(run.folder).do("finals")
        os._exit(0)
    while not (run.folder / "finals" / "ready").is_file():
        time.sleep(0.05)
    done = Run(run.folder).do("finals")
    assert os.waitpid(child, 0)[1] == 0
    return done


def test_a_process_that_comes_later_helps_and_ends_with_the_race(searched):
    done = raced_by_two(searched)
    assert done == searched.view.result("finals")
    assert len({row["name"] for row in done["finalists"]}) == len(done["finalists"])


def test_a_race_that_went_on_is_decided_at_each_rung_as_it_was(tmp_path):
    from glora_search.finals.training import standing
    from glora_search.scoring import RowMetric

    last = tmp_path / "checkpoint-8"
    last.mkdir()
    for name in ("optimizer.pt", "scheduler.pt", "adapter_model.safetensors"):
        (last / name).write_text("")
    history = [
        {"step": step, "eval_loss": loss, "eval_metric": loss / 2} for step, loss in ((2, 0.9), (4, 0.8), (8, 0.1))
    ]
    write_json(last / "trainer_state.json", {"global_step": 8, "log_history": history})
    scoring = RowMetric(lambda logits, labels: labels)
    assert standing(tmp_path, scoring, 4, ends_from=4).loss == 0.8
    assert standing(tmp_path, scoring, 4, ends_from=4).best_step == 4
    assert standing(tmp_path, scoring, 8, ends_from=4).loss == 0.1
    assert standing(tmp_path, scoring, 16, ends_from=4) is None
    history[-1]["eval_loss"] = 0.9  # it overfits since step 4, and has ended
    write_json(last / "trainer_state.json", {"global_step": 8, "log_history": history})
    assert standing(tmp_path, scoring, 16, ends_from=8).step == 8
    assert standing(tmp_path, scoring, 16, ends_from=8).loss == 0.8
    assert standing(tmp_path, scoring, 16, ends_from=12) is None  # it was killed before the first rung


def test_where_the_supernet_cannot_teach_those_that_were_trained_alone_do(searched, monkeypatch):
    monkeypatch.setattr(lessons, "POOR_SUPERNET", 0.0)  # every supernet is poor
    run, sizes, original = searched, set(), lessons.Peers.teach
    monkeypatch.setattr(lessons.Peers, "teach", lambda self, rows: sizes.add(self.batch_size) or original(self, rows))
    run.context.recipe.search.batch_size = 8
    metrics = run.all_stages()
    assert sizes == {8}
    teacher, rows = (run.view.result("finals")[name] for name in ("teacher", "finalists"))
    losses = sorted(row["validation_loss"] for row in rows if "teacher" not in row["name"])
    good = sum(loss <= 1.25 * losses[0] for loss in losses)
    assert (teacher["by"], teacher["members"]) == ("finalists", good)
    assert any(f"{good} finalists" in note for note in metrics["notes"])
    assert len(rows) - len(losses) > 1


def test_what_those_trained_alone_teach_is_made_by_one_process_and_once(searched, tmp_path, monkeypatch):
    monkeypatch.setattr(lessons, "POOR_SUPERNET", 0.0)
    made, original = tmp_path / "made", lessons.Peers.teach

    def teach(self, rows):
        with made.open("a") as file:
            file.write("once")
        return original(self, rows)

    monkeypatch.setattr(lessons.Peers, "teach", teach)
    assert raced_by_two(searched)["teacher"]["by"] == "finalists"
    assert made.read_text() == 2 * "once"  # of train and validation rows


def test_what_those_trained_alone_teach_is_not_made_again_after_a_kill(searched, monkeypatch):
    run = searched
    monkeypatch.setattr(lessons, "POOR_SUPERNET", 0.0)
    monkeypatch.setattr(finals, "write_card", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.do("finals")
    monkeypatch.undo()
    monkeypatch.setattr(lessons, "POOR_SUPERNET", 0.0)
    monkeypatch.setattr(lessons.Peers, "teach", lambda *args: pytest.fail("made again"))
    assert run.do("finals")["teacher"]["by"] == "finalists"


def test_the_mean_of_models_is_what_peers_teach(raced):
    task = raced[0].context.task
    models = [task.model() for _ in range(2)]
    torch.nn.init.normal_(models[1].classifier.weight)
    peers = lessons.Peers(lambda: models, task)
    soft = torch.tensor(peers.teach(task.validation)["soft_labels"])
    batch = task.collator([task.validation[row] for row in range(len(task.validation))])
    with torch.no_grad():
        expected = torch.stack([model.eval()(**batch).logits.softmax(-1) for model in models]).mean(0)
    torch.testing.assert_close(soft, expected, rtol=1e-4, atol=1e-5)
    worth = peers.evaluate(task.validation)
    assert worth.metric == pytest.approx(float((expected.argmax(-1) == batch["labels"]).float().mean()))
    assert worth.loss == pytest.approx(float(torch.nn.functional.nll_loss(expected.log(), batch["labels"])), rel=1e-4)


def test_of_the_models_that_teach_one_is_in_memory_at_a_time(raced):
    task, alive = raced[0].context.task, []

    def models():
        for _ in range(3):
            gc.collect()
            assert not any(model() is not None for model in alive)
            made = task.model()
            alive.append(weakref.ref(made))
            yield made
            del made

    lessons.Peers(models, task).teach(task.validation)
    assert len(alive) == 3
