"""The plan's memory: counted on a model of shapes alone, compared with what torch has of a real one."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import get_peft_model
from torch import nn

from glora_search import Recipe, SearchSpace
from glora_search.recipe.loading import Quantization
from glora_search.run.memory import logit_bytes, packed_bytes, sizes, step_bytes
from glora_search.run.plan import plan
from glora_search.supernet.config import SupernetConfig
from glora_search.tasks import make_task


def supernet(model, task_type):
    return get_peft_model(model, SupernetConfig(space=SearchSpace.load("glora"), task_type=task_type))


@pytest.mark.parametrize(("name", "task_type"), [("llama", "CAUSAL_LM"), ("bert", "SEQ_CLS")])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_counted_without_weights_are_those_of_a_real_step(make_model, name, task_type, checkpointed):
    batch = {"input_ids": torch.ones(2, 8, dtype=torch.long), "labels": torch.ones(2, 8, dtype=torch.long)}
    if name == "bert":
        batch["labels"] = torch.ones(2, dtype=torch.long)
    found = [
        step_bytes(supernet(make_model(name).to(device), task_type), batch, 50, checkpointed=checkpointed)
        for device in ("cpu", "meta")
    ]
    assert found[0] > 0
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_weights_and_adapter_are_what_a_real_supernet_and_its_optimizer_take(tiny_recipe):
    recipe = Recipe.model_validate(tiny_recipe)
    task = make_task(recipe)
    found = sizes(recipe, task)
    base = task.model()
    held = sum(value.numel() * value.element_size() for value in (*base.parameters(), *base.buffers()))
    model = get_peft_model(
        base, SupernetConfig(space=SearchSpace.load(recipe.space), task_type="SEQ_CLS", sharing=recipe.supernet.sharing)
    )
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for value in trained:
        value.grad = torch.zeros_like(value)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    real = sum(value.numel() * value.element_size() for value in (*trained, *(v.grad for v in trained), *moments))
    stage = found.stages["train-supernet"]
    assert stage.adapter == real
    assert stage.weights == held
    assert found.stages["search"].folded == 4 * found.parameters["adapted layers"]


@pytest.mark.parametrize("method", ["load_in_4bit", "load_in_8bit", "int8_weight_only"])
@pytest.mark.parametrize("double", [False, True])
def test_a_quantised_weight_takes_the_bytes_that_its_library_stores(method, double):
    if double and method != "load_in_4bit":
        return
    layer = nn.Linear(256, 128, bias=False)
    options = {"bnb_4bit_use_double_quant": True} if double else {}
    counted = packed_bytes(Quantization(**{method: True}, **options), 128, 256, 4)
    if method == "int8_weight_only":
        torchao = pytest.importorskip("torchao.quantization")
        torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())
        stored = [layer.weight.qdata, layer.weight.scale]
    else:
        nn_ = pytest.importorskip("bitsandbytes").nn
        if method == "load_in_8bit":
            made = nn_.Linear8bitLt(256, 128, bias=False, has_fp16_weights=False)
        else:
            made = nn_.Linear4bit(256, 128, bias=False, compress_statistics=double, quant_type="nf4")
        made.load_state_dict(layer.state_dict())
        made = made.to("cpu")
        weight = made.weight
        state = getattr(weight, "quant_state", None)
        stored = [weight, weight.SCB] if state is None else [weight, state.absmax]
        stored += [state.state2.absmax] if double else []
    real = sum(value.numel() * value.element_size() for value in stored)
    assert counted == real


def test_logits_count_their_copy_in_float32_their_log_softmax_and_their_gradient():
    batch = {"labels": torch.ones(2, 8)}
    assert logit_bytes(batch, 100, 2, trained=True) == 16 * 100 * (2 + 4 + 4 + 4)
    assert logit_bytes(batch, 100, 4, trained=False) == 16 * 100 * (4 + 4)


def test_a_plan_times_every_stage_and_leaves_nothing_behind(tiny_recipe, tmp_path):
    found = plan(Recipe.model_validate(tiny_recipe), tmp_path / "plan")
    assert [name for name, stage in found.stages.items() if stage.minutes is None] == ["merge"]
    assert found.stages["search"].steps == tiny_recipe["search"]["trials"]


def test_the_command_prints_a_table_or_json_and_needs_no_weights_without_a_timing(
    tiny_recipe, tmp_path, monkeypatch, call
):
    import yaml

    data = copy.deepcopy(tiny_recipe)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    monkeypatch.setattr("glora_search.tasks.base.Task.model", lambda self: pytest.fail("the weights were loaded"))
    monkeypatch.chdir(tmp_path)
    for words in (["--no-time"], ["--no-time", "--json"]):
        code, out, _ = call("plan", "recipe.yaml", *words)
        assert code == 0
        if "--json" in words:
            stages = json.loads(out)["stages"]
            assert stages["search"]["memory"]["total"] == sum(
                size for kind, size in stages["search"]["memory"].items() if kind != "total"
            )
        else:
            assert "train-supernet" in out
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
