"""Tasks of lm-eval, by a stub of it."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from peft import LoraConfig, get_peft_model

from glora_search.errors import UserError
from glora_search.metrics import Panel, make_metrics

HARNESS = {"type": "lm-eval", "tasks": ["arc_easy", "wikitext"], "num_fewshot": 2, "max_rows": 7}


@pytest.fixture
def lm_eval(monkeypatch):
    """A module that notes what it is called with."""
    stub, calls = ModuleType("lm_eval"), []
    stub.__spec__ = ModuleSpec("lm_eval", None)
    figures = {
        "arc_easy": {"alias": "arc_easy", "acc,none": 0.25, "acc_stderr,none": 0.1, "acc_norm,none": 0.5},
        "wikitext": {"alias": "wikitext", "word_perplexity,none": 12.0, "word_perplexity_stderr,none": "N/A"},
    }

    def simple_evaluate(**options):
        calls.append(options)
        name = options["tasks"][0]
        return {"results": {name: figures[name]}, "higher_is_better": {"wikitext": {"word_perplexity": False}}}

    stub.simple_evaluate = simple_evaluate
    models, huggingface, tasks = (ModuleType(f"lm_eval.{name}") for name in ("models", "models.huggingface", "tasks"))
    huggingface.HFLM = lambda **options: SimpleNamespace(**options)
    tasks.TaskManager = lambda include_path: SimpleNamespace(all_tasks=["arc_easy", "wikitext"], own=include_path)
    named = {"": stub, ".models": models, ".models.huggingface": huggingface, ".tasks": tasks}
    for name, module in named.items():
        monkeypatch.setitem(sys.modules, f"lm_eval{name}", module)
    return calls


def test_each_task_is_a_metric_with_the_harness_own_rows_and_its_first_figure(asking, lm_eval):
    made = asking([HARNESS])
    model = get_peft_model(made.model(), LoraConfig(task_type="CAUSAL_LM"))
    panel = Panel(made, {"validation": made.data.validation, "test": made.data.validation})
    assert panel.check() == []
    values, notes = panel.score(model)
    assert values == {"arc_easy": {"test": 0.25}, "wikitext": {"test": 12.0}}
    assert notes == []
    assert [(one["name"], one["direction"], one["rows"]) for one in panel.facts()] == [
        ("arc_easy", "maximize", {}),
        ("wikitext", "minimize", {}),
    ]
    call = lm_eval[0]
    assert (call["tasks"], call["num_fewshot"], call["limit"]) == (["arc_easy"], 2, 7)
    assert call["model"].pretrained is model.get_base_model()
    assert call["model"].tokenizer is made.tokenizer


def test_plain_texts_can_be_scored_by_the_harness(task, make, lm_eval):
    made = task("llama", "causal-lm", make.rows(), metrics=[{"type": "lm-eval", "tasks": ["arc_easy"]}])
    assert [metric.name for metric in make_metrics(made)] == ["arc_easy"]


def test_an_unknown_task_and_one_name_for_several_are_refused(asking, lm_eval):
    made = asking([{**HARNESS, "tasks": ["arc_esay"]}])
    with pytest.raises(UserError, match=r"task\.metrics\.0\.tasks: got 'arc_esay'; allowed: names of lm-eval's tasks"):
        Panel(made, {"test": made.data.validation}).check()
    with pytest.raises(UserError, match=r"task\.metrics\.0\.name: got 'both'; allowed: null"):
        make_metrics(asking([{**HARNESS, "name": "both"}]))


def test_a_folder_with_tasks_of_ones_own_is_the_harness(asking, lm_eval, tmp_path):
    own = {**HARNESS, "tasks": ["arc_easy"], "include_path": str(tmp_path)}
    made = asking([own])
    panel = Panel(made, {"test": made.data.validation})
    assert panel.check() == []
    panel.score(made.model())
    assert lm_eval[0]["task_manager"].own == str(tmp_path)
    made = asking([{**own, "include_path": "nowhere"}])
    with pytest.raises(UserError, match=r"task\.metrics\.0\.include_path: got 'nowhere'; allowed: a folder"):
        Panel(made, {"test": made.data.validation}).check()


def test_without_the_package_the_extra_is_named(asking, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    made = asking([HARNESS])
    with pytest.raises(UserError, match=r"pip install 'glora-search\[lm-eval\]'"):
        make_metrics(made)
