"""The whole thing in one call: a model and data of one's own in, the best adapter under a budget out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments, default_data_collator, set_seed

from glora_search.scoring import evaluate
from glora_search.search import Calibration, Evaluation, SubnetEvaluator, best_trial, calibration_args, search
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome
from glora_search.space.schema import SearchSpace
from glora_search.supernet import SizeSampling, SupernetConfig, SupernetTrainer, probe_subnets
from glora_search.training.trainer import PathTrainer
from glora_search.tuners.glora import GLoraConfig

Metric = Callable[[Tensor, Tensor], Tensor]
"""``logits [rows, ...], labels [rows, ...] -> [rows]``: what each row is worth; the mean is the metric."""


@dataclass
class Scoring:
    """What `SubnetEvaluator` needs to know of a task.

    Attributes:
        collator: rows -> batch.
        metric: ``logits [rows, ...], labels [rows, ...] -> [rows]``: what each row is worth; the mean over all rows is
            the metric.
    """

    collator: Any
    metric: Metric

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What each row is worth, and 1: ``[rows, 2]``."""
        worth = self.metric(logits, labels).float()
        return torch.stack([worth, torch.ones_like(worth)], dim=1)

    def score(self, sums: np.ndarray) -> float:
        """The mean over the rows."""
        return float(sums[0] / sums[1])


@dataclass(frozen=True)
class FoundAdapter:
    """What `find_adapter` returns.

    Attributes:
        model: the base model with the found adapter: to be trained on, saved, or merged.
        config: the adapter's fixed configuration.
        genome: gene -> choice.
        params: trainable parameters of the adapter, the head not counted.
        evaluation: metric and loss of ``model`` on the validation rows.
        inherited: the same with the weights of the supernet, before it was trained on.
        study: the search, one finished trial a subnet.
    """

    model: PeftModel
    config: GLoraConfig
    genome: Genome
    params: int
    evaluation: Evaluation
    inherited: Evaluation
    study: optuna.Study


def find_adapter(
    model: PreTrainedModel,
    train: Dataset,
    validation: Dataset,
    *,
    task_type: str | None,
    metric: Metric,
    args: TrainingArguments,
    retrain_args: TrainingArguments | None = None,
    space: str | SearchSpace | BoundSpace = "glora",
    max_params: int | None = None,
    trials: int = 200,
    calibration_steps: int = 0,
    data_collator: Any = None,
    modules_to_save: list[str] | None = None,
    lr_factors: Mapping[str, float] | None = None,
    direction: Literal["maximize", "minimize"] = "maximize",
    **search_options: Any,
) -> FoundAdapter:
    """Train a supernet, search it, and hand back the best subnet under the budget, trained on where that is asked.

    The stages are those of a recipe, in memory: `SupernetTrainer`, `SubnetEvaluator`, `search`, and `PathTrainer`.

    Args:
        model: the base model with its head, changed in place as ``get_peft_model`` does.
        train: tokenized rows with ``labels``.
        validation: the same, to search on. Keep a test split away from this function.
        task_type: as in peft; ``SEQ_CLS`` makes the classifier a part of what is trained and saved.
        metric: ``logits [rows, ...], labels [rows, ...] -> [rows]``: what each row is worth; the mean over all rows is
            the metric. Accuracy is ``lambda logits, labels: logits.argmax(-1) == labels``.
        args: of the supernet's training; the seed is the search's too, and so is the size of an evaluation batch.
        retrain_args: of training the found subnet on; None leaves it with its inherited weights. Where training on
            made the validation metric (or, at the same metric, the loss) worse, the inherited weights are kept.
        space: a space, a bound one, its file, or a shipped one's name.
        max_params: the budget: trainable parameters of the adapter; None is no budget.
        trials: subnets to evaluate.
        calibration_steps: train each subnet for so many steps before it is scored, see `Calibration`.
        data_collator: rows -> batch, as in ``Trainer``; None needs rows of one length.
        modules_to_save: as in peft: what is trained as it is, besides the head that the task type knows.
        lr_factors: learning rates by kind of path, see `PathTrainer`.
        direction: whether a higher or a lower metric is better.
        search_options: further arguments of `search`, e.g. ``sampler`` or ``storage``; ``score`` is ``loss``.

    Raises:
        UserError: the space does not fit the model, the budget is below the cheapest subnet, or an option of the search
            is wrong.
    """
    loaded = SearchSpace.load(space) if isinstance(space, str) else space
    bound = loaded.bind(model, modules_to_save or ()) if isinstance(loaded, SearchSpace) else loaded
    bound.check_budget(max_params)
    few_steps = None if calibration_steps == 0 else calibration_args(args, calibration_steps)
    set_seed(args.seed)
    supernet = get_peft_model(model, SupernetConfig(space=bound, task_type=task_type, modules_to_save=modules_to_save))
    collator = data_collator or default_data_collator
    trainer = SupernetTrainer(
        model=supernet,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collator,
        lr_factors=lr_factors,
        sampling=SizeSampling(bound, seed=args.seed, max_params=max_params),
        probes=probe_subnets(bound, max_params=max_params),
    )
    trainer.train()

    task = Scoring(collator, metric)
    calibration = None
    if few_steps is not None:
        calibration = Calibration(supernet, train, few_steps, data_collator=collator, lr_factors=lr_factors)
    evaluator = SubnetEvaluator(supernet, validation, task, args.per_device_eval_batch_size, calibration=calibration)
    options = {"score": "loss", "seed": args.seed, "direction": direction, **search_options}
    study = search(bound, evaluator, trials=trials, max_params=max_params, **options)
    genome = best_trial(study).params
    with evaluator.calibrated(genome):
        weights = supernet.subnet_state_dict(genome)
    config = supernet.subnet_config(genome)

    found = get_peft_model(supernet.unload(), config)
    set_peft_model_state_dict(found, weights)
    inherited = final = evaluate(found, evaluator.batches, task)
    if retrain_args is not None:
        PathTrainer(
            model=found,
            args=retrain_args,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=collator,
            lr_factors=lr_factors,
        ).train()
        final = evaluate(found, evaluator.batches, task)
        sign = 1 if direction == "maximize" else -1
        if (sign * final.metric, -final.loss) < (sign * inherited.metric, -inherited.loss):
            set_peft_model_state_dict(found, weights)
            final = inherited
    return FoundAdapter(found.eval(), config, genome, bound.params(genome), final, inherited, study)
