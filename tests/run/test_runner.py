"""The stages from recipe to merged model: the run folder, going on after a kill, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel, Trainer

from glora_search.adapters.load import adapter_params, load_adapter
from glora_search.errors import UserError
from glora_search.recipe.schema import Recipe
from glora_search.run import folder as run_folder
from glora_search.run import pipeline
from glora_search.run.pipeline import Run
from glora_search.run.stages import STAGES
from glora_search.scoring import Evaluation
from glora_search.search.evaluator import SubnetEvaluator
from glora_search.supernet import SupernetTrainer
from glora_search.tasks.text_classification import TextClassification


@pytest.fixture
def recipe(tiny_recipe):
    return Recipe.model_validate(tiny_recipe)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_recipe):
    """A run whose stages are all done, and its metrics."""
    run = Run.create(Recipe.model_validate(tiny_recipe), tmp_path_factory.mktemp("runs") / "tiny")
    return run, run.all_stages()


def without_seconds(metrics):
    kept = {key: value for key, value in metrics.items() if key != "seconds"}
    kept["search"] = {key: value for key, value in kept["search"].items() if key != "seconds_per_evaluation"}
    return kept


def test_the_run_folder_has_what_the_design_names(finished):
    run, _ = finished
    for name in (
        "recipe.yaml", "space.yaml", "environment.json", "supernet/adapter_model.safetensors", "search/journal.log",
        "search/trials.csv", "best/adapter_config.json", "best/adapter_model.safetensors", "best/README.md",
        "retrained/adapter_model.safetensors", "merged/config.json", "merged/model.safetensors", "metrics.json",
        "report.html", "baselines/lora/adapter_model.safetensors",
    ):  # fmt: skip
        assert (run.folder / name).is_file(), name
    assert not list(run.folder.rglob("checkpoint-*"))
    assert not [path for path in run.folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".part")]


def test_metrics_have_the_promised_keys_and_ranges(finished):
    run, metrics = finished
    assert metrics == json.loads((run.folder / "metrics.json").read_text())
    assert metrics["metric"] == "accuracy"
    assert metrics["budget"] == 1000
    assert set(metrics["search"]) == {"trials", "evaluated", "seconds_per_evaluation", "best"}
    assert metrics["search"]["evaluated"] == metrics["search"]["trials"] == 12
    scored = [*metrics["baselines"], metrics["search"]["best"], metrics["final"]]
    for entry in scored:
        assert 0 <= entry["validation"] <= 1
        assert 0 <= entry["test"] <= 1
        assert 0 <= entry["params"] <= 1000
    assert {"name", "params", "validation", "test"} <= set(metrics["baselines"][0])
    assert metrics["final"]["source"] in ("inherited", "retrained")
    assert metrics["merged"]["max_abs_logit_difference"] < 1e-4
    assert metrics["merged"]["test"] == metrics["final"]["test"]
    assert set(metrics["seconds"]) == {
        "train-supernet", "search", "export", "retrain", "merge", "baselines", "evaluate",
    }  # fmt: skip


def test_the_scores_are_those_of_the_models_on_disk(finished, tiny_csv):
    run, metrics = finished
    rows = [line.rsplit(",", 1) for line in Path(tiny_csv["test"]).read_text().splitlines()[1:]]
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(run.folder / "merged").eval()
    batch = tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        predicted = model(**batch).logits.argmax(-1).tolist()
    accuracy = np.mean(
        [model.config.id2label[index] == label for index, (_, label) in zip(predicted, rows, strict=True)]
    )
    assert metrics["merged"]["test"] == pytest.approx(accuracy)


def test_the_exported_and_the_retrained_adapter_have_the_parameters_that_are_reported(finished):
    run, metrics = finished
    for folder, expected in (("best", metrics["search"]["best"]["params"]), ("retrained", metrics["final"]["params"])):
        model = load_adapter(run.task.model(), run.folder / folder, trainable=True)
        assert adapter_params(model) == expected


def test_the_best_subnet_is_worth_what_the_search_said(finished):
    run, metrics = finished
    model = load_adapter(run.task.model(), run.folder / "best")
    scored = pipeline.evaluate(model, run.validation, run.task)
    assert scored.metric == metrics["search"]["best"]["validation"]


def fresh(code):
    """Run Python code in a new process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_merged_folder_and_the_adapter_load_in_fresh_processes(finished):
    run, _ = finished
    ids = "torch.tensor([[2, 5, 9, 3]])"
    plain = fresh(
        "import sys, torch\nfrom transformers import AutoModelForSequenceClassification as M\n"
        f"m = M.from_pretrained(r'{run.folder / 'merged'}').eval()\n"
        f"print(m(input_ids={ids}).logits.tolist())\n"
        "assert not any('glora' in name for name, _ in m.named_modules())\n"
        "assert 'glora_search' not in sys.modules"
    )
    adapter = run.folder / run.result("merged")["source"]
    adapted = fresh(
        "import glora_search, torch\nfrom peft import AutoPeftModelForSequenceClassification as M\n"
        f"m = M.from_pretrained(r'{adapter}', num_labels=2).eval()\n"
        f"print(m(input_ids={ids}).logits.tolist())"
    )
    np.testing.assert_allclose(json.loads(plain), json.loads(adapted), atol=1e-4)


