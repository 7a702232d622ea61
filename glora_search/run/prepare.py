"""What the stages will do with a recipe, tried before the first: what can be found out now does not end a run later.

Nothing is trained, and nothing is written.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from peft import get_peft_model
from transformers import PreTrainedModel, Trainer, TrainingArguments

from glora_search.errors import UserError, invalid
from glora_search.finals.contest import check_field
from glora_search.finals.rungs import whole
from glora_search.finals.training import finalist_args
from glora_search.metrics import Panel
from glora_search.progress import say, track
from glora_search.recipe.arguments import EVALUATED, TRAINING_TYPES, shown
from glora_search.recipe.schema import Recipe
from glora_search.run.scored_rows import rows_that_tell_little
from glora_search.run.search import short_search
from glora_search.run.supernet import supernet_options
from glora_search.scoring import Batches, Sums, known_tokens, largest_token
from glora_search.search.calibration import calibration_args
from glora_search.search.study import check_search
from glora_search.space import BoundSpace, SearchSpace
from glora_search.space.idle import called, idle_notes
from glora_search.supernet import make_sampling
from glora_search.supernet.train import train_supernet
from glora_search.supernet.trainer import SupernetTrainer
from glora_search.tasks import Task, make_task
from glora_search.tasks.labels import counted, labels_of
from glora_search.tasks.rows import counted_notes
from glora_search.training.answers import check_teachable
from glora_search.training.baselines import baseline_settings, lora_within
from glora_search.training.distillation import DistillationTrainer
from glora_search.training.loop import steps_for, train, training_arguments
from glora_search.training.rehearsal import rehearsal
from glora_search.training.trainer import PathTrainer

LOOKED_UP = ("input_ids", "decoder_input_ids")
"""Of a batch: what a model looks up in its embedding."""
NO_VALUE = {"NULL", "null", "None", "NA", "N/A", "n/a", "<NA>", "#N/A", "NaN", "nan", "\\N"}
"""How programs write into a csv file that there is no value."""
WORDS_SEEN = 1000
"""The rows that show whether a tokenizer knows the texts."""


def check(recipe: Recipe) -> Task:
    """Try a recipe: its data, its model, and the training arguments of every section, without a training step.

    Returns:
        The task, its train and validation rows loaded.

    Raises:
        UserError: a stage would fail.
    """
    say("reading data and model", "dim")
    task = make_task(recipe)
    model = task.model()
    _check_tokens(task, model)
    task.check_model(model)
    space = SearchSpace.load(recipe.space).bind(model, task.modules_to_save)
    check_space(recipe, space)
    with called(model, [layer.name for layer in space.layers]) as found:
        _try_rows(task, model)
    for note in idle_notes(space, found):
        say(f"note: {note}")
    _try_metrics(task, model)
    say("trying the training arguments", "dim")
    del model  # each training has one of its own, and no more than one is in memory
    _Trainings(recipe, task, space).rehearse()
    return task


def check_space(recipe: Recipe, space: BoundSpace) -> None:
    """Try what needs no weights: the search, its budgets, the finals, and the sampling.

    Raises:
        UserError: a stage would fail.
    """
    supernet, search = recipe.supernet, recipe.search
    check_search(
        space,
        sampler=search.sampler,
        max_params=search.max_params,
        objective=search.objective,
        seed=recipe.seed,
        options=search.options,
        racing=search.racing,
    )
    for budget in search.budgets:
        space.check_budget(budget, key="search.budgets")
    if recipe.finals is not None:
        for each in (search.max_params, *search.budgets):
            check_field(space, each, recipe.finals)
    for note in short_search(recipe, space, search.trials):
        say(f"note: {note}")
    options: dict[str, Any] = {"seed": recipe.seed, "max_params": recipe.supernet_max_params}
    make_sampling(supernet.sampling, space, **options, options=supernet.sampling_options)


# -- rows --------------------------------------------------------------------------------------------------------------


def _try_rows(task: Task, model: PreTrainedModel) -> None:
    """Make every batch of every split, look for tokens that the model does not have, and give it the longest rows.

    Of the test rows nothing is kept: no model has learned anything yet.
    """
    splits = {"train": task.train, "validation": task.validation, "test": task.test_split()}
    if (unlabelled := task.unlabelled()) is not None:
        splits["unlabelled"] = unlabelled
    batches = {split: Batches(rows, task.collator, task.recipe.search.batch_size) for split, rows in splits.items()}
    known, name = known_tokens(model), task.recipe.task.model
    _check_words(task)
    for note in (*rows_that_tell_little(task, splits["test"]), *_labels_like_none(task), *task.row_notes()):
        say(f"note: {note}")
    with track("checking rows", sum(map(len, batches.values()))) as bar:
        for split, own in batches.items():
            for index in range(len(own)):
                batch = _batch(own, index, f"data.{split}")
                tokens = max((int(batch[key].max()) for key in LOOKED_UP if key in batch), default=0)
                if known is not None and tokens >= known:
                    raise _unknown_token(name, split, tokens, known)
                bar.advance(1)
            with _refused("task.model", name, f"a model that takes the longest rows of data.{split}"):
                sums = Sums()
                sums.add(model, [dict(task.collator([splits[split][int(row)] for row in own.order[-2:]]))], task)
            if sums.items and not math.isfinite(sums.loss):
                allowed = f"a model whose loss on data.{split} is a number: are its weights, and the targets?"
                raise invalid("task.model", name, allowed)
            if sums.items and split == "validation":
                task.check_metric(sums.evaluation(task))
    if task.recipe.finals is not None and task.recipe.finals.teacher:
        check_teachable(model, dict(task.collator([task.train[0]])))


def _try_metrics(task: Task, model: PreTrainedModel) -> None:
    """Look at the rows that the recipe's metrics are scored on, and score two of them."""
    if not task.recipe.task.metrics:
        return
    panel = Panel(task, {"validation": task.data.validation, "test": task.data.read_test()})
    for note in panel.check():
        say(f"note: {note}")
    for metric in panel.metrics if not task.draws else ():
        rows = panel.rows[metric.name]["test" if metric.own_rows else "validation"]
        if not metric.own_rows:
            with _refused(metric.key, metric.name, "a metric that can be scored"):
                metric.references(rows)
                metric.score(model, rows.select(range(min(2, len(rows)))))


