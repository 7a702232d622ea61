"""The first stage: training all choices of every layer jointly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from glora_search.errors import invalid
from glora_search.files.text import write_json
from glora_search.recipe.schema import Recipe
from glora_search.run.context import Context
from glora_search.run.launch import follows
from glora_search.run.making import environment
from glora_search.scoring import has_diverged
from glora_search.supernet.train import train_supernet
from glora_search.tasks import Task


def train(run: Context, folder: Path) -> dict[str, Any]:
    """Train the supernet; leaves its weights, ``history.json``, and in the run folder ``environment.json``."""
    if not follows():
        write_json(run.folder / "environment.json", environment(run.recipe))
    recipe, task, space = run.recipe, run.task, run.space
    settings = recipe.supernet
    args = run.arguments(settings.settings(task.metric), folder)
    supernet, trainer = train_supernet(
        run.base(args),
        space,
        task,
        task.train,
        task.validation,
        args,
        **supernet_options(recipe, task),
        resume=True,
    )
    if follows():
        return {}
    write_json(folder / "history.json", trainer.state.log_history)
    if has_diverged(supernet):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # going on from there would not help
        rate = run.arguments(settings.training, folder).learning_rate
        raise invalid("supernet.training.learning_rate", rate, "a lower one: the supernet has diverged")
    supernet.save_pretrained(str(folder))
    size = {"layers": len(space.layers), "genes": len(space.genes), "genomes": str(space.count())}
    return {"metric": task.metric, "direction": task.direction, "max_params": recipe.supernet_max_params, **size}


def supernet_options(recipe: Recipe, task: Task) -> dict[str, Any]:
    """What a recipe says of its supernet, as keyword arguments of `train_supernet`."""
    settings = recipe.supernet
    return {
        "task_type": task.task_type,
        "modules_to_save": task.modules_to_save,
        "sharing": settings.sharing,
        "sampling": settings.sampling,
        "sampling_options": settings.sampling_options,
        "lr_factors": settings.lr_factors,
        "patience": settings.patience,
        "max_params": recipe.supernet_max_params,
    }