def test_a_finished_run_is_not_done_again(finished, recipe, monkeypatch):
    run, metrics = finished
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    monkeypatch.setattr(SubnetEvaluator, "__call__", lambda *args: pytest.fail("evaluated again"))
    monkeypatch.setattr(TextClassification, "test_split", lambda self: pytest.fail("the test split was read again"))
    assert Run.create(recipe, run.folder).all_stages() == metrics


def test_the_test_split_is_read_once_and_only_after_all_other_stages(recipe, tmp_path, monkeypatch):
    run = Run.create(recipe, tmp_path / "run")
    reads = []
    original = TextClassification.test_split

    def read(self):
        reads.append(sorted(path.parent.name for path in run.folder.glob("*/stage.json")))
        return original(self)

    monkeypatch.setattr(TextClassification, "test_split", read)
    run.all_stages()
    assert reads == [sorted(STAGES[:-1])]


def kill_in(owner, name, call):
    """Patch a function so that its n-th call kills the process, as the kernel would."""
    original, calls = getattr(owner, name), []

    def patched(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


KILLS = {
    "supernet, in its second epoch": (SupernetTrainer, "training_step", 6, []),
    "supernet, while it is saved": (run_folder, "write_json", 1, []),
    "search": (SubnetEvaluator, "__call__", 6, ["supernet"]),
    "export": (pipeline, "export_subnet", 1, ["supernet", "search"]),
    "retrain": (pipeline, "write_card", 1, ["supernet", "search", "best"]),
    "merge": (pipeline, "merge", 1, ["supernet", "search", "best", "retrained"]),
    "baselines": (pipeline, "adapter_params", 2, ["supernet", "search", "best", "retrained", "merged"]),
    "evaluate": (pipeline, "Batches", 1, list(STAGES[:-1])),
}


@pytest.mark.parametrize(("owner", "name", "call", "expected"), KILLS.values(), ids=KILLS.keys())
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not_killed(
    finished, recipe, tmp_path, owner, name, call, expected
):
    folder = tmp_path / "run"
    child = os.fork()
    if child == 0:
        kill_in(owner, name, call)
        Run.create(recipe, folder).all_stages()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    done = {stage for stage in STAGES[:-1] if (folder / stage / "stage.json").is_file()}
    assert done == set(expected)
    times = {stage: (folder / stage / "stage.json").stat().st_mtime_ns for stage in done}
    metrics = Run.create(recipe, folder).all_stages()
    assert {stage: (folder / stage / "stage.json").stat().st_mtime_ns for stage in done} == times
    assert without_seconds(metrics) == without_seconds(finished[1])


@pytest.mark.parametrize(
    ("owner", "name", "stage", "left"),
    # Killed in step 6 of 2 epochs of 4 steps, and in evaluation 6 of 12.
    [(SupernetTrainer, "training_step", "train_supernet", 4), (SubnetEvaluator, "__call__", "search", 7)],
)
def test_what_a_killed_stage_had_done_is_not_done_again(recipe, tmp_path, monkeypatch, owner, name, stage, left):
    folder = tmp_path / "run"
    child = os.fork()
    if child == 0:
        kill_in(owner, name, 6)
        Run.create(recipe, folder).all_stages()
        os._exit(0)
    os.waitpid(child, 0)
    original, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    getattr(Run.create(recipe, folder), stage)()
    assert len(calls) == left


def test_stages_run_alone_and_a_stage_whose_input_is_missing_names_the_command(recipe, tmp_path):
    run = Run.create(recipe, tmp_path / "run")
    with pytest.raises(UserError, match="train-supernet"):
        run.search()
    run.train_supernet()
    with pytest.raises(UserError, match="glora-search search"):
        run.export()
    run.search()
    run.export()
    assert run.merge()["source"] == "best"  # merging needs no retraining
    metrics = run.evaluate()
    assert metrics["final"]["source"] == "inherited"
    assert metrics["baselines"] == []


def test_doing_a_stage_again_removes_what_was_made_from_it_and_nothing_else(finished, recipe, tmp_path):
    run = Run.create(recipe, tmp_path / "run")
    run.all_stages()
    run.forget_from("search")
    left = {stage for stage in STAGES[:-1] if run.done(stage)}
    assert left == {"supernet", "baselines"}
    assert without_seconds(run.all_stages()) == without_seconds(finished[1])


def test_a_folder_of_another_recipe_is_refused_and_left_as_it_is(finished, tiny_recipe):
    run, metrics = finished
    other = copy.deepcopy(tiny_recipe)
    other["search"]["trials"] = 99
    with pytest.raises(UserError, match=r"search\.trials is 99 here and was 12"):
        Run.create(Recipe.model_validate(other), run.folder)
    assert run.done("test") == metrics


def test_a_folder_of_a_version_with_fewer_keys_goes_on_where_todays_defaults_are_kept(recipe, tiny_recipe, tmp_path):
    run = Run.create(recipe, tmp_path / "run")
    path = run.folder / "recipe.yaml"
    old = yaml.safe_load(path.read_text())
    del old["search"]["calibration_steps"]
    path.write_text(yaml.safe_dump(old))
    Run.create(recipe, run.folder)
    other = {**tiny_recipe, "search": {**tiny_recipe["search"], "calibration_steps": 3}}
    with pytest.raises(UserError, match=r"search\.calibration_steps is 3 here and was 0"):
        Run.create(Recipe.model_validate(other), run.folder)


def test_a_folder_of_another_space_is_refused(finished, tiny_recipe, tmp_path):
    run, _ = finished
    path = tmp_path / "glora-ranks.yaml"
    path.write_text("paths: {B: [lora, none]}\n")
    other = Recipe.model_validate(tiny_recipe)
    recipe = Recipe.model_validate({**tiny_recipe, "space": str(path)})
    assert other.space != recipe.space
    with pytest.raises(UserError, match=r"another recipe: space is"):
        Run.create(recipe, run.folder)


def test_a_folder_that_is_not_a_run_folder_is_not_written_into(recipe, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="run-dir"):
        Run.create(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="run folder"):
        Run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search": {"max_params": 0, "trials": 5}, "space": "SPACE"}, ["search.max_params", "0", "cheapest"]),
        ({"space": "EMPTY"}, ["space.targets", "no_such_layer"]),
        ({"space": "nothing.yaml"}, ["space", "nothing.yaml", "glora-paper"]),
        ({"task": {"model": "./no-such-folder"}}, ["task.model", "no-such-folder"]),
        ({"task": {"model": "no-such-owner/no-such-model"}}, ["task.model", "no-such-owner/no-such-model", "minilm"]),
        ({"search": {"options": {"populaton": 5}}}, ["search.options", "populaton"]),
        ({"supernet": {"sampling": "best"}}, ["supernet.sampling", "best", "sizes", "import path"]),
        ({"supernet": {"sampling_options": {"anchors": 1}}}, ["supernet.sampling_options", "anchors"]),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tiny_recipe, tmp_path, changes, words):
    (tmp_path / "fixed.yaml").write_text("paths: {B: [lora], E: [vector]}\nranks: [2]\n")
    (tmp_path / "empty.yaml").write_text("targets: [no_such_layer]\npaths: {B: [lora, none]}\n")
    files = {"SPACE": str(tmp_path / "fixed.yaml"), "EMPTY": str(tmp_path / "empty.yaml")}
    changes = {key: files.get(value, value) if key == "space" else value for key, value in changes.items()}
    folder = tmp_path / "run"
    with pytest.raises(UserError) as error:
        Run.create(Recipe.model_validate({**tiny_recipe, **changes}), folder)
    for word in words:
        assert word in str(error.value)
    assert not folder.exists()


