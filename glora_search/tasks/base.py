"""What every task is: data, a model with its head, and a metric that is counted batch by batch."""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, set_seed

from glora_search.errors import invalid
from glora_search.files.python import arguments
from glora_search.progress import say
from glora_search.recipe.data import Columns
from glora_search.recipe.schema import Recipe
from glora_search.scoring import IGNORED, Evaluation
from glora_search.tasks.constants import one_hot, score_constant
from glora_search.tasks.labels import Target, in_order_of
from glora_search.tasks.models import (
    check_device_map,
    check_devices,
    check_weights,
    draw_head,
    head_labels,
    head_options,
    heads_of,
    load_pretrained,
    modules_to_save,
    quantized_in,
    resolve_model,
)
from glora_search.tasks.rows import Column, notes_of, with_column
from glora_search.tasks.splits import load_data
from glora_search.tuners.heads import train_in_float32
from glora_search.tuners.quantized import keep_format


class Task(abc.ABC):
    """Data, model and metric of a recipe; `Labelled` and `texts.TextTask` hold what several tasks share.

    A task of your own is a subclass that a recipe names by its import path; see ``docs/tasks.md``.

    Attributes:
        metric: name of the metric.
        direction: whether a higher or a lower metric is better; everything that compares metrics asks here.
        by_rows: whether the metric needs the tallies of all rows, not only their sums.
        task_type: peft's name of the task; None where peft has none.
        auto_class: loads the base model and the merged one.
        target: what a row's target is, see `glora_search.tasks.labels`; None where it is text.
        problem_type: transformers' name of what the model's head learns; None where it has none of the task's own.
        one_label: whether a row has one label, and the model's logits are ``[rows, classes]``.
        prompted: whether the task reads the recipe's prompt.
        packs: whether the task can put several train rows into one sequence.
        writes: whether the model writes text, which the recipe's metrics can look at.
        constant: what tables call the best answer that does not look at the inputs.
        pipeline, example, pipeline_options, taken: transformers' pipeline of the task; what it is called with, in
            Python, and by name; and what is taken of its result, in Python.
        chats: whether the model learns conversations, which its tokenizer's chat template writes.
        data: train and validation rows; the test rows are read by `test_split` alone.
        processor: tokenizer or image processor; saved beside every model.
        train, validation: encoded rows, with a column ``labels``.
        train_rows: the encoded train rows one by one, where several share one of ``train``; else ``train``.
        collator: list of encoded rows -> batch.
        modules_to_save: what is trained as it is, besides the head that peft knows of by ``task_type``: a
            classifier's head, and modules which are drawn at random, since the checkpoint lacks them or has them in
            another size. Known once `model` was called.
        draws: whether the base model has parameters that are drawn at random: before training, it says nothing. Known
            once `model` was called.

    Raises:
        UserError: the model or the data cannot be had as the recipe says.
    """

    metric: str
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    by_rows: ClassVar[bool] = False
    task_type: ClassVar[str | None]
    auto_class: ClassVar[Any]
    target: ClassVar[Target | None] = None
    problem_type: ClassVar[str | None] = None
    one_label: ClassVar[bool] = False
    prompted: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    constant: ClassVar[str] = "best constant answer"
    pipeline: ClassVar[str]
    example: ClassVar[str] = "'Your text here'"
    pipeline_options: ClassVar[dict[str, Any]] = {}
    taken: ClassVar[str] = ""
    chats: bool = False

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._counts: dict[str, tuple[int, list[tuple[int, str]]]] = {}  # split -> its rows, and what became of them
        inputs, targets, beside = self.inputs(), self.targets(), self.beside()
        self._check_columns([*inputs, *targets])
        self.data = load_data(
            recipe.data, recipe.seed, inputs=inputs, targets=targets, target=self.target, beside=beside
        )
        self.model_path = resolve_model(recipe.task.model)
        self.config = self.load(AutoConfig)
        self.data.labels = in_order_of(head_labels(self.config), self.data.labels) or self.data.labels
        self.modules_to_save: list[str] = []
        self.draws = False
        self._said = False
        self._skip: list[str] = []
        self.processor = self.load_processor()
        self.collator = self.make_collator()
        self.train_rows = self._encoded(self.data.train, "data.train")
        self.train = self.sequences(self.train_rows)
        self.validation = self._encoded(self.data.validation, "data.validation")

    # -- what a task says ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def inputs(self) -> list[Column]:
        """What the model is given. Rows with equal inputs are never in two splits."""

    @abc.abstractmethod
    def targets(self) -> list[Column]:
        """What it has to say; one column where there is a ``target``."""

    @abc.abstractmethod
    def load_processor(self) -> Any:
        """The tokenizer or image processor of the base model."""

    @abc.abstractmethod
    def make_collator(self) -> Any:
        """A callable that makes a batch of encoded rows; the batch has ``labels``."""

    @abc.abstractmethod
    def encode(self, rows: Dataset) -> Dataset:
        """Rows as read -> rows as the model takes them, with ``labels``, where -100 does not count."""

    @abc.abstractmethod
    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What each row of a batch adds to the metric.

        Args:
            logits: ``[rows, ...]``, on any device.
            labels: ``[rows, ...]``, on the same.

        Returns:
            ``[rows, k]`` counts or sums, or with ``by_rows`` whatever the metric needs of a row.
        """

    @abc.abstractmethod
    def score(self, sums: np.ndarray) -> float:
        """The metric.

        Args:
            sums: ``[k]``, of what `tally` returned for all rows; with ``by_rows``, ``[rows, k]``.
        """

    def also(self, sums: np.ndarray) -> dict[str, float]:
        """Further figures that are reported beside the metric, of the same sums."""
        return {}

    def sequences(self, rows: Dataset) -> Dataset:
        """What is learned, of the encoded train rows: one by one, or several in a sequence."""
        return rows

    def model_options(self) -> dict[str, Any]:
        """What else ``auto_class.from_pretrained`` is given."""
        return {} if self.problem_type is None else head_options(self.outputs, self.problem_type)

    def check_model(self, model: PreTrainedModel) -> None:  # noqa: B027 - most take any model
        """Refuse a model with which the task cannot be done; called once, before the first stage.

        Raises:
            UserError: says why.
        """

    def beside(self) -> list[Column]:
        """What else is read of the rows: neither learned from nor what tells rows apart."""
        return []

    def constants(self, rows: Dataset) -> Iterable[Sequence[float]]:
        """Answers that could be the best of those that are the same for every row: the logits ``[k]`` of one label."""
        return ()

    def check_metric(self, scored: Evaluation) -> None:  # noqa: B027 - most metrics do not follow from the loss
        """Refuse a metric that cannot be one, by what it makes of a few rows; called once, before the first stage.

        Raises:
            UserError: says why.
        """

    def row_notes(self, share: float = 0.0) -> list[str]:
        """What became of the rows of each split that was encoded, where it concerns more than this share of them."""
        return notes_of(self._counts, share)

    # -- what all share --------------------------------------------------------------------------------------------

    def best_constant(self, rows: Dataset) -> Evaluation | None:
        """What the best answer is worth that is the same for every one of these encoded rows; None if none is known."""
        whole_rows = self.target in ("labels", "number")
        found = [score_constant(self, rows, answer, whole_rows=whole_rows) for answer in self.constants(rows)]
        best = max if self.direction == "maximize" else min
        return best(found, key=lambda one: one.metric, default=None)

    @property
    def outputs(self) -> list[str]:
        """The names of what the head of a model says, in order; empty where it has none of the task's own."""
        return self.data.labels

    def column(self, key: str) -> str:
        """The column that a key of the data section names; the built-in data has its columns by their plain names."""
        name = getattr(self.recipe.data, key, None)
        return str(name if name is not None else key.removesuffix("_column"))

    def columns(self, *keys: str) -> list[Column]:
        """Keys of the data section, each with the column that it names."""
        return [(f"data.{key}", self.column(key)) for key in keys]

    def model(self, seed: int | None = None) -> PreTrainedModel:
        """A fresh base model with its head.

        A head of other names than the task's is drawn anew, whatever its size.

        Args:
            seed: of what is drawn at random; None is the recipe's.
        """
        check_device_map(self.recipe.task.device_map)
        seed = self.recipe.seed if seed is None else seed
        set_seed(seed)
        model, loaded = self._loaded()
        if trained := quantized_in(model, self._trained(model, loaded)):
            self._skip += trained  # what is trained as it is stays as it is
            set_seed(seed)
            model, loaded = self._loaded()
        check_weights(model, loaded, name=self.recipe.task.model)
        check_devices(model, self.recipe.task.device_map)
        if self.outputs and not self.keeps_head() and draw_head(model, loaded) and not self._said:
            self._said = True
            names = ", ".join(head_labels(self.config)[:3])
            say(f"task.model: its head has other labels ({names}, ...) than the data: a new head is drawn", "dim")
        head = bool(self.outputs)
        self.draws = bool(loaded["missing_keys"] or loaded["mismatched_keys"]) or (head and not self.keeps_head())
        self.modules_to_save = modules_to_save(model, loaded, task_type=self.task_type, head=head)
        train_in_float32(model, self._trained(model, loaded))
        return model

    def _loaded(self) -> Any:
        options = {**self.model_options(), **self.recipe.task.options_of_model(skip=self._skip)}
        model, loaded = self.load(self.auto_class, **options, output_loading_info=True)
        keep_format(model)
        return model, loaded

    def _trained(self, model: PreTrainedModel, loaded: Any) -> list[str]:
        """The modules that are trained as they are, the head among them."""
        head = bool(self.outputs)
        saved = modules_to_save(model, loaded, task_type=self.task_type, head=head)
        return [*(heads_of(model) if head else ()), *saved]

    def load_merged(self, folder: str) -> Any:
        """A merged model, which is plain, loaded as the base model is."""
        task = self.recipe.task
        options = task.options_of_model(quantized=False)
        return self.auto_class.from_pretrained(folder, trust_remote_code=task.trust_remote_code, **options)

    def keeps_head(self) -> bool:
        """Whether a head that the base model has says what the task's says."""
        return in_order_of(head_labels(self.config), self.outputs) is not None

    def test_split(self) -> Dataset:
        """Read and encode the test split; call it once, at the end."""
        return self._encoded(self.data.read_test(), "data.test")

    def unlabelled(self) -> Dataset | None:
        """The encoded unlabelled rows, their ``labels`` -100; None where the recipe names none."""
        rows = self.data.unlabelled
        if rows is None:
            return None
        any_label = [self.data.labels[0]] * len(rows)
        encoded = self._encoded(with_column(rows, self.column("label_column"), any_label), "data.unlabelled")
        return with_column(encoded, "labels", [IGNORED] * len(encoded))

    @property
    def new_padding(self) -> int | None:
        """The id of the padding token that the model is told, if its config says another one."""
        return None

    @classmethod
    def usage(cls, folder: str, example: str = "", **loading: Any) -> str:
        """A line of Python, without double quotes, that uses the merged model.

        Args:
            example: what the model is given, as Python; empty is the class's.
            loading: further arguments of ``from_pretrained``, if there are any.
        """
        options = [f"{key}={value!r}" for key, value in cls.pipeline_options.items()]
        given, made = ", ".join([example or cls.example, *options]), arguments(cls.pipeline, folder, **loading)
        return f"from transformers import pipeline; print(pipeline({made})({given}){cls.taken})"

    def load(self, auto_class: Any, **kwargs: Any) -> Any:
        """``auto_class.from_pretrained`` of the recipe's model, see `load_pretrained`."""
        task = self.recipe.task
        return load_pretrained(
            auto_class, self.model_path, name=task.model, trust_remote_code=task.trust_remote_code, **kwargs
        )

    def _check_columns(self, used: list[Column]) -> None:
        """Refuse what this task does not read, and one column for two things."""
        task, names = self.recipe.task, ", ".join(dict.fromkeys(key for key, _ in used))
        for key, field in Columns.model_fields.items():
            value = getattr(self.recipe.data, key, field.default)
            if key.endswith("_column") and value != field.default and f"data.{key}" not in names:
                raise invalid(f"data.{key}", value, f"nothing: this {task.type} reads {names}")
        rows = getattr(self.recipe.data, "unlabelled", None)
        if rows is not None and not self.one_label:
            raise invalid(
                "data.unlabelled",
                rows,
                f"nothing: only a class for each row is learned without labels, not {task.type}",
            )
        if task.metrics and not self.writes:
            kinds = ", ".join(metric.type for metric in task.metrics)
            raise invalid("task.metrics", kinds, f"nothing: only language models write text, not {task.type}")
        if task.prompts and not self.prompted:
            raise invalid("task.prompt", task.prompt, f"nothing: this {task.type} reads {names}")
        if task.packing and not self.packs:
            raise invalid("task.packing", True, f"false: only causal-lm packs rows, not {task.type}")
        if task.chat and not self.packs:
            raise invalid("task.chat", True, f"false: only causal-lm has a chat template, not {task.type}")
        seen: dict[str, str] = {}
        for key, column in used:
            if seen.setdefault(column, key) != key:
                raise invalid(key, column, f"another column than {seen[column].removeprefix('data.')}")

    def _encoded(self, rows: Dataset, key: str) -> Dataset:
        encoded = self.encode(rows)
        if len(encoded) == 0:
            length = self.recipe.task.max_length
            allowed = f"rows with something to learn within task.max_length, {length} tokens: no row has"
            raise invalid(key, f"{len(rows)} rows", allowed)
        return encoded


class Labelled(Task):
    """A task whose rows have one label each, scored by accuracy."""

    metric = "accuracy"
    target: ClassVar[Target | None] = "label"
    problem_type = "single_label_classification"

    def targets(self) -> list[Column]:
        """``label_column``."""
        return self.columns("label_column")

    def classes(self, rows: Dataset) -> list[int]:
        """The class of each row."""
        index = {label: number for number, label in enumerate(self.data.labels)}
        return [index[label] for label in rows[self.column("label_column")]]

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``[rows, 2]``: whether the row is right, and 1."""
        return torch.stack([(logits.argmax(-1) == labels).long(), torch.ones_like(labels)], dim=1)

    def score(self, sums: np.ndarray) -> float:
        """Accuracy."""
        return float(sums[0] / sums[1])

    def constants(self, rows: Dataset) -> list[list[float]]:
        """The most frequent labels."""
        return one_hot(Counter(rows["labels"]), len(self.data.labels))
