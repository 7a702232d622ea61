"""The stages in order: from a recipe to a merged model."""

from __future__ import annotations

import functools
import hashlib
import time
from pathlib import Path
from typing import Any

import optuna
import torch
from peft import PeftModel, get_peft_model
from transformers import EarlyStoppingCallback, Trainer, set_seed

from glora_search.adapters.card import write_card
from glora_search.adapters.export import export_stock, export_subnet
from glora_search.adapters.load import adapter_params, load_adapter, merge
from glora_search.files.text import write_json
from glora_search.progress import say, track
from glora_search.recipe.arguments import TRAINING_DEFAULTS
from glora_search.recipe.schema import Recipe
from glora_search.run.folder import RunFolder, environment, is_made_from, make
from glora_search.run.stages import COMMANDS, NEEDS, STAGES
from glora_search.scoring import Batches, evaluate, length_sorted_batches, logits_of
from glora_search.search import Calibration, SubnetEvaluator, calibration_args, make_sampler, search
from glora_search.search.results import show_progress, summary, trials_frame
from glora_search.search.shared.storage import open_storage
from glora_search.search.shared.workers import helped_by
from glora_search.search.trials import STUDY_NAME
from glora_search.space.bound import BoundSpace
from glora_search.space.schema import SearchSpace
from glora_search.supernet import Sampling, SupernetConfig, SupernetTrainer, make_sampling, probe_subnets
from glora_search.tasks import Task, make_task, task_class
from glora_search.training.baselines import lora_within, subnet_to_train
from glora_search.training.loop import train, training_arguments