def test_a_space_yaml_of_the_users_own_is_not_overwritten(recipe, tmp_path):
    (tmp_path / "space.yaml").write_text("# mine\npaths: {B: [lora, none]}\n")
    with pytest.raises(UserError, match="run-dir"):
        Run.create(recipe, tmp_path)
    assert (tmp_path / "space.yaml").read_text().startswith("# mine")


def test_a_run_folder_that_a_kill_left_half_made_is_made_again(recipe, tmp_path):
    Run.create(recipe, tmp_path / "a")
    (tmp_path / "a" / "recipe.yaml").rename(tmp_path / "a" / "recipe.yaml.part")
    assert Run.create(recipe, tmp_path / "a").recipe == recipe


def test_merging_after_a_later_retraining_merges_the_retrained_subnet(recipe, tmp_path, monkeypatch):
    run = Run.create(recipe, tmp_path / "run")
    for stage in ("train_supernet", "search", "export", "merge", "evaluate"):
        getattr(run, stage)()
    scored = []
    monkeypatch.setattr(pipeline, "evaluate", lambda *a: scored.append(1) or Evaluation(1.0, 0.0))
    run.retrain()
    monkeypatch.undo()
    assert scored
    assert run.done("merged") is None
    assert run.done("test") is None
    assert run.merge()["source"] == "retrained"


