"""All stages in one call: a model and data of one's own in, the best adapter under a budget out."""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments, set_seed

from glora_search.compat import BaseTunerLayer
from glora_search.errors import invalid
from glora_search.files.arguments import check_some
from glora_search.finals.contest import check_field
from glora_search.find.checks import check_best, check_patience, check_rows, rows_for, settings_of
from glora_search.find.found import FoundAdapter
from glora_search.find.race import race_of
from glora_search.ranking import is_finite, rank_key
from glora_search.recipe.schema import TEACHER_SIZE
from glora_search.scoring import Evaluation, Metric, RowMetric, evaluate, has_diverged
from glora_search.search.calibration import calibration_args, subnet_evaluator
from glora_search.search.evaluator import SubnetEvaluator
from glora_search.search.shared.storage import open_storage
from glora_search.search.study import check_search, search
from glora_search.search.trials import best_trial
from glora_search.space import BoundSpace, SearchSpace
from glora_search.space.binding import check_fits
from glora_search.supernet import make_sampling
from glora_search.supernet.train import train_supernet
from glora_search.tasks.models import heads_of
from glora_search.training.loop import train as train_on
from glora_search.tuners.heads import HEADS, loss_in_float32, train_in_float32
from glora_search.vocabulary import check_lr_factors


