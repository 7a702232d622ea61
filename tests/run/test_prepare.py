"""What the stages will do, tried before the first one: no training step, and nothing of it is found out later."""

from __future__ import annotations

import copy
import enum
import json
import re
import shutil
import typing
import warnings

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, BertModel, EarlyStoppingCallback, Trainer

from glora_search import Recipe, Run
from glora_search.errors import UserError
from glora_search.recipe.arguments import TRAINING_TYPES
from glora_search.training import rehearsal
from glora_search.training.trainer import PathTrainer

SECTIONS = {"supernet": {}, "retrain": {}, "finals": {}, "baseline": {"baselines": ["lora"]}}
EVALUATING = {"eval_strategy": "epoch", "load_best_model_at_end": True}
FOO = "a scheduler's unknown argument"
CANNOT_START = {
    "an optimizer whose package is not there": ({"optim": "lomo"}, "ImportError: You need to install `lomo_optim`"),
    FOO: ({"lr_scheduler_kwargs": {"foo": 1}}, "unexpected keyword argument 'foo'"),
    "a beta above 1": ({"adam_beta1": 1.5}, "Invalid beta parameter"),
    "workers that cannot be": ({"dataloader_num_workers": -1}, "num_workers"),
}


def with_training(tiny_recipe, section, arguments):
    recipe = copy.deepcopy({**tiny_recipe, **SECTIONS[section]})
    recipe.setdefault(section, {}).setdefault("training", {"use_cpu": True}).update(arguments)
    return Recipe.model_validate(recipe)


@pytest.mark.parametrize(
    ("section", "name"),
    [*(("retrain", name) for name in CANNOT_START), *((one, FOO) for one in SECTIONS if one != "retrain")],
)
def test_arguments_with_which_a_training_cannot_start_are_refused(section, name, tiny_recipe, tmp_path):
    arguments, reason = CANNOT_START[name]
    with pytest.raises(UserError) as error:
        Run.create(with_training(tiny_recipe, section, arguments), tmp_path / "run")
    assert str(error.value).startswith(f"{section}.training: got ")
    assert "arguments with which a training can start" in str(error.value)
    assert reason in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("section", ["supernet", "retrain", "baseline"])
def test_a_metric_that_no_evaluation_has_is_refused_with_those_that_it_has(section, tiny_recipe, tmp_path):
    recipe = with_training(tiny_recipe, section, {**EVALUATING, "metric_for_best_model": "f1"})
    with pytest.raises(UserError, match=rf"^{section}\.training\.metric_for_best_model: got 'f1'; .*'accuracy'"):
        Run.create(recipe, tmp_path / "run")


def test_nothing_is_trained_and_nothing_reported(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "training_step", lambda *args, **kwargs: pytest.fail("trained"))
    monkeypatch.setattr(EarlyStoppingCallback, "on_train_begin", lambda *args, **kwargs: pytest.fail("reported"))
    recipe = {**copy.deepcopy(tiny_recipe), "finals": {"training": {"use_cpu": True}}}
    recipe["supernet"]["patience"] = 2
    Run.create(Recipe.model_validate(recipe), tmp_path / "run")
    assert not any(path.is_dir() for path in (tmp_path / "run").iterdir())


def test_rows_to_score_on_that_are_train_rows_too_are_said(recipe_file, tiny_recipe, call, tmp_path):
    copied = shutil.copy(tiny_recipe["data"]["train"], tmp_path / "test.csv")
    made = ("prepare", recipe_file, "--run-dir", tmp_path / "run", "--set", f"data.test={copied}")
    code, out, _ = call(*made)
    assert code == 0
    assert "note: 64 of 64 rows of data.test are train rows too" in out


