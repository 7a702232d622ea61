"""A disk that fills up in a stage: one message, exit code 2, and the same command goes on."""

from __future__ import annotations

import errno
from pathlib import Path

import pandas as pd
import pytest
from peft import PeftModel
from transformers import PreTrainedModel, Trainer

from glora_search import Run
from glora_search.adapters import export
from glora_search.run import making, retrain, runner
from glora_search.run.stages import STAGES
from glora_search.search import worker
from glora_search.search.evaluator import SubnetEvaluator
from glora_search.search.shared.ledger import Ledger
from glora_search.search.shared.storage import JournalFile


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def serializer(*args, **kwargs):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def quota(*args, **kwargs):
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


WRITES = {
    "supernet, its checkpoint": ("supernet", Trainer, "_save_checkpoint", full),
    "supernet, its weights": ("supernet", PeftModel, "save_pretrained", serializer),
    "search, its journal": ("search", JournalFile, "append_logs", full),
    "search, a trial": ("search", Ledger, "append", full),
    "search, an evaluation": ("search", SubnetEvaluator, "__call__", full),
    "search, a claim": ("search", Ledger, "claim", full),
    "search, its table": ("search", pd.DataFrame, "to_csv", full),
    "best": ("best", export, "save_adapter", serializer),
    "retrained": ("retrained", retrain, "write_card", quota),
    "merged": ("merged", PreTrainedModel, "save_pretrained", serializer),
    "baselines": ("baselines", PeftModel, "save_pretrained", full),
    "test": ("test", runner, "write_json", full),
}


@pytest.mark.parametrize(("stage", "owner", "name", "write"), WRITES.values(), ids=WRITES.keys())
def test_a_full_disk_in_a_stage_is_one_message_and_the_same_command_goes_on(
    finished, call, monkeypatch, stage, owner, name, write
):
    run, before = Run(finished), Run(finished).view.result("test")
    run.forget(stage)
    monkeypatch.setattr(worker, "PATIENCE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, write)
        code, out, err = call(STAGES[stage].command, finished)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in out + err
    assert "Make room and give the same command again" in err
    assert ("the quota is used up" if write is quota else "the disk is full") in err
    assert run.view.done(stage) is None
    after = run.all_stages()
    assert {key: after[key] for key in ("baselines", "final")} == {key: before[key] for key in ("baselines", "final")}


def test_a_disk_that_is_full_when_a_folder_or_a_report_is_written(recipe_file, finished, call, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(making, "write_text", full)
        code, _, err = call("prepare", recipe_file, "--run-dir", tmp_path / "new")
    assert (code, "the disk is full" in err) == (2, True)
    assert call("prepare", recipe_file, "--run-dir", tmp_path / "new")[0] == 0
    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = call("report", finished)
    assert (code, f"{finished}: the disk is full" in err) == (2, True)
