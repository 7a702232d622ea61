"""What the stages of a run leave, from recipe to merged model."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

from glora_search import Evaluation, Recipe, Run
from glora_search.adapters.load import adapter_params, load_adapter
from glora_search.run import baselines, retrain, supernet
from glora_search.run.evaluate import notes
from glora_search.scoring import evaluate
from glora_search.supernet import SupernetTrainer
from glora_search.supernet import train as supernet_train
from glora_search.training import loop

pytestmark = pytest.mark.slow


def test_the_run_folder_has_what_the_design_names(finished_run):
    run, _ = finished_run
    for name in (
        "recipe.yaml", "space.yaml", "environment.json", "supernet/adapter_model.safetensors", "search/journal.log",
        "search/trials.csv", "best/adapter_config.json", "best/adapter_model.safetensors", "best/README.md",
        "retrained/adapter_model.safetensors", "merged/config.json", "merged/model.safetensors", "metrics.json",
        "baselines/lora/adapter_model.safetensors",
    ):  # fmt: skip
        assert (run.folder / name).is_file(), name
    assert not list(run.folder.rglob("checkpoint-*"))
    assert not [path for path in run.folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".part")]


def test_metrics_have_the_promised_keys_and_ranges(finished_run):
    run, metrics = finished_run
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


def test_the_scores_are_those_of_the_models_on_disk(finished_run, tiny_csv):
    run, metrics = finished_run
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


def test_the_exported_and_the_retrained_adapter_have_the_parameters_that_are_reported(finished_run):
    run, metrics = finished_run
    for folder, expected in (("best", metrics["search"]["best"]["params"]), ("retrained", metrics["final"]["params"])):
        model = load_adapter(run.context.task.model(), run.folder / folder, trainable=True)
        assert adapter_params(model) == expected


def test_the_best_subnet_is_worth_what_the_search_said(finished_run):
    run, metrics = finished_run
    model = load_adapter(run.context.task.model(), run.folder / "best")
    scored = evaluate(model, run.context.validation, run.context.task)
    assert scored.metric == metrics["search"]["best"]["validation"]


def test_a_fresh_process_loads_the_merged_folder_and_with_the_package_the_adapter(finished_run):
    run, _ = finished_run
    adapter = run.folder / run.view.result("merged")["source"]
    code = (
        "import sys, torch\nfrom transformers import AutoModelForSequenceClassification as M\n"
        "ids = torch.tensor([[2, 5, 9, 3]])\n"
        f"m = M.from_pretrained(r'{run.folder / 'merged'}').eval()\n"
        "print(m(input_ids=ids).logits.tolist())\n"
        "assert not any('glora' in name for name, _ in m.named_modules())\n"
        "assert 'glora_search' not in sys.modules\n"
        "import glora_search\nfrom peft import AutoPeftModelForSequenceClassification as M\n"
        f"m = M.from_pretrained(r'{adapter}', num_labels=2).eval()\n"
        "print(m(input_ids=ids).logits.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    plain, adapted = map(json.loads, done.stdout.splitlines())
    np.testing.assert_allclose(plain, adapted, atol=1e-4)


def test_merging_after_a_later_retraining_merges_the_retrained_subnet(recipe, tmp_path, monkeypatch):
    run = Run.create(recipe, tmp_path / "run")
    for stage in ("supernet", "search", "best", "merged", "test"):
        run.do(stage)
    scored = []
    monkeypatch.setattr(retrain, "evaluate", lambda *a: scored.append(1) or Evaluation(1.0, 0.0))
    run.do("retrained")
    monkeypatch.undo()
    assert scored
    assert run.view.done("merged") is None
    assert run.view.done("test") is None
    assert run.do("merged")["source"] == "retrained"


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
    train = loop.train

    def noted(*args, **kwargs):
        factors[kwargs["description"]] = kwargs["lr_factors"]
        return train(*args, **kwargs)

    for module in (supernet_train, retrain, baselines):
        monkeypatch.setattr(module, "train", noted)
    run = Run.create(Recipe.model_validate(other), tmp_path / "run")
    factors.clear()  # of the rehearsal
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


def test_modules_that_the_checkpoint_lacks_are_trained_and_exported(tiny_recipe, tiny_model, tmp_path):
    base = BertModel.from_pretrained(tiny_model)
    state = {name: value for name, value in base.state_dict().items() if not name.startswith("pooler")}
    folder = tmp_path / "no-pooler"
    shutil.copytree(tiny_model, folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    other = {**tiny_recipe, "task": {**tiny_recipe["task"], "model": str(folder)}}
    run = Run.create(Recipe.model_validate(other), tmp_path / "run")
    assert run.context.task.modules_to_save == ["bert.pooler.dense"]
    run.all_stages()
    saved = load_file(run.folder / "best" / "adapter_model.safetensors")
    assert any("pooler.dense" in name for name in saved)
    assert load_config(run.folder / "best")["modules_to_save"]


def load_config(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def test_retraining_from_scratch_does_not_start_from_the_inherited_weights(finished_run, tiny_recipe, tmp_path):
    other = copy.deepcopy(tiny_recipe)
    other["retrain"] = {"from": "scratch", "training": {**other["retrain"]["training"], "max_steps": 1,
                                                        "learning_rate": 0.0}}  # fmt: skip
    run = Run.create(Recipe.model_validate(other), tmp_path / "run")
    for stage in ("supernet", "search", "best", "retrained"):
        run.do(stage)
    inherited = load_adapter(run.context.task.model(), run.folder / "best").state_dict()
    scratch = load_adapter(run.context.task.model(), run.folder / "retrained").state_dict()
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
    view = SimpleNamespace(
        result={"best": {"validation": found, "params": 1}}.__getitem__,  # of the stage that exports
        done=lambda stage: None,
        final=lambda: None,
    )
    task = SimpleNamespace(constant="best constant answer", direction=direction)
    constant = {"name": "best constant answer", "validation": 4.0}
    assert bool(notes(view, task, [{"name": "base model", "validation": 4.0}, constant])) is noted
    assert notes(view, task, []) == []


def test_a_search_that_learned_nothing_and_a_budget_that_leaves_nothing_are_named(tiny_recipe, tmp_path):
    other = copy.deepcopy(tiny_recipe)
    other["search"]["max_params"] = 0
    other["supernet"]["training"]["learning_rate"] = 0.0
    other["retrain"]["training"]["learning_rate"] = 0.0
    metrics = Run.create(Recipe.model_validate(other), tmp_path / "run").all_stages()
    assert metrics["search"]["best"]["params"] == 0
    assert any("no adapter parameters" in note for note in metrics["notes"])
    assert any("best constant answer (0.5000" in note for note in metrics["notes"])


def test_the_papers_own_method_goes_from_end_to_end(tiny_recipe, tmp_path):
    paper = copy.deepcopy(tiny_recipe)
    paper["space"], paper["finals"] = "glora-paper", None
    paper["supernet"] |= {"sharing": "nested", "sampling": "uniform", "lr_factors": {}}
    options = {"population_size": 6, "n_parents": 2, "n_mutants": 2, "n_crossovers": 2}
    paper["search"] |= {"sampler": "paper", "options": options, "max_params": 3000, "score": "metric"}
    run = Run.create(Recipe.model_validate(paper), tmp_path / "run")
    metrics = run.all_stages()
    assert metrics["search"]["evaluated"] == 12
    assert 0 < metrics["search"]["best"]["params"] <= 3000
    assert metrics["merged"]["test"] == metrics["final"]["test"]
    for folder, result in (("best", metrics["search"]["best"]), ("retrained", run.view.result("retrained"))):
        model = load_adapter(run.context.task.model(), run.folder / folder, trainable=True)
        assert adapter_params(model) == result["params"] == metrics["search"]["best"]["params"]
        scored = evaluate(model, run.context.validation, run.context.task)
        assert scored.metric == result["validation"]


def test_a_search_that_was_mostly_its_start_is_noted(finished_run):
    _, metrics = finished_run
    assert any(note.startswith("of 12 trials, ") for note in metrics["notes"])


def test_an_adapter_that_is_best_and_final_is_evaluated_once(finished_run, monkeypatch):
    run, metrics = finished_run
    folder = run.folder.parent / "inherited"
    shutil.copytree(run.folder, folder)
    (folder / "metrics.json").unlink()
    merged = json.loads((folder / "merged" / "stage.json").read_text())
    (folder / "merged" / "stage.json").write_text(json.dumps({**merged, "source": "best"}))
    again, loaded = Run(folder), []
    load = again.context.load
    monkeypatch.setattr(again.context, "load", lambda name: loaded.append(name) or load(name))
    assert again.do("test")["final"]["test"] == metrics["search"]["best"]["test"]
    assert loaded == ["baselines/lora", "best"]


def test_a_supernet_that_stopped_early_before_a_kill_is_the_one_that_was_best(tiny_recipe, tmp_path, monkeypatch):
    scores = {4: 0.6, 8: 0.5, 12: 0.9, 16: 0.8}  # it would get better later
    original = SupernetTrainer.evaluation_loop

    def scripted(self, *args, **kwargs):
        found = original(self, *args, **kwargs)
        found.metrics["eval_accuracy"] = scores.get(self.state.global_step, 0.1)
        return found

    monkeypatch.setattr(SupernetTrainer, "evaluation_loop", scripted)
    recipe = copy.deepcopy(tiny_recipe)
    recipe["supernet"]["patience"] = 1
    recipe["supernet"]["training"] |= {"num_train_epochs": 4, "save_total_limit": 3}
    whole, killed = (Run.create(Recipe.model_validate(recipe), tmp_path / name) for name in ("whole", "killed"))
    whole.do("supernet")
    with monkeypatch.context() as patch:
        patch.setattr(supernet, "has_diverged", lambda model: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            killed.do("supernet")
    killed.do("supernet")
    assert killed.view.weights() == whole.view.weights()
    curves = [json.loads((run.folder / "supernet" / "history.json").read_text()) for run in (whole, killed)]
    assert [[entry["step"] for entry in curve if "eval_accuracy" in entry] for curve in curves] == [[4, 8]] * 2


def test_figures_of_trainings_in_half_precision_are_those_of_the_saved_adapters(tiny_recipe, tmp_path):
    recipe = copy.deepcopy(tiny_recipe)
    recipe["retrain"]["training"] |= {"bf16": True, "num_train_epochs": 6}
    recipe["baseline"] = {"training": {"bf16": True, "use_cpu": True}}
    run = Run.create(Recipe.model_validate(recipe), tmp_path / "run")
    for stage in ("supernet", "search", "best", "retrained", "baselines"):
        run.do(stage)
    noted = {"retrained": run.view.done("retrained"), "baselines/lora": run.view.done("baselines")["list"][0]}
    for folder, figures in noted.items():
        found = evaluate(Run(run.folder).context.load(folder), run.context.validation, run.context.task)
        assert found.loss == pytest.approx(figures["validation_loss"], rel=1e-6)
