"""Rows to score on that tell little are said, before a run and in its result."""

from __future__ import annotations

import json
import shutil

from glora_search import Recipe, Run
from glora_search.run.scored_rows import rows_that_tell_little
from glora_search.tasks import make_task


def test_test_rows_that_a_model_is_chosen_by_are_said_before_a_run_and_in_its_result(tiny_recipe, tmp_path, capsys):
    test = str(shutil.copy(tiny_recipe["data"]["validation"], tmp_path / "test.csv"))
    recipe = Recipe.model_validate({**tiny_recipe, "data": {**tiny_recipe["data"], "test": test}, "baselines": []})
    run = Run.create(recipe, tmp_path / "run")
    count = len(run.context.task.validation)
    said = f"{count} of {count} rows of data.test are validation rows too, so scores on this split are too optimistic"
    assert f"note: {said}" in " ".join(capsys.readouterr().out.split())
    run.all_stages()
    assert said in json.loads((run.folder / "metrics.json").read_text())["notes"]


def test_validation_rows_of_one_label_are_said(tiny_recipe, tmp_path):
    (tmp_path / "one.csv").write_text("text,label\na goal,sports\nthe match,sports\n")
    data = {**tiny_recipe["data"], "validation": str(tmp_path / "one.csv")}
    task = make_task(Recipe.model_validate({**tiny_recipe, "data": data}))
    found = [note for note in rows_that_tell_little(task, task.test_split()) if "the same" in note]
    assert len(found) == 1
    assert found[0].startswith("all 2 rows of data.validation have the same label, so scores on this split hardly tell")