def _labels_like_none(task: Task) -> list[str]:
    """Which labels of a csv file may stand for none: they are labels, since only who has written it knows."""
    names = NO_VALUE.intersection(task.data.labels)
    if task.recipe.data.source != "csv" or not names:
        return []
    _, column = task.targets()[0]
    found = counted(labels_of(task.data.train, column))
    what = "which is learned as a label: if it stands for none, remove these rows"
    counts = [(found[name], f"have {name!r} in {column}, {what}") for name in sorted(names)]
    return counted_notes("data.train", len(task.data.train), counts, 0.0)


def _check_tokens(task: Task, model: PreTrainedModel) -> None:
    """Refuse a train row with a token that the model has not, before the model is given any."""
    known = known_tokens(model)
    if known is not None and (largest := largest_token(task.train_rows)) >= known:
        raise _unknown_token(task.recipe.task.model, "train", largest, known)


def _unknown_token(name: str, split: str, token: int, known: int) -> UserError:
    allowed = f"a model with every token of its tokenizer; data.{split} has token {token}"
    return invalid("task.model", name, f"{allowed}, and this one's embedding has {known}")


def _check_words(task: Task) -> None:
    """Refuse a tokenizer that does not know the texts' words."""
    unknown = getattr(task.processor, "unk_token_id", None)
    if unknown is None or "input_ids" not in task.train.column_names:
        return
    rows = task.train["input_ids"][:WORDS_SEEN]
    share = sum(ids.count(unknown) for ids in rows) / sum(map(len, rows))
    if share > 0.5:
        allowed = f"a model whose tokenizer knows the texts; {share:.0%} of train's tokens are unknown to it"
        raise invalid("task.model", task.recipe.task.model, allowed)


def _batch(batches: Batches, index: int, key: str) -> dict[str, Any]:
    """A batch; where it cannot be made, the message names the row."""
    try:
        return batches[index]  # type: ignore[no-any-return]
    except Exception:
        start = index * batches.batch_size
        for row in batches.order[start : start + batches.batch_size]:
            with _refused(key, _name(batches.dataset, int(row)), "rows that can be read and put into a batch"):
                batches.collator([batches.dataset[int(row)]])
        raise


