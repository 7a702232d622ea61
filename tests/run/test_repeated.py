"""Rows to score on that are in another split too are said, before a run and in its result."""

from __future__ import annotations

import json
import shutil

from glora_search import Recipe, Run


def test_test_rows_that_a_model_is_chosen_by_are_said_before_a_run_and_in_its_result(tiny_recipe, tmp_path, capsys):
    test = str(shutil.copy(tiny_recipe["data"]["validation"], tmp_path / "test.csv"))
    recipe = Recipe.model_validate({**tiny_recipe, "data": {**tiny_recipe["data"], "test": test}, "baselines": []})
    run = Run.create(recipe, tmp_path / "run")
    count = len(run.context.task.validation)
    said = f"{count} of {count} rows of data.test are validation rows too, so scores on this split are too optimistic"
    assert f"note: {said}" in " ".join(capsys.readouterr().out.split())
    run.all_stages()
    assert said in json.loads((run.folder / "metrics.json").read_text())["notes"]
