"""What SECURITY.md says: files that would run code are refused, and servers listen on this machine alone."""

from __future__ import annotations

import copy
import inspect
import shutil
from pickle import UnpicklingError

import optuna
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model

from glora_search import GLoraConfig, Recipe, Run, SupernetTrainer
from glora_search.adapters.load import load_adapter
from glora_search.cli import watch
from glora_search.errors import UserError


@pytest.fixture
def hostile(tmp_path):
    """``hostile(path)``: a pickle that leaves a mark; where a test ends, there is none."""
    mark = tmp_path / "mark"

    class Payload:
        def __reduce__(self):
            return mark.touch, ()

    def write(path):
        torch.save({"weight": Payload()}, path)
        return path

    torch.load(write(tmp_path / "proof.bin"), weights_only=False)
    assert mark.exists()
    mark.unlink()
    yield write
    assert not mark.exists()


def test_a_base_model_with_a_pickle_is_refused(hostile, tiny_recipe, tmp_path):
    folder = shutil.copytree(tiny_recipe["task"]["model"], tmp_path / "model")
    (folder / "model.safetensors").unlink()
    hostile(folder / "pytorch_model.bin")
    recipe = copy.deepcopy(tiny_recipe)
    recipe["task"]["model"] = str(folder)
    with pytest.raises(UserError, match=r"task\.model: got .*would run code"):
        Run.create(Recipe.model_validate(recipe), tmp_path / "run")


@pytest.mark.parametrize("config", [LoraConfig(target_modules=["query"]), GLoraConfig(target_modules=["query"])])
def test_an_adapter_with_a_pickle_is_refused(config, hostile, make_model, tmp_path):
    folder = tmp_path / "adapter"
    get_peft_model(make_model("bert"), config).save_pretrained(folder)
    hostile(folder / "adapter_model.bin")
    load_adapter(make_model("bert"), folder)  # the safe file comes first
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing"):
        load_adapter(make_model("bert"), folder)
    with pytest.raises(UnpicklingError):
        PeftModel.from_pretrained(make_model("bert"), folder)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_checkpoint_with_a_pickle_is_not_resumed_from(name, hostile, tiny_recipe, tmp_path, monkeypatch):
    run = Run.create(Recipe.model_validate(tiny_recipe), tmp_path / "run")
    step, calls = SupernetTrainer.training_step, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SupernetTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run.do("supernet")
    (checkpoint,) = (tmp_path / "run").rglob("checkpoint-*")
    assert (checkpoint / name).is_file()
    hostile(checkpoint / name)
    if name == "training_args.bin":  # which nobody reads
        run.do("supernet")
    else:
        with pytest.raises(UserError, match=rf"{checkpoint}: .*would run code; remove this folder"):
            run.do("supernet")
        shutil.rmtree(checkpoint)
        run.do("supernet")


def test_a_run_folder_that_builds_objects_is_refused(hostile, tiny_recipe, tmp_path):
    run = Run.create(Recipe.model_validate(tiny_recipe), tmp_path / "run")
    text = yaml.safe_dump({**tiny_recipe, "name": "x"}).replace(
        "name: x", f"name: !!python/object/apply:pathlib.Path.touch ['{tmp_path / 'mark'}']"
    )
    (run.folder / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match="not valid YAML"):
        Run(run.folder)


def test_the_dashboard_and_the_proxy_listen_on_this_machine_unless_told_otherwise():
    assert inspect.signature(watch.dashboard).parameters["host"].default == "127.0.0.1"
    assert inspect.signature(optuna.storages.run_grpc_proxy_server).parameters["host"].default == "localhost"
