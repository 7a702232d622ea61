"""The third stage: the best subnet as an adapter folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glora_search.adapters.export import export_subnet
from glora_search.run.context import Context
from glora_search.run.search import evaluator_of


def export_best(run: Context, folder: Path) -> dict[str, Any]:
    """Write the best subnet with the weights that it was scored with; leaves ``best/``.

    It is scored once more: with other threads or hardware than the search's, figures differ in their last bits.
    """
    best = run.view.result("search")["best"]
    evaluator = evaluator_of(run, folder)
    found = evaluator.inherit(best["genome"])
    scored = found.evaluation
    facts = run.facts(best["params"], scored.metric)
    export_subnet(
        folder, found.config, found.weights, model=evaluator.supernet, base_model=run.task.model_path, facts=facts
    )
    run.task.processor.save_pretrained(str(folder))
    return run.figures(best["params"], scored)