def test_labels_of_a_csv_file_that_may_stand_for_none_are_labels_and_said(recipe_file, tiny_recipe, call, tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"text {n},{['a', 'b', 'None', 'NULL'][n % 4]}\n" for n in range(40)))
    splits = [part for split in ("validation", "test") for part in ("--set", f"data.{split}=null")]
    made = ("prepare", recipe_file, "--run-dir", tmp_path / "run", "--set", f"data.train={path}", *splits)
    code, out, _ = call(*made)
    assert code == 0
    for name in ("None", "NULL"):
        assert re.search(rf"note: \d of 27 rows of data\.train have '{name}' in label, which is learned as a ", out)
    assert "in label" not in call("prepare", recipe_file, "--run-dir", tmp_path / "other")[1]


@pytest.mark.parametrize(
    ("sampler", "trials", "subnets", "said"),
    [("evolution", 12, 1, True), ("evolution", 12, 0, False), ("evolution", 40, 1, False), ("tpe", 12, 1, False)],
)
def test_a_search_that_is_too_short_for_the_evolution_is_said(
    recipe_file, call, tmp_path, sampler, trials, subnets, said
):
    settings = ("--set", f"search={{sampler: {sampler}, trials: {trials}, max_params: 900}}")
    settings += ("--set", f"finals={{subnets: {subnets}}}")
    code, out, _ = call("prepare", recipe_file, "--run-dir", tmp_path / "run", *settings)
    assert code == 0
    assert ("note: of 12 trials, " in " ".join(out.split())) is said


def test_quiet_is_quiet_whatever_the_data_comes_from(recipe_file, tmp_path, call):
    rows = [{"text": f"a goal {row}", "label": "xy"[row % 2]} for row in range(40)]
    (tmp_path / "own.json").write_text("\n".join(map(json.dumps, rows)))
    source = f"data={{source: json, train: {tmp_path / 'own.json'}}}"
    made = call("prepare", recipe_file, "--run-dir", tmp_path / "run", "--quiet", "--set", source)
    assert made == (0, "", "")


PUSHING = {"push_to_hub": True, "hub_model_id": "owner/model"}


def test_no_repository_is_made_and_who_would_make_it_is_known(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda *args, **kwargs: pytest.fail("made a repository"))
    recipe = with_training(tiny_recipe, "retrain", {**PUSHING, "hub_token": "hf_mine"})
    with pytest.raises(UserError, match=r"^retrain\.training: got .*can start \(Offline") as e:
        Run.create(recipe, tmp_path / "run")
    assert "hf_mine" not in str(e.value)
    asked = []
    monkeypatch.setattr(rehearsal, "whoami", asked.append)
    Run.create(recipe, tmp_path / "run")
    assert asked == ["hf_mine"]


def test_a_run_folder_is_tried_again_with_what_is_there_now(recipe_file, tiny_recipe, finished, call):
    recipe = yaml.safe_load(recipe_file.read_text())
    code, out, _ = call("prepare", recipe_file, "--run-dir", finished)
    assert (code, f"next: glora-search report {finished}" in out) == (0, True)
    (finished / "metrics.json").unlink()
    assert f"next: glora-search evaluate {finished}" in call("prepare", recipe_file, "--run-dir", finished)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PathTrainer, "create_optimizer", lambda *args, **kwargs: 1 / 0)
        code, _, err = call("prepare", recipe_file, "--run-dir", finished)
    assert (code, "supernet.training: got" in err) == (2, True)
    with open(shutil.copy(tiny_recipe["data"]["test"], finished.parent / "test.csv"), "a") as file:
        file.write("a goal,sports\n")
    recipe["data"]["test"] = str(finished.parent / "test.csv")
    noted = yaml.safe_load((finished / "recipe.yaml").read_text())
    noted["data"]["test"] = recipe["data"]["test"]
    (finished / "recipe.yaml").write_text(yaml.safe_dump(noted))
    recipe_file.write_text(yaml.safe_dump(recipe))
    code, _, err = call("prepare", recipe_file, "--run-dir", finished)
    assert (code, "data.test has other rows" in err) == (2, True)


