"""What the stages of a run share: the recipe, the data and the model, loaded when they are asked for."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainingArguments

from glora_search.adapters.card import PAD
from glora_search.adapters.load import load_adapter
from glora_search.files.checked import validate
from glora_search.ranking import is_finite
from glora_search.recipe.arguments import OTHER_MACHINE, TRAINING_DEFAULTS
from glora_search.recipe.schema import Recipe
from glora_search.run.folder import RunFolder
from glora_search.scoring import Batch, Evaluation, has_diverged, length_sorted_batches
from glora_search.space import BoundSpace, SearchSpace
from glora_search.tasks import Task, make_task
from glora_search.training.loop import training_arguments


class Context:
    """A run as its stages see it.

    Args:
        folder: the run folder; it must have been made by `Run.create`.

    Attributes:
        folder: its path.
        view: what is done there.
        recipe: the experiment.

    Raises:
        UserError: the folder is not a run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.view = RunFolder(folder)
        self.folder = self.view.path
        source = str(self.folder / "recipe.yaml")
        self.recipe = validate(Recipe, self.view.recipe, source=source, context=OTHER_MACHINE)

    @functools.cached_property
    def task(self) -> Task:
        """The recipe's task, its train and validation rows loaded."""
        return make_task(self.recipe)

    @functools.cached_property
    def space(self) -> BoundSpace:
        """The run's own copy of the search space, bound to the model.

        Raises:
            UserError: the data or the model that the recipe names is not there any more.
        """
        model = self.task.model()
        return SearchSpace.load(self.folder / "space.yaml").bind(model, self.task.modules_to_save)

    @functools.cached_property
    def device(self) -> torch.device:
        """Where models are scored: the accelerator, if there is one and the recipe does not say ``use_cpu``."""
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        use_cpu = self.recipe.supernet.training.get("use_cpu", False)
        return torch.device("cpu") if accelerator is None or use_cpu else accelerator

    @functools.cached_property
    def validation(self) -> list[Batch]:
        """The validation rows in batches."""
        return length_sorted_batches(self.task.validation, self.task.collator, self.recipe.search.batch_size)

    def load(self, adapter: str, *, trainable: bool = False) -> PeftModel:
        """A fresh base model with an adapter of this run.

        Args:
            adapter: its folder below the run folder.

        Raises:
            UserError: its weights are not those that its stage has left.
        """
        model = self.placed(load_adapter(self.task.model(), self.folder / adapter, trainable=trainable))
        self.view.check_weights(adapter)  # after what is damaged was refused
        return model

    def base(self, args: TrainingArguments) -> Any:
        """A fresh base model for a training; what is drawn at random is drawn with the training's seed."""
        draws = "seed" in inspect.signature(self.task.model).parameters  # a user's own task may know of none
        return self.task.model(seed=args.seed) if draws else self.task.model()

    def placed(self, model: Any) -> Any:
        """A model on the device where models are scored; one that the recipe has a device map for stays in place."""
        return model if self.recipe.task.device_map is not None else model.to(self.device)

    def arguments(self, settings: dict[str, Any], folder: Path) -> TrainingArguments:
        """A section's training arguments, its checkpoints below a stage's folder."""
        return training_arguments(settings, folder / "checkpoints", self.recipe.seed)

    def figures(self, params: int, scored: Evaluation, trained: PeftModel | None = None) -> dict[str, Any]:
        """What a stage notes of an adapter; one that has diverged has no figures.

        Args:
            trained: the model that has it; None where it was not trained by the stage.
        """
        found: dict[str, Any] = {"params": params, "direction": self.task.direction}
        if not is_finite(scored.metric, scored.loss) or (trained is not None and has_diverged(trained)):
            return {**found, "validation": None, "validation_loss": None, "diverged": True}
        return {**found, "validation": scored.metric, "validation_loss": scored.loss}

    def rate_to_lower(self, *sections: str) -> str:
        """The key of a learning rate, and its value: of the first section that sets one.

        Args:
            sections: of the recipe, each with training arguments; the last one has a default.
        """
        settings = {section: getattr(self.recipe, section).training for section in sections}
        section = next((name for name, training in settings.items() if "learning_rate" in training), sections[-1])
        rate = {**TRAINING_DEFAULTS, **settings[section]}["learning_rate"]
        return f"{section}.training.learning_rate, {rate:g}"

    def facts(self, params: int, validation: float | None = None) -> dict[str, Any]:
        """What an adapter's card says about it; nothing of its score where it has none."""
        outputs, problem = self.task.outputs, self.task.problem_type
        return {
            "experiment": self.recipe.name,
            **({"labels": outputs, "problem type": problem} if problem else {}),
            **({} if problem is None or self.task.new_padding is None else {PAD: self.task.new_padding}),
            **({"trust_remote_code": True} if self.recipe.task.trust_remote_code else {}),
            "adapter parameters": f"{params:,}",
            "budget": self.recipe.search.max_params,
            **({} if validation is None else {f"validation {self.task.metric}": f"{validation:.4f}"}),
        }
