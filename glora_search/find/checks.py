"""What is refused before the first training."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, TrainingArguments

from glora_search.errors import invalid
from glora_search.files.checked import validate
from glora_search.recipe.schema import Finals
from glora_search.scoring import IGNORED, Batches, RowMetric, Sums, items_of, known_tokens, largest_token, predicts_next
from glora_search.space.bound import BoundSpace
from glora_search.space.idle import called, idle_notes
from glora_search.training.answers import check_teachable


def rows_for(model: PreTrainedModel, rows: Dataset, name: str, args: TrainingArguments, scoring: RowMetric) -> Dataset:
    """The rows without the columns that a model does not take; a batch is made of one, before any training."""
    if not isinstance(rows, Dataset) or len(rows) == 0:
        found = "a datasets.Dataset of 0 rows" if isinstance(rows, Dataset) else type(rows).__name__
        raise invalid(name, found, "a datasets.Dataset with rows")
    if args.remove_unused_columns:
        taken = {*inspect.signature(model.forward).parameters, "label", "label_ids", *(args.label_names or ())}
        rows = rows.remove_columns([column for column in rows.column_names if column not in taken])
    if "labels" not in scoring.collator([rows[0]]):
        raise invalid(name, ", ".join(rows.column_names), "rows of which the collator makes a batch with `labels`")
    known = known_tokens(model)
    if known is not None and (largest := largest_token(rows)) >= known:
        raise invalid(name, f"a row with token {largest}", f"tokens that the model's embedding has, below {known}")
    shifted, batches = predicts_next(model), Batches(rows, scoring.collator, 8)
    if not any(int(items_of(batch["labels"], shifted=shifted).sum()) for batch in batches):
        raise invalid(name, f"{len(rows)} rows whose labels are all {IGNORED}", "rows with a label that counts")
    return rows


def check_rows(
    model: PreTrainedModel,
    space: BoundSpace,
    rows: Dataset,
    scoring: RowMetric,
    args: TrainingArguments,
    *,
    taught: bool,
) -> None:
    """Score two rows, where Trainer will put the model: a metric, or a model that cannot be taught, is refused before
    the training; of adapted layers that the model does not call, a warning tells."""
    if any(getattr(config, "output_router_logits", False) for config in (model.config, model.config.get_text_config())):
        allowed = "False: a router's loss would be a part of every score, and the router is frozen"
        raise invalid("model.config.output_router_logits", True, allowed)
    if getattr(model, "hf_device_map", None) is None:
        model.to(args.device)
    batch = Batches(rows, scoring.collator, 2)[0]
    with called(model, [layer.name for layer in space.layers]) as found:
        Sums().add(model, [batch], scoring)
    for note in idle_notes(space, found):
        warnings.warn(note, stacklevel=3)
    if taught:
        check_teachable(model, batch)


def check_patience(patience: int | None, args: TrainingArguments) -> None:
    """Refuse to stop early by evaluations that nobody makes."""
    if patience is not None and (args.eval_strategy == "no" or not args.load_best_model_at_end):
        raise invalid("patience", patience, "None; or set eval_strategy and load_best_model_at_end in args")


def check_best(args: TrainingArguments) -> None:
    """Refuse a name that evaluations do not have, which Trainer would look for at the first one."""
    best = args.metric_for_best_model
    if args.eval_strategy != "no" and best is not None and best.removeprefix("eval_") not in ("loss", RowMetric.metric):
        raise invalid("retrain_args.metric_for_best_model", best, f"loss or {RowMetric.metric}, which is your metric")


def settings_of(finals: Mapping[str, Any], retrain_args: TrainingArguments | None, train: Dataset) -> Finals:
    """The settings of a race."""
    if retrain_args is None:
        raise invalid("retrain_args", None, "with finals, the TrainingArguments of its trainings")
    for name in ("training", "lr_factors"):
        if name in finals:
            raise invalid(f"finals.{name}", finals[name], "nothing: retrain_args and lr_factors are the race's too")
    settings = validate(Finals, dict(finals), source="finals")
    if settings.teacher and train.format["type"] == "custom":  # what is taught is a table
        raise invalid("train", "a data set with a transform", "rows that `map` has made, or finals without a teacher")
    size = retrain_args.train_batch_size
    if retrain_args.dataloader_drop_last and len(train) < size:
        raise invalid("retrain_args.dataloader_drop_last", True, f"False: {len(train)} rows are no batch of {size}")
    return settings