def test_every_stage_takes_arguments_that_evaluate_while_training(tiny_recipe, tmp_path):
    other = copy.deepcopy(tiny_recipe)
    extra = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    for section in ("supernet", "retrain"):
        other[section]["training"].update(extra)
    other["supernet"]["training"]["gradient_accumulation_steps"] = 2
    metrics = Run.create(Recipe.model_validate(other), tmp_path / "run").all_stages()
    assert 0 <= metrics["final"]["test"] <= 1


def test_a_supernet_of_several_subnets_a_step_that_shares_nested_stops_early_and_leaves_its_curves(
    tiny_recipe, tmp_path, monkeypatch
):
    other = copy.deepcopy(tiny_recipe)
    other["space"] = "glora-paper"
    other["supernet"] = {
        "sampling": "sandwich",
        "sampling_options": {"random": 1, "distill": True},
        "sharing": "nested",
        "lr_factors": {"vector": 2, "head": 3},
        "patience": 1,
        "training": {**other["supernet"]["training"], "num_train_epochs": 9, "learning_rate": 1e-30},
    }
    other["baseline"] = {"lr_factors": {"head": 5}}
    factors = {}
    train = pipeline.train

    def noted(*args, **kwargs):
        factors[kwargs["description"]] = kwargs["lr_factors"]
        return train(*args, **kwargs)

    monkeypatch.setattr(pipeline, "train", noted)
    run = Run.create(Recipe.model_validate(other), tmp_path / "run")
    run.all_stages()
    assert factors == {
        "train-supernet": {"vector": 2, "head": 3},
        "retrain": {"vector": 2, "head": 3},
        "lora": {"head": 5},
    }
    curves = json.loads((run.folder / "supernet" / "history.json").read_text())
    scored = [entry for entry in curves if "eval_accuracy" in entry]
    assert len(scored) == 2  # the second is no better than the first
    assert {"eval_size_1/4_accuracy", "eval_BitFit_loss"} <= set(scored[0])
    assert load_config(run.folder / "supernet")["sharing"] == "nested"


def test_a_run_made_with_settings_of_other_hardware_still_opens(recipe, tmp_path):
    run = Run.create(recipe, tmp_path / "run")
    data = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    data["supernet"]["training"] |= {"bf16": True, "use_cpu": False}
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    assert Run(run.folder).recipe.supernet.training["bf16"] is True


def test_a_run_made_before_recipes_had_all_their_keys_still_goes_on(recipe, tmp_path):
    run = Run.create(recipe, tmp_path / "run")
    data = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    newer = [data["task"].pop(key) for key in ("prompt", "options")]
    newer += [data["data"].pop(key) for key in ("text_pair_column", "response_column", "image_column")]
    assert newer == [None] * 5
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    assert Run.create(recipe, run.folder).recipe == recipe