def _name(rows: Dataset, row: int) -> str:
    """What a message calls an encoded row: its image's file, or its number among those that were cut from the data."""
    images = next((name for name, kind in rows.features.items() if isinstance(kind, Image)), None)
    path = None if images is None else rows.cast_column(images, Image(decode=False))[row][images]["path"]
    return path or f"row {row + 1}, counted after the split"


# -- trainings ---------------------------------------------------------------------------------------------------------


class _Trainings:
    """The training of every section that trains: a Trainer with its optimizer, scheduler and callbacks."""

    def __init__(self, recipe: Recipe, task: Task, space: BoundSpace) -> None:
        self.recipe, self.task, self.space = recipe, task, space

    def rehearse(self) -> None:
        """Set up one training after the other."""
        recipe = self.recipe
        settings = {
            "supernet": recipe.supernet.settings(self.task.metric),
            "retrain": recipe.retrain.training,
            **({"finals": {**recipe.finals.training, **EVALUATED}} if recipe.finals is not None else {}),
            **({"baseline": baseline_settings(recipe, len(self.task.train))} if recipe.baselines else {}),
        }
        with tempfile.TemporaryDirectory() as folder:
            for section, own in settings.items():
                self._check_smoothing(section, own)
                with _refused(f"{section}.training", shown(own), "arguments with which a training can start"):
                    getattr(self, section)(training_arguments(own, Path(folder), recipe.seed))

    def _check_smoothing(self, section: str, settings: dict[str, Any]) -> None:
        """Refuse to smooth labels that a model has to see: Trainer takes them away."""
        smoothing = settings.get("label_smoothing_factor")
        if smoothing and self.task.task_type == "SEQ_2_SEQ_LM":
            allowed = "0 with an encoder-decoder model, whose decoder reads the labels"
            raise invalid(f"{section}.training.label_smoothing_factor", smoothing, allowed)

    def supernet(self, args: TrainingArguments) -> None:
        """As the first stage trains it, and as the search calibrates it."""
        calibration_steps = self.recipe.search.calibration_steps
        if calibration_steps:
            calibration_args(args, calibration_steps)
        train_supernet(
            self.task.model(),
            self.space,
            self.task,
            self.task.train,
            self.task.validation,
            args,
            **supernet_options(self.recipe, self.task),
            description="",
            trainer_cls=rehearsal(SupernetTrainer),
        )

    def retrain(self, args: TrainingArguments) -> None:
        """The largest subnet."""
        self._adapter(self._subnet(), args, self.recipe.lr_factors(self.recipe.retrain), PathTrainer)

    def finals(self, args: TrainingArguments) -> None:
        """The largest subnet, as a finalist."""
        steps = whole(steps_for(args, len(self.task.train)))
        own = finalist_args(args, Path(args.output_dir), rate=1.0, steps=steps)
        assert self.recipe.finals is not None
        self._adapter(self._subnet(), own, self.recipe.lr_factors(self.recipe.finals), DistillationTrainer)

    def baseline(self, args: TrainingArguments) -> None:
        """The LoRA that fits the budget, if one does."""
        config = lora_within(self.space, self.recipe.search.max_params, self.task.task_type, self.task.modules_to_save)
        if config is not None:
            self._adapter(config, args, self.recipe.lr_factors(self.recipe.baseline), PathTrainer)

    def _subnet(self) -> Any:
        options: dict[str, Any] = {
            "task_type": self.task.task_type,
            "modules_to_save": self.task.modules_to_save or None,
        }
        return self.space.to_config(self.space.largest, **options)

    def _adapter(self, config: Any, args: TrainingArguments, factors: Any, trainer_cls: type[Trainer]) -> None:
        model, task = get_peft_model(self.task.model(), config), self.task
        train(model, task, task.train, task.validation, args, trainer_cls=rehearsal(trainer_cls), lr_factors=factors)


@contextmanager
def _refused(key: str, value: object, allowed: str) -> Iterator[None]:
    """Whatever goes wrong in this block is the user's to mend: the message says what was tried, and why it failed."""
    try:
        yield
    except UserError as error:
        if str(error).partition(":")[0] in TRAINING_TYPES:  # a Trainer does not know in which section it stands
            raise UserError(f"{key}.{error}") from error
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = ": ".join([type(error).__name__, *lines[:1]])
        raise invalid(key, value, f"{allowed} ({reason})") from error