def find_adapter(
    model: PreTrainedModel,
    train: Dataset,
    validation: Dataset,
    *,
    task_type: str | None,
    metric: Metric,
    args: TrainingArguments,
    retrain_args: TrainingArguments | None = None,
    finals: Mapping[str, Any] | None = None,
    space: str | SearchSpace | BoundSpace = "glora-ranks",
    max_params: int | None = None,
    sampling: str = "sizes",
    sampling_options: Mapping[str, Any] | None = None,
    sharing: str = "separate",
    trials: int = 1000,
    score: Literal["loss", "metric"] = "loss",
    calibration_steps: int = 0,
    fold: bool | None = None,
    batch_size: int = 64,
    data_collator: Any = None,
    modules_to_save: list[str] | None = None,
    lr_factors: Mapping[str, float] | Literal["auto"] = "auto",
    patience: int | None = None,
    direction: Literal["maximize", "minimize"] = "maximize",
    **search_options: Any,
) -> FoundAdapter:
    """Train a supernet, search it, and return the best subnet under the budget, trained on where that is asked.

    The stages are those of a recipe, in memory, with the same functions and the same defaults.

    Args:
        model: the base model with its head, changed in place as ``get_peft_model`` does.
        train: tokenized rows with ``labels``. Columns that the model does not take are dropped, as Trainer does.
        validation: the same, to search on. Keep a test split away from this function.
        task_type: as in peft, where it makes the head a part of what is trained and saved: the classifier of
            ``SEQ_CLS`` and ``TOKEN_CLS``.
        metric: ``logits [rows, ...], labels [rows, ...] -> [rows]``: what each row is worth; the mean over all rows is
            the metric. Accuracy is ``lambda logits, labels: logits.argmax(-1) == labels``.
        args: of the supernet's training; the seed is the search's too.
        retrain_args: of training the found subnet on; None leaves it with its inherited weights. Where training on
            made the validation metric (or, at the same metric, the loss) worse, the inherited weights are kept; a
            warning says where it has diverged.
        finals: ends the search in a race of trainings, each with ``retrain_args`` but for what they evaluate and save,
            which compares losses: a mapping of ``subnets``, ``methods``, ``rates``, ``teacher``, ``teacher_share``
            and ``margin``, as in a recipe; ``{}`` takes their defaults.
        space: a space, a bound one, its file, or a shipped one's name.
        max_params: the budget: trainable parameters of the adapter; None is no budget.
        sampling, sampling_options: which subnets the supernet's steps train, as in a recipe.
        sharing: how the kinds of a path share weights, ``separate`` or ``nested``.
        trials: subnets to evaluate.
        score: what is searched for on the validation rows: the loss, which is smooth, or the metric.
        calibration_steps: train each subnet for so many steps before it is scored, see `Calibration`.
        fold: score subnets folded into the base weights; None does so where memory allows, see `SubnetEvaluator`.
        batch_size: rows of an evaluation batch.
        data_collator: rows -> batch, as in ``Trainer``; None needs rows of one length.
        modules_to_save: as in peft: what is trained as it is, besides the head that the task type knows. None without
            a task type is the head, such as an image classifier's, but not that of a language model.
        lr_factors: learning rates by kind of path, see `PathTrainer`; ``{}`` is one rate for all.
        patience: stop the supernet's training after so many evaluations that did not better it, see `train_supernet`;
            the arguments must evaluate and load the best model at the end.
        direction: whether a higher or a lower metric is better.
        search_options: further arguments of `search`, e.g. ``sampler`` or ``storage``.

    Raises:
        UserError: the model has adapters already, the space does not fit the model, the budget is below the cheapest
            subnet, rows have no labels, the metric gives something else than a value for each row, finals with a
            teacher are given rows with a transform, an option of the search is wrong, or the supernet's training
            diverges.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        allowed = (
            "one without adapters, such as those of an earlier search: load it anew, or call merge_and_unload first"
        )
        raise invalid("model", type(model).__name__, allowed)
    if modules_to_save is None and task_type is None:
        modules_to_save = _own_heads(model)
    loaded = SearchSpace.load(space) if isinstance(space, str) else space
    if isinstance(loaded, SearchSpace):
        bound = loaded.bind(model, modules_to_save or ())
    else:
        bound = loaded
        check_fits(bound, model)
    if task_type == "SEQ_2_SEQ_LM":
        loss_in_float32(model)
    train_in_float32(model, [*HEADS.get(task_type or "", ()), *(modules_to_save or [])])
    check_some(search, "search", {"trials": trials, "score": score, "direction": direction, **search_options})
    check_some(subnet_evaluator, "", {"batch_size": batch_size, "fold": fold})
    if (storage := search_options.get("storage")) is not None:
        open_storage(storage)
    check_patience(patience, args)
    lr_factors = check_lr_factors(lr_factors)
    early = {
        name: value for name, value in search_options.items() if name in inspect.signature(check_search).parameters
    }
    check_search(bound, **{"max_params": max_params, "seed": args.seed, **early})
    if calibration_steps != 0:
        calibration_args(args, calibration_steps)  # refused before the training, not after it
    make_sampling(sampling, bound, max_params=max_params, options=sampling_options)
    scoring = RowMetric(metric, data_collator, direction)
    train, validation = (
        rows_for(model, rows, name, args, scoring) for name, rows in (("train", train), ("validation", validation))
    )
    ending = None if finals is None else settings_of(finals, retrain_args, train)
    if retrain_args is not None and ending is None:
        check_best(retrain_args)
    if ending is not None:
        check_field(bound, max_params, ending, key="max_params")
    largest = max_params
    if ending is not None and ending.teacher and max_params is not None:
        largest = TEACHER_SIZE * max_params  # larger subnets teach better
    check_rows(model, bound, validation, scoring, args, taught=ending is not None and ending.teacher > 0)
    set_seed(args.seed)
    supernet, _ = train_supernet(
        model,
        bound,
        scoring,
        train,
        validation,
        args,
        task_type=task_type,
        modules_to_save=modules_to_save,
        sharing=sharing,
        sampling=sampling,
        sampling_options=sampling_options,
        lr_factors=lr_factors,
        patience=patience,
        max_params=largest,
    )
    if has_diverged(supernet):
        raise invalid("args.learning_rate", args.learning_rate, "a lower one: the supernet has diverged")
    bound = supernet.space
    evaluator = subnet_evaluator(
        supernet,
        scoring,
        train,
        validation,
        args,
        calibration_steps=calibration_steps,
        lr_factors=lr_factors,
        batch_size=batch_size,
        fold=fold,
    )
    scored = _digest(supernet, evaluator) + (f"-{calibration_steps}" if calibration_steps else "")
    if search_options.get("storage") is not None:
        scored += f"-{evaluator(bound.largest).metric:.3g}"  # with it, trials of another metric
    options = {"score": score, "seed": args.seed, "direction": direction, "weights": scored}
    study = search(bound, evaluator, trials=trials, max_params=max_params, **{**options, **search_options})
    if ending is not None:
        assert retrain_args is not None
        rows = (train, validation)
        return race_of(supernet, evaluator, study, rows, retrain_args, ending, (max_params, largest), lr_factors)

    genome = best_trial(study).params
    inherited = evaluator.inherit(genome)
    found = get_peft_model(supernet.unload(), inherited.config)
    set_peft_model_state_dict(found, inherited.weights)
    final = inherited.evaluation
    if retrain_args is not None:
        description = "retrain"
        train_on(found, scoring, train, validation, retrain_args, description=description, lr_factors=lr_factors)
        final = evaluate(found, evaluator.batches, scoring)
        if has_diverged(found):
            final = Evaluation(math.nan, math.nan)
        if not is_finite(final.metric, final.loss):
            rate = retrain_args.learning_rate
            warnings.warn(
                f"retraining has diverged: the inherited weights are kept. Lower retrain_args.learning_rate, {rate:g}",
                stacklevel=2,
            )
        before, after = (rank_key(one.metric, one.loss, direction=direction) for one in (inherited.evaluation, final))
        if before < after:
            set_peft_model_state_dict(found, inherited.weights)
            final = inherited.evaluation
    return FoundAdapter(
        found.eval(), inherited.config, genome, bound.params(genome), final, inherited.evaluation, study
    )


def _own_heads(model: PreTrainedModel) -> list[str]:
    """The head that peft does not know of without a task type; a language model's stays as it is."""
    return heads_of(model) if model.get_output_embeddings() is None else []


def _digest(supernet: nn.Module, evaluator: SubnetEvaluator) -> str:
    """A short name of what scores are made from: a storage that holds those of another supernet, or of other
    validation rows, is refused."""
    digest = hashlib.sha256()
    trained = [parameter for parameter in supernet.parameters() if parameter.requires_grad]
    for value in (*trained, *(value for batch in evaluator.batches for value in batch.values())):
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            plain = value is None or isinstance(value, (bool, int, float, str))
            digest.update((repr(value) if plain else type(value).__name__).encode())
    return digest.hexdigest()[:24]