class Run(RunFolder):
    """The stages of one experiment: each finds its inputs in the run folder and leaves its result there."""

    @classmethod
    def create(cls, recipe: Recipe, folder: str | Path | None = None) -> Run:
        """Make a run folder, or open the one that the same recipe made before.

        The recipe, its space, its model and its data are checked against each other before anything is written.

        Args:
            folder: None is ``runs/<recipe's name>``.

        Raises:
            UserError: the folder was made from another recipe or space; what is in it stays as it is. Or the recipe
                cannot be run.
        """
        folder = Path(folder) if folder is not None else Path("runs") / recipe.name
        if is_made_from(folder, recipe):
            return cls(folder)
        task = _check(recipe)
        make(folder, recipe)
        run = cls(folder)
        run.task = task
        return run

    # -- what the stages share -------------------------------------------------------------------------------------

    @functools.cached_property
    def task(self) -> Task:
        """The recipe's task, its train and validation rows loaded."""
        return make_task(self.recipe)

    @functools.cached_property
    def space(self) -> BoundSpace:
        """The run's own copy of the search space, bound to the model."""
        model = self.task.model()
        return SearchSpace.load(self.folder / "space.yaml").bind(model, self.task.modules_to_save)

    @functools.cached_property
    def device(self) -> torch.device:
        """Where models are scored: the accelerator, if there is one and the recipe does not say ``use_cpu``."""
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        use_cpu = self.recipe.supernet.training.get("use_cpu", False)
        return torch.device("cpu") if accelerator is None or use_cpu else accelerator

    def _load(self, adapter: Path, *, trainable: bool = False) -> PeftModel:
        return load_adapter(self.task.model(), adapter, trainable=trainable).to(self.device)

    @functools.cached_property
    def validation(self) -> list[dict[str, torch.Tensor]]:
        """The validation rows in batches."""
        return length_sorted_batches(self.task.validation, self.task.collator, self.recipe.search.batch_size)

    def _train(self, model: Any, settings: dict[str, Any], folder: Path, description: str, **options: Any) -> Trainer:
        """Train on the train rows; what the settings evaluate is evaluated on the validation rows."""
        task = self.task
        if str(settings.get("metric_for_best_model")).endswith(task.metric):
            settings = {"greater_is_better": task.direction == "maximize", **settings}
        return train(
            model,
            task.train,
            task.collator,
            settings,
            folder,
            seed=self.recipe.seed,
            description=description,
            eval_dataset=task.validation,
            preprocess_logits_for_metrics=lambda logits, labels: task.tally(_first(logits), labels),
            compute_metrics=lambda found: {task.metric: task.score(found.predictions.astype(float).sum(0))},
            **options,
        )

    def check_inputs(self) -> None:
        """Load the data and the model, and bind the space.

        Raises:
            UserError: what the recipe names is not there any more.
        """
        _ = self.space

    # -- the stages ------------------------------------------------------------------------------------------------

    def train_supernet(self) -> dict[str, Any]:
        """Train all choices of every layer jointly; leaves ``supernet/``."""
        return self._stage("supernet", self._train_supernet)

    def _train_supernet(self, folder: Path) -> dict[str, Any]:
        write_json(self.folder / "environment.json", environment())
        recipe, task = self.recipe, self.task
        base = task.model()
        config = SupernetConfig(
            space=self.space,
            sharing=recipe.supernet.sharing,
            task_type=task.task_type,
            modules_to_save=task.modules_to_save,
        )
        model = get_peft_model(base, config)
        patience = recipe.supernet.patience
        trainer = self._train(
            model,
            recipe.supernet.settings(task.metric),
            folder,
            "train-supernet",
            trainer_cls=SupernetTrainer,
            sampling=_sampling(recipe, self.space),
            probes=probe_subnets(self.space, max_params=recipe.search.max_params),
            lr_factors=recipe.supernet.lr_factors,
            callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
        )
        write_json(folder / "history.json", trainer.state.log_history)
        model.save_pretrained(str(folder))
        size = {"layers": len(self.space.layers), "genes": len(self.space.genes), "genomes": str(self.space.count())}
        return {"metric": task.metric, "direction": task.direction, **size}

    def _evaluator(self) -> SubnetEvaluator:
        """What scores the supernet's subnets, each trained a little before where the recipe says so."""
        recipe, task = self.recipe, self.task
        steps, size = recipe.search.calibration_steps, recipe.search.batch_size
        supernet = self._load(self.folder / "supernet", trainable=steps > 0)
        calibration = None
        if steps:
            args = training_arguments(recipe.supernet.training, self.folder / "supernet", recipe.seed)
            options = {"data_collator": task.collator, "lr_factors": recipe.supernet.lr_factors}
            calibration = Calibration(supernet, task.train, calibration_args(args, steps), **options)
        return SubnetEvaluator(supernet, task.validation, task, size, calibration=calibration)

    def search(self, *, workers: int = 1, storage: str | None = None) -> dict[str, Any]:
        """Search the best subnet under the budget; leaves ``search/`` with the journal and ``trials.csv``.

        Where another process searches in this run folder already, this one joins it.

        Args:
            workers: processes on this machine, this one included.
            storage: what workers of other machines share, see `search.open_storage`; None is the journal in the run
                folder, which can lie on a shared disk.
        """
        self.result(NEEDS["search"])
        if self.done("search") is None and self._is_busy():
            say("search: joining the search that is going on in this run folder")
            self.work_on_search(workers=workers, storage=storage)
            while self.done("search") is None and self._is_busy():
                time.sleep(0.5)  # until the process that was here first has noted the result
        return self._stage("search", lambda folder: self._search(folder, workers, storage))

    def _search(self, folder: Path, workers: int, storage: str | None) -> dict[str, Any]:
        study = self.work_on_search(workers=workers, storage=storage)
        trials_frame(study).to_csv(folder / "trials.csv", index=False)
        return summary(study)

    def work_on_search(self, *, workers: int = 1, storage: str | None = None) -> optuna.Study:
        """Evaluate subnets until the search is complete, as one of its workers; see `search`."""
        settings = self.recipe.search
        evaluator = self._evaluator()
        with helped_by(workers - 1, self.folder, storage), track("search", settings.trials) as bar:
            return search(
                self.space,
                evaluator,
                sampler=settings.sampler,
                trials=settings.trials,
                max_params=settings.max_params,
                objective=settings.objective,
                score=settings.score,
                direction=self.task.direction,
                seed=self.recipe.seed,
                options=settings.options,
                racing=settings.racing,
                storage=storage or self.folder / "search" / "journal.log",
                study_name=self.study_name() if storage else STUDY_NAME,
                on_trial=show_progress(bar),
            )

    def study_name(self) -> str:
        """The search's name in a storage that others use too: the same on each machine that has this run folder."""
        self.result("supernet")
        digest = hashlib.sha256()
        for name in ("recipe.yaml", "space.yaml", "supernet/adapter_model.safetensors"):
            digest.update((self.folder / name).read_bytes())
        return f"{self.recipe.name}-{digest.hexdigest()[:12]}"

    def forget_shared_search(self, storage: str) -> None:
        """Remove this run's search from a storage that workers share, so that it is done again."""
        opened = open_storage(storage)
        for name in (self.study_name(), f"{self.study_name()}.workers"):
            if name in optuna.get_all_study_names(opened):
                optuna.delete_study(study_name=name, storage=opened)

    def export(self) -> dict[str, Any]:
        """Write the best subnet with the weights that it was scored with as an adapter folder; leaves ``best/``."""
        return self._stage("best", self._export)

    def _export(self, folder: Path) -> dict[str, Any]:
        best = self.result("search")["best"]
        evaluator = self._evaluator()
        with evaluator.calibrated(best["genome"]):
            if self.recipe.search.calibration_steps:  # with other threads or hardware not the same to the last bit
                with evaluator.supernet.folded(best["genome"]):
                    scored = evaluate(evaluator.supernet, evaluator.batches, self.task)
                best = {**best, "validation": scored.metric, "validation_loss": scored.loss}
            facts = self._facts(best["params"], best["validation"])
            export_subnet(evaluator.supernet, best["genome"], folder, base_model=self.task.model_path, facts=facts)
        self.task.processor.save_pretrained(str(folder))
        return {key: best[key] for key in ("params", "validation", "validation_loss")}

    def retrain(self) -> dict[str, Any]:
        """Train the best subnet on; leaves ``retrained/``."""
        return self._stage("retrained", self._retrain)

    def _retrain(self, folder: Path) -> dict[str, Any]:
        recipe, task = self.recipe, self.task
        set_seed(recipe.seed)
        model = subnet_to_train(task.model(), self.folder / "best", start=recipe.retrain.start)
        factors = recipe.lr_factors(recipe.retrain)
        if any(parameter.requires_grad for parameter in model.parameters()):
            self._train(model, recipe.retrain.training, folder, "retrain", lr_factors=factors)
        scored = evaluate(model, self.validation, task)
        params = adapter_params(model)
        model.save_pretrained(str(folder))
        task.processor.save_pretrained(str(folder))
        write_card(folder, task.model_path, self._facts(params, scored.metric))
        return {"params": params, "validation": scored.metric, "validation_loss": scored.loss}

    def final(self) -> tuple[str, dict[str, Any]]:
        """``best`` or ``retrained``, whichever is better on validation, and its figures."""
        found = {name: done for name in ("retrained", "best") if (done := self.done(name)) is not None}
        better = task_class(self.recipe.task.type).rank
        name = min(found, key=lambda name: better(found[name]))
        return name, found[name]

    def export_as(self, form: str) -> Path:
        """Write the final subnet in a format of peft's own; leaves ``exports/<form>``.

        Args:
            form: ``peft`` (stock GLoRA) or ``lora``.

        Returns:
            The folder.

        Raises:
            UserError: there is no subnet yet, or the format cannot express it.
        """
        self.result("best")
        source, figures = self.final()
        folder = self.folder / "exports" / form
        facts = {**self._facts(figures["params"], figures["validation"]), "exported from": source}
        with self._working():
            folder.parent.mkdir(exist_ok=True)
            model = self._load(self.folder / source)
            export_stock(model, form, folder, base_model=self.task.model_path, facts=facts)
            self.task.processor.save_pretrained(str(folder))
        return folder

    def merge(self) -> dict[str, Any]:
        """Fold the final subnet into the base weights; leaves ``merged/``, a plain transformers folder."""
        return self._stage("merged", self._merge)

    def _merge(self, folder: Path) -> dict[str, Any]:
        source, _ = self.final()
        with track("merge", 3) as bar:
            model = self._load(self.folder / source)
            before = logits_of(model, self.validation)
            bar.advance()
            plain = merge(model)
            after = logits_of(plain, self.validation)
            scored = evaluate(plain, self.validation, self.task)
            bar.advance()
            plain.save_pretrained(str(folder))
            self.task.processor.save_pretrained(str(folder))
            bar.advance()
        return {
            "source": source,
            "validation": scored.metric,
            "max_abs_logit_difference": max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)),
        }

    def baselines(self) -> dict[str, Any]:
        """Train the recipe's baselines; leaves ``baselines/``."""
        return self._stage("baselines", self._baselines)

    def _baselines(self, folder: Path) -> dict[str, Any]:
        recipe, task = self.recipe, self.task
        result: dict[str, Any] = {"list": [], "skipped": []}
        for name in recipe.baselines:
            budget = recipe.search.max_params
            config = lora_within(self.space.layers, budget, task.task_type, task.modules_to_save)
            if config is None:
                result["skipped"].append(f"{name}: not even rank 1 on query and value fits the budget")
                continue
            set_seed(recipe.seed)
            model = get_peft_model(task.model(), config)
            where = folder / name
            factors = recipe.lr_factors(recipe.baseline)
            self._train(model, self._baseline_training(), where, name, lr_factors=factors)
            scored = evaluate(model, self.validation, task)
            model.save_pretrained(str(where))
            entry = {"name": f"{name} r={config.r}", "method": name, "params": adapter_params(model)}
            result["list"].append({**entry, "validation": scored.metric})
        return result

    def _baseline_training(self) -> dict[str, Any]:
        """The supernet's settings, for as many epochs (or steps) as the supernet and retraining take together."""
        both = [TRAINING_DEFAULTS | part.training for part in (self.recipe.supernet, self.recipe.retrain)]
        total = {"num_train_epochs": sum(settings["num_train_epochs"] for settings in both)}
        if all(settings.get("max_steps", -1) > 0 for settings in both):
            total["max_steps"] = sum(settings["max_steps"] for settings in both)
        return {**self.recipe.supernet.training, **total, **self.recipe.baseline.training}

    def evaluate(self) -> dict[str, Any]:
        """Read the test split, this once, and score what was made; leaves ``metrics.json`` and ``report.html``."""
        from glora_search.report import write_report

        metrics = self.done("test")
        if metrics is None:
            self.result("merged")
            with self._working():
                metrics = self._evaluate()
        write_report(self)
        return metrics

    def _evaluate(self) -> dict[str, Any]:
        started = time.perf_counter()
        task, recipe = self.task, self.recipe
        merged, found = self.result("merged"), self.result("search")
        baselines = self.done("baselines") or {"list": [], "skipped": []}
        source, figures = merged["source"], self.result(merged["source"])
        batches = Batches(task.test_split(), task.collator, recipe.search.batch_size)

        adapters = [*(f"baselines/{entry['method']}" for entry in baselines["list"]), *dict.fromkeys(["best", source])]
        scores: dict[str, float] = {}
        with track("evaluate", len(adapters) + 1) as bar:
            for name in adapters:
                scores[name] = evaluate(self._load(self.folder / name), batches, task).metric
                bar.advance()
            merged_folder = str(self.folder / "merged")
            options = {"trust_remote_code": recipe.task.trust_remote_code}
            plain = task.auto_class.from_pretrained(merged_folder, **options).to(self.device)
            scores["merged"] = evaluate(plain, batches, task).metric
            bar.advance()
        metrics: dict[str, Any] = {
            "name": recipe.name,
            "metric": task.metric,
            "direction": task.direction,
            "budget": recipe.search.max_params,
            "rows": {"train": len(task.train), "validation": len(task.validation), "test": len(batches.dataset)},
            "baselines": [{**entry, "test": scores[f"baselines/{entry['method']}"]} for entry in baselines["list"]],
            "notes": [*baselines["skipped"], *self._notes()],
            "search": {
                **{key: found[key] for key in ("trials", "evaluated", "seconds_per_evaluation")},
                **({"calibration_steps": steps} if (steps := recipe.search.calibration_steps) else {}),
                "best": {
                    "validation": self.result("best")["validation"],
                    **{key: found["best"][key] for key in ("params", "origin")},
                    "test": scores["best"],
                },
            },
            "final": {
                "source": {"best": "inherited"}.get(source, source),
                "params": figures["params"],
                "validation": figures["validation"],
                "test": scores[source],
            },
            "merged": {
                "max_abs_logit_difference": merged["max_abs_logit_difference"],
                "validation": merged["validation"],
                "test": scores["merged"],
            },
            "seconds": {COMMANDS[name]: done["seconds"] for name in STAGES[:-1] if (done := self.done(name))},
        }
        metrics["seconds"]["evaluate"] = round(time.perf_counter() - started, 1)
        write_json(self.folder / "metrics.json", metrics)
        return metrics

    def _notes(self) -> list[str]:
        """What the figures alone would not tell."""
        found, share = self.result("best"), self.task.trivial_score()
        notes = []
        sign = 1 if self.task.direction == "maximize" else -1
        if share is not None and sign * found["validation"] <= sign * share:
            notes.append(
                f"the search found nothing better than the best constant answer ({share:.4f} on validation): the "
                "supernet needs more epochs or another learning rate"
            )
        if found["params"] == 0:
            trained = "the head alone was trained" if self.task.data.labels else "nothing was trained"
            notes.append(f"the best subnet has no adapter parameters at all: {trained}")
        again = self.done("retrained")
        if again is not None and self.final()[0] == "best":
            notes.append(
                f"retraining was worse on validation ({again['validation']:.4f}); the inherited weights are kept"
            )
        return notes

    def all_stages(self) -> dict[str, Any]:
        """Every stage that is not done yet, in order.

        Returns:
            The content of ``metrics.json``.
        """
        self.train_supernet()
        self.search()
        self.export()
        self.retrain()
        self.merge()
        if self.recipe.baselines:
            self.baselines()
        return self.evaluate()

    def _facts(self, params: int, validation: float) -> dict[str, Any]:
        labels = self.task.data.labels
        return {
            "experiment": self.recipe.name,
            **({"labels": len(labels)} if labels else {}),
            "adapter parameters": f"{params:,}",
            "budget": self.recipe.search.max_params,
            f"validation {self.task.metric}": f"{validation:.4f}",
        }


def _sampling(recipe: Recipe, space: BoundSpace) -> Sampling:
    settings = recipe.supernet
    budget = recipe.search.max_params
    options = settings.sampling_options
    return make_sampling(settings.sampling, space, seed=recipe.seed, max_params=budget, options=options)


def _first(outputs: Any) -> torch.Tensor:
    """The logits, of a model that has more to say than those."""
    logits: torch.Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits


def _check(recipe: Recipe) -> Task:
    """Everything that can be wrong with a recipe and is cheap to find out, before the first stage."""
    say("reading data and model", "dim")
    task = make_task(recipe)
    space = SearchSpace.load(recipe.space).bind(task.model(), task.modules_to_save)
    space.check_budget(recipe.search.max_params)
    _sampling(recipe, space)
    make_sampler(recipe.search.sampler, space, max_params=recipe.search.max_params, options=recipe.search.options)
    return task
