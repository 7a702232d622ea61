"""What the found subnet is compared with: the recipe's baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import get_peft_model
from transformers import set_seed

from glora_search.adapters.card import write_card
from glora_search.adapters.load import adapter_params
from glora_search.progress import say
from glora_search.run.context import Context
from glora_search.run.launch import follows, processes
from glora_search.scoring import evaluate
from glora_search.training.baselines import baseline_settings, lora_within
from glora_search.training.loop import train


def train_baselines(run: Context, folder: Path) -> dict[str, Any]:
    """Train the recipe's baselines; leaves ``baselines/`` with an adapter folder each."""
    recipe, task = run.recipe, run.task
    result: dict[str, Any] = {"list": [], "skipped": []}
    for name in recipe.baselines:
        config = lora_within(run.space, recipe.search.max_params, task.task_type, task.modules_to_save)
        if config is None:
            result["skipped"].append(f"{name}: not even rank 1 on query and value fits the budget")
            continue
        where = folder / name
        args = run.arguments(baseline_settings(recipe, len(task.train), processes()), where)
        set_seed(args.seed)
        model = get_peft_model(run.base(args), config)
        factors = recipe.lr_factors(recipe.baseline)
        train(model, task, task.train, task.validation, args, description=name, resume=True, lr_factors=factors)
        if follows():
            continue
        figures = run.figures(adapter_params(model), evaluate(model, run.validation, task), model)
        if "diverged" in figures:
            say(f"baselines: {baseline_diverged(run, name)}")
        else:
            model.save_pretrained(str(where))
            write_card(where, task.model_path, run.facts(figures["params"], figures["validation"]))
        del figures["direction"]
        result["list"].append({"name": f"{name} r={config.r}", "method": name, **figures})
    return result


def baseline_diverged(run: Context, name: str) -> str:
    """What happened, and what to do."""
    return f"the baseline {name} has diverged. Lower {run.rate_to_lower('baseline', 'retrain', 'supernet')}"
