"""The fourth stage: training the best subnet on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import set_seed

from glora_search.adapters.card import write_card
from glora_search.adapters.load import adapter_params, subnet_to_train
from glora_search.progress import say
from glora_search.run.context import Context
from glora_search.run.launch import follows
from glora_search.scoring import evaluate
from glora_search.training.loop import train


def retrain(run: Context, folder: Path) -> dict[str, Any]:
    """Train the best subnet on; leaves ``retrained/``, an adapter folder, which has no weights if they diverged."""
    recipe, task = run.recipe, run.task
    settings = recipe.retrain
    args, factors = run.arguments(settings.training, folder), recipe.lr_factors(settings)
    set_seed(args.seed)
    model = subnet_to_train(run.base(args), run.folder / "best", start=settings.start)
    run.view.check_weights("best")
    train(model, task, task.train, task.validation, args, description="retrain", resume=True, lr_factors=factors)
    if follows():
        return {}
    scored, params = evaluate(model, run.validation, task), adapter_params(model)
    figures = run.figures(params, scored, model)
    if "diverged" in figures:  # nobody can use such weights
        say(f"retrain: {retraining_diverged(run)}")
        return figures
    model.save_pretrained(str(folder))
    task.processor.save_pretrained(str(folder))
    write_card(folder, task.model_path, run.facts(params, scored.metric))
    return figures


def retraining_diverged(run: Context) -> str:
    """What happened, and what to do."""
    return f"retraining has diverged; the inherited weights are kept. Lower {run.rate_to_lower('retrain')}"