def test_modules_that_the_checkpoint_lacks_are_trained_and_exported(tiny_recipe, tiny_model, tmp_path):
    base = BertModel.from_pretrained(tiny_model)
    state = {name: value for name, value in base.state_dict().items() if not name.startswith("pooler")}
    folder = tmp_path / "no-pooler"
    shutil.copytree(tiny_model, folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    other = {**tiny_recipe, "task": {**tiny_recipe["task"], "model": str(folder)}}
    run = Run.create(Recipe.model_validate(other), tmp_path / "run")
    assert run.task.modules_to_save == ["bert.pooler.dense"]
    run.all_stages()
    saved = load_file(run.folder / "best" / "adapter_model.safetensors")
    assert any("pooler.dense" in name for name in saved)
    assert load_config(run.folder / "best")["modules_to_save"]


def load_config(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def test_retraining_from_scratch_does_not_start_from_the_inherited_weights(finished, tiny_recipe, tmp_path):
    other = copy.deepcopy(tiny_recipe)
    other["retrain"] = {"from": "scratch", "training": {**other["retrain"]["training"], "max_steps": 1,
                                                        "learning_rate": 0.0}}  # fmt: skip
    run = Run.create(Recipe.model_validate(other), tmp_path / "run")
    for stage in ("train_supernet", "search", "export", "retrain"):
        getattr(run, stage)()
    inherited = load_adapter(run.task.model(), run.folder / "best").state_dict()
    scratch = load_adapter(run.task.model(), run.folder / "retrained").state_dict()
    names = [name for name in scratch if "glora_" in name and name.endswith(("Xd", "X"))]
    assert names
    assert any(inherited[name].abs().max() > 0 for name in names)
    assert all(scratch[name].abs().max() == 0 for name in names)


def test_without_a_budget_everything_may_be_evaluated_and_the_baseline_is_rank_8(tiny_recipe, tmp_path):
    other = copy.deepcopy(tiny_recipe)
    other["search"]["max_params"] = None
    metrics = Run.create(Recipe.model_validate(other), tmp_path / "run").all_stages()
    assert metrics["budget"] is None
    assert metrics["baselines"][0]["name"] == "lora r=8"


def test_a_baseline_that_no_budget_fits_is_named_as_left_out(tiny_recipe, tmp_path):
    other = copy.deepcopy(tiny_recipe)
    other["search"]["max_params"] = 60
    metrics = Run.create(Recipe.model_validate(other), tmp_path / "run").all_stages()
    assert metrics["baselines"] == []
    assert "lora" in metrics["notes"][0]


@pytest.mark.parametrize(
    ("direction", "found", "noted"),
    [("minimize", 3.0, False), ("minimize", 5.0, True), ("maximize", 5.0, False), ("maximize", 3.0, True)],
)
def test_a_search_is_compared_with_the_best_constant_answer_by_the_tasks_direction(direction, found, noted):
    run = SimpleNamespace(
        result={"best": {"validation": found, "params": 1}}.__getitem__,  # of the stage that exports
        task=SimpleNamespace(trivial_score=lambda: 4.0, direction=direction),
        done=lambda stage: None,
    )
    assert bool(Run._notes(run)) is noted


@pytest.mark.parametrize("name", ["perplexity", "eval_perplexity", "eval_lora_perplexity"])
def test_the_metric_of_the_best_checkpoint_has_the_tasks_direction(monkeypatch, name):
    task = SimpleNamespace(metric="perplexity", direction="minimize", train=None, validation=None, collator=None)
    monkeypatch.setattr(pipeline, "train", lambda model, rows, collator, settings, *args, **options: settings)
    run = SimpleNamespace(task=task, recipe=SimpleNamespace(seed=0))
    settings = Run._train(run, None, {"metric_for_best_model": name}, Path(), "training")
    assert settings["greater_is_better"] is False


def test_a_search_that_learned_nothing_and_a_budget_that_leaves_nothing_are_named(tiny_recipe, tmp_path):
    other = copy.deepcopy(tiny_recipe)
    other["search"]["max_params"] = 0
    other["supernet"]["training"]["learning_rate"] = 0.0
    other["retrain"]["training"]["learning_rate"] = 0.0
    metrics = Run.create(Recipe.model_validate(other), tmp_path / "run").all_stages()
    assert metrics["search"]["best"]["params"] == 0
    assert any("no adapter parameters" in note for note in metrics["notes"])
    assert any("best constant answer (0.5000" in note for note in metrics["notes"])


def test_an_adapter_that_is_best_and_final_is_evaluated_once(finished, monkeypatch):
    run, metrics = finished
    folder = run.folder.parent / "inherited"
    shutil.copytree(run.folder, folder)
    (folder / "metrics.json").unlink()
    merged = json.loads((folder / "merged" / "stage.json").read_text())
    (folder / "merged" / "stage.json").write_text(json.dumps({**merged, "source": "best"}))
    again, loaded = Run(folder), []
    load = again._load
    monkeypatch.setattr(again, "_load", lambda path: loaded.append(path.name) or load(path))
    assert again.evaluate()["final"]["test"] == metrics["search"]["best"]["test"]
    assert loaded == ["lora", "best"]
