"""The whole thing in one call: a model and data of one's own in, the best adapter under a budget out."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments, set_seed

from glora_search.adapters.load import adapter_params, load_adapter
from glora_search.compat import BaseTunerLayer
from glora_search.errors import invalid
from glora_search.files.checked import validate
from glora_search.finals.contest import NOBODY_RACES, Contest, check_field
from glora_search.finals.finalists import Finalist, Subnet, distinct
from glora_search.finals.lessons import Lesson
from glora_search.finals.race import STUDY_NAME
from glora_search.ranking import is_finite, rank_key
from glora_search.recipe.arguments import EVALUATED
from glora_search.recipe.schema import TEACHER_SIZE, Finals
from glora_search.scoring import Batches, Evaluation, Metric, RowMetric, Sums, evaluate, has_diverged
from glora_search.search.calibration import calibration_args, subnet_evaluator
from glora_search.search.evaluator import SubnetEvaluator
from glora_search.search.study import check_search, search
from glora_search.search.trials import LOSS, PARAMS, best_trial, trial_key
from glora_search.space import BoundSpace, Genome, SearchSpace
from glora_search.supernet import make_sampling
from glora_search.supernet.teacher import Teacher, draw_members
from glora_search.supernet.train import train_supernet
from glora_search.tasks.models import heads_of
from glora_search.training.answers import check_teachable
from glora_search.training.loop import train as train_on
from glora_search.tuners.heads import HEADS, bare, loss_in_float32, train_in_float32
from glora_search.vocabulary import check_lr_factors


@dataclass(frozen=True)
class FoundAdapter:
    """What `find_adapter` returns.

    Attributes:
        model: the base model with the found adapter: to be trained on, saved, or merged.
        config: the adapter's fixed configuration; peft's ``LoraConfig`` where LoRA has won the finals.
        genome: gene -> choice; None where a uniform method has won.
        params: trainable parameters of the adapter, the head not counted.
        evaluation: metric and loss of ``model`` on the validation rows.
        inherited: of the search's best subnet, with the weights of the supernet, before it was trained on.
        study: the search, one finished trial a subnet.
        finals: how the race ended, a row for each finalist, the winner first; empty without one.
        baseline: the name of the tuned uniform method among them, trained without a teacher; None without one.
    """

    model: PeftModel
    config: PeftConfig
    genome: Genome | None
    params: int
    evaluation: Evaluation
    inherited: Evaluation
    study: optuna.Study
    finals: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    baseline: str | None = None


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
            which compares losses: a mapping of ``subnets``, ``methods``, ``rates``, ``teacher`` and ``teacher_share``,
            as in a recipe; ``{}`` takes their defaults.
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
    bound = loaded.bind(model, modules_to_save or ()) if isinstance(loaded, SearchSpace) else loaded
    if task_type == "SEQ_2_SEQ_LM":
        loss_in_float32(model)
    train_in_float32(model, [*HEADS.get(task_type or "", ()), *(modules_to_save or [])])
    inspect.signature(search).bind_partial(**search_options)
    lr_factors = check_lr_factors(lr_factors)
    early = {
        name: value for name, value in search_options.items() if name in inspect.signature(check_search).parameters
    }
    check_search(bound, max_params=max_params, seed=args.seed, **early)
    if calibration_steps != 0:
        calibration_args(args, calibration_steps)  # refused before the training, not after it
    make_sampling(sampling, bound, max_params=max_params, options=sampling_options)
    scoring = RowMetric(metric, data_collator, direction)
    train, validation = (
        _rows_for(model, rows, name, args, scoring) for name, rows in (("train", train), ("validation", validation))
    )
    ending = None if finals is None else _checked(finals, retrain_args, train)
    if retrain_args is not None and ending is None:
        _check_best(retrain_args)
    if ending is not None:
        check_field(bound, max_params, ending, key="max_params")
    largest = max_params
    if ending is not None and ending.teacher and max_params is not None:
        largest = TEACHER_SIZE * max_params  # larger subnets teach better
    _check_rows(model, validation, scoring, args, taught=ending is not None and ending.teacher > 0)
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
    genome = best_trial(study).params
    inherited = evaluator.inherit(genome)
    if ending is not None:
        assert retrain_args is not None
        rows = (train, validation)
        return _race(supernet, evaluator, study, rows, retrain_args, ending, (max_params, largest), lr_factors)

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


def _rows_for(model: PreTrainedModel, rows: Dataset, name: str, args: TrainingArguments, scoring: RowMetric) -> Dataset:
    """The rows without the columns that a model does not take; a batch is made of one, before any training."""
    if not isinstance(rows, Dataset) or len(rows) == 0:
        raise invalid(name, f"{type(rows).__name__} of {len(rows)} rows", "a datasets.Dataset with rows")
    if args.remove_unused_columns:
        taken = {*inspect.signature(model.forward).parameters, "label", "label_ids", *(args.label_names or ())}
        rows = rows.remove_columns([column for column in rows.column_names if column not in taken])
    if "labels" not in scoring.collator([rows[0]]):
        raise invalid(name, ", ".join(rows.column_names), "rows of which the collator makes a batch with `labels`")
    return rows


def _check_rows(
    model: PreTrainedModel, rows: Dataset, scoring: RowMetric, args: TrainingArguments, *, taught: bool
) -> None:
    """Score two rows, where Trainer will put the model: a metric, or a model that cannot be taught, is refused before
    the training."""
    if getattr(model, "hf_device_map", None) is None:
        model.to(args.device)
    batch = Batches(rows, scoring.collator, 2)[0]
    Sums().add(model, [batch], scoring)
    if taught:
        check_teachable(model, batch)


def _check_best(args: TrainingArguments) -> None:
    """Refuse a name that evaluations do not have, which Trainer would look for at the first one."""
    best = args.metric_for_best_model
    if args.eval_strategy != "no" and best is not None and best.removeprefix("eval_") not in ("loss", RowMetric.metric):
        raise invalid("retrain_args.metric_for_best_model", best, f"loss or {RowMetric.metric}, which is your metric")


def _checked(finals: Mapping[str, Any], retrain_args: TrainingArguments | None, train: Dataset) -> Finals:
    """The settings of a race."""
    if retrain_args is None:
        raise invalid("retrain_args", None, "with finals, the TrainingArguments of its trainings")
    for name in ("training", "lr_factors"):
        if name in finals:
            raise invalid(f"finals.{name}", finals[name], "nothing: retrain_args and lr_factors are the race's too")
    settings = validate(Finals, dict(finals), source="finals")
    if settings.teacher and train.format["type"] == "custom":  # what is taught is a table
        raise invalid("train", "a data set with a transform", "rows that `map` has made, or finals without a teacher")
    return settings


def _race(
    supernet: Any,
    evaluator: SubnetEvaluator,
    study: optuna.Study,
    rows: tuple[Dataset, Dataset],
    args: TrainingArguments,
    settings: Finals,
    budgets: tuple[int | None, int | None],
    lr_factors: Mapping[str, float],
) -> FoundAdapter:
    """End a search in a race; the winner, at its best checkpoint, is what was found.

    Args:
        rows: to learn from, and to validate on.
        budgets: of the adapter, and of the subnets that teach.
    """
    (train, validation), (max_params, largest) = rows, budgets
    space, scoring, batches = supernet.space, evaluator.scoring, evaluator.batches
    config = supernet.peft_config[supernet.active_adapter]
    trials = sorted(
        (trial for trial in study.get_trials(deepcopy=False) if trial.values),
        key=lambda trial: trial_key(trial, study.directions[0]),
    )
    scored = (Subnet(trial.params, int(trial.user_attrs[PARAMS]), float(trial.user_attrs[LOSS])) for trial in trials)
    subnets = distinct(scored, space, settings.subnets)
    inherited = {str(subnet.genome): evaluator.inherit(subnet.genome) for subnet in subnets}
    best = evaluator.inherit(best_trial(study).params)
    lesson = None
    if settings.teacher:
        members = draw_members(space, count=settings.teacher, max_params=largest, seed=args.seed)
        teacher = Teacher(supernet, members, scoring, evaluator.batch_size)
        lesson = Lesson.of(teacher, "supernet", len(members), train, validation, None)
    current: list[PeftModel] = [supernet]

    def made(model: PeftModel) -> None:
        current[0] = model

    def start(one: Finalist, base: Any) -> PeftModel:
        model = get_peft_model(base, inherited[str(one.genome)].config)
        set_peft_model_state_dict(model, inherited[str(one.genome)].weights)
        return model

    def load(checkpoint: Path) -> PeftModel:
        model = load_adapter(bare(current[0]), checkpoint)
        made(model)
        return model

    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="finals-", dir=args.output_dir) as folder:
        contest = Contest(
            space=space,
            subnets=subnets,
            scoring=scoring,
            train=train,
            validation=validation,
            unlabelled=lambda: None,
            lesson=lesson,
            args=dataclasses.replace(args, **EVALUATED),
            folder=Path(folder),
            settings=settings,
            max_params=max_params,
            base=lambda: bare(current[0]),
            load=load,
            inherit=start,
            made=made,
            lr_factors=lr_factors,
            task_type=config.task_type,
            modules_to_save=config.modules_to_save or (),
            batch_size=evaluator.batch_size,
        )
        if not contest.subnets and not contest.uniform:
            raise invalid("max_params", max_params, NOBODY_RACES)
        outcome = contest.run(optuna.create_study(study_name=STUDY_NAME))
        winner = outcome.named(outcome.winner)
        if not outcome.finite(winner.name):
            raise invalid("retrain_args.learning_rate", args.learning_rate, "a lower one: every finalist has diverged")
        model = load_adapter(bare(current[0]), contest.best(winner, outcome.result), trainable=True)
    return FoundAdapter(
        model.eval(),
        model.peft_config[model.active_adapter],
        winner.genome,
        adapter_params(model),
        evaluate(model, batches, scoring),
        best.evaluation,
        study,
        outcome.table(),
        outcome.baseline,
    )


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