@pytest.mark.parametrize("split", ["train", "validation", "test", "unlabelled"])
def test_a_token_that_the_model_does_not_have_is_refused_in_every_split(split, tiny_recipe, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_recipe["task"]["model"])
    tokenizer.add_tokens(["brandnew"])
    tokenizer.save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=len(tokenizer) - 1, **sizes)).save_pretrained(tmp_path / "model")
    recipe = copy.deepcopy(tiny_recipe)
    recipe["task"]["model"] = str(tmp_path / "model")
    recipe["data"]["unlabelled"] = str(tmp_path / "unlabelled.csv")
    (tmp_path / "unlabelled.csv").write_text("text,label\nan unlabelled goal,sports\n")
    recipe["finals"] = {"training": {"use_cpu": True}}
    own = shutil.copy(recipe["data"][split], tmp_path / "own.csv")
    recipe["data"][split] = str(own)
    Run.create(Recipe.model_validate(recipe), tmp_path / "run")
    with open(own, "a") as file:
        file.write("a brandnew goal,sports\n")
    token = len(tokenizer) - 1
    with pytest.raises(UserError, match=rf"task\.model.*data\.{split} has token {token}, .*embedding has {token}"):
        Run.create(Recipe.model_validate(recipe), tmp_path / "other")


def values(name: str) -> st.SearchStrategy:
    """Values of a training argument's type, right ones and wrong ones, with which a tiny training stays short."""
    kinds = {kind for kind in [TRAINING_TYPES[name], *typing.get_args(TRAINING_TYPES[name])] if isinstance(kind, type)}
    found = [st.sampled_from(["foo", "no", "loss", "epoch", "steps"])] if str in kinds else []
    for kind in kinds:
        if issubclass(kind, enum.Enum):
            found.append(st.sampled_from([member.value for member in kind]))
    if bool in kinds:
        found.append(st.booleans())
    if int in kinds:
        found.append(st.integers(-1, 3))
    if float in kinds:
        found.append(st.sampled_from([-1.0, 0.0, 0.3, 1.0, float("nan"), float("inf")]))
    if "dict" in str(TRAINING_TYPES[name]):
        found.append(st.sampled_from([{}, {"foo": 1}]))
    return st.one_of([*found, st.just(["foo"])] if "list" in str(TRAINING_TYPES[name]) else found or [st.none()])


ARGUMENTS = st.lists(st.sampled_from(sorted(TRAINING_TYPES)), min_size=1, max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: values(name) for name in names})
)


def check_any(command, section, arguments, tiny_recipe, call, folder):
    """A command has to end with a result or a message."""
    if arguments.get("torch_compile"):  # with the default one, it takes minutes
        arguments["torch_compile_backend"] = "eager"
    recipe = copy.deepcopy({**tiny_recipe, **SECTIONS[section]})
    recipe["supernet"]["training"]["num_train_epochs"] = recipe["search"]["trials"] = 1
    recipe.setdefault(section, {}).setdefault("training", {"use_cpu": True}).update(arguments)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    try:
        with warnings.catch_warnings(action="ignore"):
            code, out, err = call(command, folder / "recipe.yaml", "--run-dir", folder / "run")
    finally:
        torch.use_deterministic_algorithms(False)
    assert code in (0, 2), err
    assert (code == 2) == err.startswith("error: ")
    assert "Traceback" not in out + err


@pytest.mark.slow
@pytest.mark.parametrize("section", sorted(SECTIONS))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=ARGUMENTS)
def test_any_training_arguments_are_ready_or_a_message(section, arguments, tiny_recipe, call, tmp_path_factory):
    check_any("prepare", section, arguments, tiny_recipe, call, tmp_path_factory.mktemp("any"))


@pytest.mark.slow
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(section=st.sampled_from(sorted(SECTIONS)), arguments=ARGUMENTS)
def test_any_training_arguments_end_with_a_result_or_a_message(section, arguments, tiny_recipe, call, tmp_path_factory):
    check_any("run", section, arguments, tiny_recipe, call, tmp_path_factory.mktemp("any"))
