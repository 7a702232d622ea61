"""Training a supernet from a base model: what a recipe's first stage and `find_adapter` both do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainingArguments

from glora_search.scoring import Scoring
from glora_search.space.bound import BoundSpace
from glora_search.supernet.config import SupernetConfig
from glora_search.supernet.probes import probe_subnets
from glora_search.supernet.sampling import make_sampling
from glora_search.supernet.trainer import SupernetTrainer
from glora_search.training.loop import train


def train_supernet(
    model: PreTrainedModel,
    space: BoundSpace,
    scoring: Scoring,
    rows: Dataset,
    validation: Dataset,
    args: TrainingArguments,
    *,
    task_type: str | None,
    modules_to_save: list[str] | None = None,
    sharing: str = "separate",
    sampling: str = "sizes",
    sampling_options: Mapping[str, Any] | None = None,
    lr_factors: Mapping[str, float] | None = None,
    patience: int | None = None,
    max_params: int | None = None,
    resume: bool = False,
    description: str = "train-supernet",
    trainer_cls: type[Trainer] = SupernetTrainer,
) -> tuple[PeftModel, Trainer]:
    """Train all choices of every layer jointly.

    Args:
        model: the base model with its head, changed in place as ``get_peft_model`` does. Its random numbers, and so
            the supernet's first weights, are the caller's to seed.
        scoring: the collator and the metric.
        rows, validation: encoded rows with ``labels``.
        args: as in ``Trainer``; the seed is that of the sampling too.
        task_type, modules_to_save: as in peft.
        sharing: how the kinds of a path share weights, see `SupernetConfig`.
        sampling, sampling_options: which subnets the steps train, see `make_sampling`.
        lr_factors: learning rates by kind of path, see `PathTrainer`.
        patience: stop after so many evaluations that did not better the probes' mean metric; None trains to the end.
        max_params: the search's budget.
        resume, description: see `glora_search.training.loop.train`.
        trainer_cls: a `SupernetTrainer`.

    Returns:
        The supernet and its trainer.

    Raises:
        UserError: an unknown sampling or option.
    """
    config = SupernetConfig(space=space, sharing=sharing, task_type=task_type, modules_to_save=modules_to_save)
    supernet = get_peft_model(model, config)
    space = supernet.space  # without what modules_to_save trains as it is
    strategy = make_sampling(sampling, space, seed=args.seed, max_params=max_params, options=sampling_options)
    trainer = train(
        supernet,
        scoring,
        rows,
        validation,
        args,
        description=description,
        resume=resume,
        trainer_cls=trainer_cls,
        sampling=strategy,
        probes=probe_subnets(space, max_params=max_params),
        lr_factors=lr_factors,
        callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
    )
    assert trainer is not None  # a supernet has something to train
    return supernet, trainer
