"""The finals of a run: subnets and uniform methods race; the winner is the final adapter."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from datasets import Dataset
from optuna.storages import JournalStorage
from peft import PeftModel, get_peft_model
from transformers import TrainingArguments, set_seed

from glora_search.adapters.card import write_card
from glora_search.adapters.load import adapter_params, load_adapter
from glora_search.errors import invalid
from glora_search.files.text import read_json, write_json
from glora_search.finals.finalists import Finalist, finalists
from glora_search.finals.race import STUDY_NAME, race
from glora_search.finals.rungs import Standing, race_cost, whole
from glora_search.finals.training import EVALUATED, best_checkpoint, finalist_args, standing, train_to
from glora_search.progress import say, track
from glora_search.recipe.schema import Finals
from glora_search.run.context import Context
from glora_search.run.search import evaluator_of
from glora_search.scoring import evaluate
from glora_search.search.results import genome_of, ranked
from glora_search.search.shared.storage import JournalFile
from glora_search.space.layers import Genome
from glora_search.supernet.teacher import Teacher, draw_members
from glora_search.training.baselines import fitting_lora, lora_within
from glora_search.training.distillation import with_unlabelled
from glora_search.training.loop import steps_for
from glora_search.tuners.glora import save_adapter


def run_finals(run: Context, folder: Path) -> dict[str, Any]:
    """Race the search's best subnets against the uniform methods; leaves ``finals/``, the winner's adapter folder.

    ``finals/baseline/`` is the tuned uniform method, trained on equal terms and without a teacher.
    """
    settings = run.recipe.finals
    assert settings is not None
    return _Finals(run, folder, settings).run()


class _Finals:
    """What the trainings of one race share."""

    def __init__(self, run: Context, folder: Path, settings: Finals) -> None:
        self.context, self.folder, self.settings = run, folder, settings
        self.task, self.space = run.task, run.space
        self.args = run.arguments({**settings.training, **EVALUATED}, folder)
        self.steps = whole(steps_for(self.args, len(self.task.train)))
        self.trained = 0  # steps, by this process, in so many seconds
        self.seconds = 0.0
        self.factors = run.recipe.lr_factors(settings)

    def run(self) -> dict[str, Any]:
        """See `run_finals`."""
        self.taught = self._teach()
        field = finalists(
            self.space,
            self._best_subnets(),
            rates=self.settings.rates,
            lora=self._lora(),
            max_params=self.context.recipe.search.max_params,
            teacher=self.taught is not None,
        )
        if not field:
            budget = self.context.recipe.search.max_params
            raise invalid(
                "search.max_params", budget, "with finals, a budget within which a subnet or a method can train"
            )
        self._write_starts(field)
        storage = JournalStorage(JournalFile(self.folder / "journal.log"))
        finals = optuna.create_study(study_name=STUDY_NAME, storage=storage, load_if_exists=True)
        twins = 2 if self.taught is not None else 1
        planned = race_cost(len(field), twins)
        say(f"finals: {len(field)} finalists, about {planned:.1f} whole trainings of {self.steps} steps", "dim")
        with track("finals", round(planned * self.steps)) as self.bar:
            result = race(field, self._train_to, self.steps, study=finals)
        named = {one.name: one for one in field}
        winner = named[result.last[0]]
        if not math.isfinite(result.standings[winner.name].loss):
            rate = self.args.learning_rate
            raise invalid("finals.training.learning_rate", rate, "a lower one: every finalist has diverged")
        figures = self._keep(winner, result.standings[winner.name], self.folder)
        baseline = None
        if result.baseline is not None and math.isfinite(result.standings[result.baseline].loss):
            own, where = named[result.baseline], self.folder / "baseline"
            scored = self._keep(own, result.standings[own.name], where)
            baseline = {"name": f"{own.name}, tuned", "method": own.method, **scored}
        table = [
            {
                "name": one.name,
                "params": one.params,
                "steps": reached.step,
                "best_step": reached.best_step,
                "validation": reached.metric,
                "validation_loss": reached.loss,
            }
            for one in field
            for reached in [result.standings[one.name]]
        ]
        return {
            "winner": winner.name,
            "direction": self.task.direction,
            **figures,
            "baseline": baseline,
            "finalists": sorted(table, key=lambda row: (-row["steps"], row["validation_loss"])),
            "trainings": round(result.steps / self.steps, 2),
            "seconds_per_training": round(self.seconds / self.trained * self.steps, 1) if self.trained else None,
            **({"teacher": read_json(self.folder / "teacher.json")} if self.taught is not None else {}),
        }

    def _best_subnets(self) -> list[tuple[Genome, int]]:
        """The search's best subnets that have something to train, and their parameters."""
        table = pd.read_csv(self.context.folder / "search" / "trials.csv")
        best = ranked(table, self.context.recipe.search.score, self.task.direction).sort_values("rank")
        chosen = best[best["user_attrs_params"] > 0].head(self.settings.subnets)
        return [(genome_of(row), int(row["user_attrs_params"])) for _, row in chosen.iterrows()]

    # -- what the finalists start from -----------------------------------------------------------------------------

    def _lora(self) -> tuple[str, int] | None:
        """Name and parameters of the LoRA that fits the budget."""
        found = fitting_lora(self.space, self.context.recipe.search.max_params)
        if found is None:
            return None
        rank, layers = found
        where = "" if len(layers) == len(self.space.layers) else " on query+value"
        return f"LoRA r={rank}{where}", rank * sum(layer.in_features + layer.out_features for layer in layers)

    def _write_starts(self, field: list[Finalist]) -> None:
        """The weights that subnets inherit, each as an adapter folder; what is there is whole."""
        missing = [one for one in field if one.inherits and not (self._home(one) / "start" / "done").is_file()]
        if not missing:
            return
        evaluator = evaluator_of(self.context, self.folder)
        for one in missing:
            start, found = self._home(one) / "start", evaluator.inherit(one.genome or {})
            save_adapter(start, found.config, found.weights)
            (start / "done").write_text("")

    def _home(self, one: Finalist) -> Path:
        return self.folder / "trainings" / one.slug

    def _fresh(self, one: Finalist) -> PeftModel:
        """A finalist as it is at its beginning."""
        set_seed(self.context.recipe.seed)
        base, task = self.task.model(), self.task
        if one.inherits:
            return load_adapter(base, self._home(one) / "start", trainable=True)
        options: dict[str, Any] = {"task_type": task.task_type, "modules_to_save": task.modules_to_save or None}
        config: Any
        if one.genome is None:
            config = lora_within(
                self.space, self.context.recipe.search.max_params, task.task_type, task.modules_to_save
            )
        else:
            config = self.space.to_config(one.genome, **options)
        return get_peft_model(base, config)

    # -- the teacher -----------------------------------------------------------------------------------------------

    def _teach(self) -> Dataset | None:
        """What taught finalists learn from: the train rows, and unlabelled ones, with what the teacher says of them.

        The teacher is the mean of some of the supernet's subnets. None where there is no teacher.
        """
        members, recipe, task = self.settings.teacher, self.context.recipe, self.task
        if not members:
            return None
        largest = self.context.view.result("supernet").get("max_params", recipe.supernet_max_params)
        chosen = draw_members(self.space, count=members, max_params=largest, seed=recipe.seed)
        teacher = Teacher(self.context.load("supernet"), chosen, task, recipe.search.batch_size)
        worth = teacher.evaluate(task.validation)
        facts = {"members": members, "validation": worth.metric, "validation_loss": worth.loss}
        taught, unlabelled = teacher.teach(task.train), task.unlabelled()
        if unlabelled is not None:
            facts["unlabelled"] = len(unlabelled)
            taught = with_unlabelled(taught, teacher.teach(unlabelled))
        write_json(self.folder / "teacher.json", facts)
        return taught

    # -- training --------------------------------------------------------------------------------------------------

    def _args(self, one: Finalist) -> TrainingArguments:
        return finalist_args(self.args, self._home(one) / "checkpoints", rate=one.rate, steps=self.steps)

    def _train_to(self, one: Finalist, step: int) -> Standing:
        rows = self.taught if one.taught and self.taught is not None else self.task.train
        args, started = self._args(one), time.perf_counter()
        before = standing(Path(args.output_dir), self.task)
        reached = train_to(
            step,
            self._fresh(one),
            self.task,
            rows,
            self.task.validation,
            args,
            progress=self.bar,
            lr_factors=self.factors,
            teacher_share=self.settings.teacher_share,
        )
        self.trained += reached.step - (before.step if before else 0)
        self.seconds += time.perf_counter() - started
        return reached

    def _keep(self, one: Finalist, reached: Standing, where: Path) -> dict[str, Any]:
        """Write a finalist's best checkpoint as an adapter folder, and score it."""
        task = self.task
        best = best_checkpoint(self._home(one) / "checkpoints", reached.best_step)
        model = load_adapter(task.model(), best, trainable=True).to(self.context.device)
        scored, params = evaluate(model, self.context.validation, task), adapter_params(model)
        model.save_pretrained(str(where))
        task.processor.save_pretrained(str(where))
        write_card(where, task.model_path, self.context.facts(params, scored.metric))
        return {"params": params, "validation": scored.metric, "validation_loss": scored.loss}
