"""A recipe: an experiment as one checked YAML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    Field,
    field_validator,
    model_validator,
)

from glora_search.errors import UserError, invalid
from glora_search.files.checked import validate
from glora_search.files.shipped import find_shipped
from glora_search.files.text import dump_yaml, load_yaml, parse_yaml
from glora_search.recipe.arguments import EVALUATED, STOPPING, LrFactors, Training
from glora_search.recipe.data import Data, Section, expanded
from glora_search.recipe.loading import Loading
from glora_search.recipe.metrics import MetricSettings
from glora_search.recipe.prompts import prompt_columns

SAMPLERS = ("evolution", "paper", "nsga2", "tpe", "random")
TASKS = (
    *("text-classification", "text-regression", "multi-label", "token-classification"),
    *("causal-lm", "seq2seq-lm", "image-classification"),
)

TEACHER_SIZE = 4
"""The largest subnet of a supernet that teaches, in budgets."""


class Task(Loading):
    """The task and the base model.

    Attributes:
        type: ``text-classification``, ``text-regression``, ``multi-label``, ``token-classification``, ``causal-lm``,
            ``seq2seq-lm``, ``image-classification``, or the import path of your own `glora_search.tasks.Task`.
        model: a hub name, a folder, or ``minilm`` (all-MiniLM-L6-v2 from its wheel).
        max_length: maximum length of a text in tokens. Longer texts are cut, except that ``causal-lm`` splits plain
            texts into several rows. ``causal-lm`` counts prompt and response together, ``seq2seq-lm`` separately.
        prompt: language models only: a template with column names in braces, such as
            ``"Question: {question}\\nAnswer: "``, or a list of templates. A row uses the first template whose columns
            all contain text, else the last one. None uses the text column as the prompt.
        chat: ``causal-lm`` only: format prompt and response with the tokenizer's chat template, as a user's and the
            assistant's turn.
        packing: ``causal-lm`` only: pack train rows into sequences of up to ``max_length`` tokens; rows in a sequence
            do not see each other.
        metrics: language models only: metrics of the answers, in addition to perplexity. Tables show the first one
            first, and notes compare it. The search still goes by ``search.score``.
        options: options for your own task.
        trust_remote_code: run code from the model's hub repository. Enable it only for models that you trust.
    """

    type: str = "text-classification"
    model: str
    max_length: int = Field(default=128, ge=8)
    prompt: str | list[str] | None = None
    chat: bool = False
    packing: bool = False
    metrics: list[MetricSettings] = Field(default_factory=list)
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
            allowed = f"null with task.type {self.type}; only a task of your own takes options"
            raise invalid("options", self.options, allowed)
        return self

    @property
    def prompts(self) -> list[str]:
        """The templates of the prompt."""
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt or [])


class Supernet(Section):
    """How the supernet is trained.

    Attributes:
        sampling: strategy that picks the subnets of each step: ``sizes``, ``uniform`` (the paper's), ``fair``,
            ``sandwich``, ``budget``, or the import path of your own class.
        sampling_options: keyword arguments of the strategy, such as ``{anchor_share: 0.5}``; the
            [API](api.md#glora_search.supernet.sampling) describes all strategies and their arguments.
        sharing: ``separate`` gives each kind of a path its own tensors; ``nested`` takes all kinds of a path from the
            tensors of its largest kind, as in the paper's code.
        max_params: parameters of the largest subnet to train. None is the search's budget, or four times the budget
            if finals have a teacher, since larger subnets teach better.
        lr_factors: multipliers of the learning rate by kind of path and for the ``head``. ``auto`` uses measured ones;
            ``{}`` uses one rate for all.
        patience: stop after this many evaluations in a row without a better mean metric of the probes (a few fixed
            subnets), and keep the best supernet; None trains to the end.
        training: fields of TrainingArguments.
    """

    sampling: str = "sizes"
    sampling_options: dict[str, Any] = Field(default_factory=dict)
    sharing: Literal["separate", "nested"] = "separate"
    max_params: int | None = Field(default=None, ge=0)
    lr_factors: LrFactors = Field(default="auto", validate_default=True)
    patience: int | None = Field(default=None, ge=1)
    training: Training = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_patience(self) -> Self:
        for name in STOPPING if self.patience is not None else ():
            if name in self.training:
                raise invalid(f"training.{name}", self.training[name], "no value, since patience sets it")
        return self

    def settings(self, metric: str) -> dict[str, Any]:
        """The training arguments, including those that patience needs; ``metric`` is the task's."""
        return {**self.training, **({**STOPPING, "metric_for_best_model": metric} if self.patience else {})}


class Search(Section):
    """How the search finds the best subnet.

    Attributes:
        sampler: ``evolution``, ``paper`` (the paper's evolution), Optuna's ``nsga2``, ``tpe``, or ``random``, or the
            import path of an Optuna sampler.
        trials: number of subnets to evaluate.
        max_params: the budget: maximum number of trainable adapter parameters, without the head; None sets no budget.
            A list gives several budgets: the largest is kept here, and the others become ``budgets``.
        budgets: smaller budgets. Each gets its own search and all later stages, on the same supernet, in
            ``RUN/budgets/``.
        objective: ``best`` searches for the best score under the budget, ``front`` for the Pareto front of score and
            parameters, of which the subnet with the best score is exported.
        score: what to optimise on the validation split: the ``loss``, or the ``metric`` with the loss as tie-breaker.
        options: keyword arguments of the sampler, such as ``{n_parents: 10}``; the
            [API](api.md#glora_search.search.evolution.EvolutionSampler) lists those of ``evolution``.
        batch_size: rows per evaluation batch.
        racing: stop evaluating a subnet once it can no longer become one of the best.
        calibration_steps: train each subnet for this many steps before scoring it, with the supernet's settings and
            half its learning rate. Scores rank subnets better, but an evaluation takes several times as long.
        fold: score subnets folded into the base weights, which is faster but needs a second copy of the adapted
            weights; ``false`` needs no more memory than training. None folds if the device has enough memory.
    """

    sampler: str = "evolution"
    trials: int = Field(default=1000, ge=1)
    max_params: int | None = Field(default=None, ge=0)
    budgets: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    objective: Literal["best", "front"] = "best"
    score: Literal["loss", "metric"] = "loss"
    options: dict[str, Any] = Field(default_factory=dict)
    batch_size: int = Field(default=64, ge=1)
    racing: bool = False
    calibration_steps: int = Field(default=0, ge=0)
    fold: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _several_budgets(cls, values: Any) -> Any:
        given = values.get("max_params") if isinstance(values, dict) else None
        if not isinstance(given, list):
            return values
        if not given or not all(type(one) is int for one in given):
            raise invalid("max_params", given, "a whole number, or a list of whole numbers")
        if values.get("budgets"):
            raise invalid("budgets", values["budgets"], "no value, where max_params lists all budgets")
        return {**values, "max_params": max(given), "budgets": [one for one in given if one < max(given)]}

    @model_validator(mode="after")
    def _check_budgets(self) -> Self:
        self.budgets = sorted(set(self.budgets))
        if self.budgets and (self.max_params is None or self.budgets[-1] >= self.max_params):
            raise invalid("budgets", self.budgets, f"budgets below max_params, {self.max_params}")
        return self

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
            raise invalid(
                "sampler", self.sampler, "a sampler for several objectives, nsga2 or tpe, with objective front"
            )
        if self.objective == "front" and self.racing:
            raise invalid("racing", self.racing, "false with objective front")
        return self


class Retrain(Section):
    """How the best subnet is retrained.

    Attributes:
        start: initial weights: ``inherited`` from the supernet, or new ones (``scratch``).
        lr_factors: as in `supernet`; None uses the supernet's.
        training: fields of TrainingArguments.
    """

    start: Literal["inherited", "scratch"] = Field(default="inherited", alias="from")  # `from` is a keyword in Python
    lr_factors: LrFactors | None = None
    training: Training = Field(default_factory=dict)


class BaselineTraining(Section):
    """How the baselines are trained.

    Attributes:
        lr_factors: as in `supernet`; None uses the supernet's.
        training: fields of TrainingArguments. Fields that are not set are the supernet's, with two exceptions: the
            learning rate is that of retraining if it sets one, and the baseline trains for as many epochs as supernet
            and retraining together (as many steps, if either sets ``max_steps``).
    """

    lr_factors: LrFactors | None = None
    training: Training = Field(default_factory=dict)


UniformMethod = Literal["lora", "ia3", "bitfit", "hira", "lora+vectors"]


class Finals(Section):
    """How the search ends: the best subnets race in real trainings against uniform methods (the same in every layer).

    Without this section, the best subnet is retrained alone. With it there is no retraining; ``finals: {}`` uses all
    defaults.

    The uniform methods race first, without a teacher. Then they, each at its best rate and LoRA also at the next higher
    one, and the subnets, at LoRA's best rate, race with a teacher. In each race, all train for a quarter of the steps,
    half of them go on to half of the steps, and half of those to the end, chosen by the lowest validation loss so far.
    The lowest loss wins; if it is a subnet's, it has to be lower than that of every uniform method by more than a
    `margin`. The winner's best checkpoint is the final adapter.

    Attributes:
        subnets: how many of the search's best subnets compete. A subnet starts with its inherited weights if these are
            better than the best uniform method, otherwise from scratch.
        methods: the uniform methods that compete, if they fit the budget: ``lora``, ``ia3`` (vectors that scale the
            outputs), ``bitfit`` (biases), ``hira`` (low-rank A), ``lora+vectors`` (LoRA with vectors A and E).
        rates: learning rates of LoRA, as multiples of the one in ``training``. If, after a quarter of the steps, the
            best of several is the highest or the lowest, one beyond it joins the race, up to twice.
        teacher: how many subnets of the supernet teach, by their mean prediction; 0 is no teacher. Competing subnets
            have the teacher; uniform methods compete with and without it.
        teacher_share: the teacher's share of the loss.
        margin: for a subnet to win, its validation loss has to be lower than the best uniform method's by more than so
            many standard errors of the difference, since it was searched for on the same rows. With 0, the lowest loss
            wins. A new value repeats the race.
        lr_factors: as in `supernet`; None uses the supernet's. For kinds of paths without a factor here, a method may
            have its own, such as 15 for the low-rank A of ``hira``; ``{}`` turns these off as well.
        training: fields of TrainingArguments, except those for evaluation and saving, which the race sets.
    """

    subnets: int = Field(default=2, ge=0)
    methods: list[UniformMethod] = Field(default=["lora", "ia3"], min_length=1)
    rates: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=lambda: [0.5, 1.0, 2.0], min_length=1
    )
    teacher: int = Field(default=8, ge=0)
    teacher_share: float = Field(default=0.5, ge=0, le=1)
    margin: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    lr_factors: LrFactors | None = None
    training: Training = Field(default_factory=dict)

    @field_validator("rates")
    @classmethod
    def _check_rates(cls, value: list[float]) -> list[float]:
        return sorted(set(value))

    @model_validator(mode="after")
    def _check_training(self) -> Self:
        for name in EVALUATED:
            if name in self.training:
                raise invalid(f"training.{name}", self.training[name], "nothing: the race sets it")
        return self


class Recipe(Section):
    """An experiment.

    Attributes:
        name: name of the experiment; the run folder is ``runs/<name>``.
        seed: seed of the splits, of all training, and of the search.
        space: the search space: a YAML file, or the name of a shipped space.
        finals: if given, the search ends in a race instead of retraining; ``{}`` uses all defaults.
        baselines: methods to compare with. ``lora`` is peft's ``LoraConfig``, here as in the finals: the largest rank
            within the budget (8 without one), ``lora_alpha`` twice the rank, on all layers of the space or, if rank 1
            does not fit, on query and value only.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0, lt=2**32)
    task: Task
    data: Data
    space: Annotated[str, AfterValidator(expanded)]
    supernet: Supernet = Field(default_factory=Supernet)
    search: Search = Field(default_factory=Search)
    retrain: Retrain = Field(default_factory=Retrain)
    finals: Finals | None = None
    baselines: list[Literal["lora"]] = Field(default_factory=list)
    baseline: BaselineTraining = Field(default_factory=BaselineTraining)

    @property
    def supernet_max_params(self) -> int | None:
        """Parameters of the largest subnet that the supernet trains; None is the space's largest."""
        budget, teaches = self.search.max_params, self.finals is not None and self.finals.teacher > 0
        if self.supernet.max_params is not None or budget is None:
            return self.supernet.max_params
        return TEACHER_SIZE * budget if teaches else budget

    def under(self, budget: int) -> Recipe:
        """The experiment under one of its smaller budgets, on the same supernet."""
        found = self.model_copy(deep=True)
        found.name, found.supernet.max_params = f"{self.name}-{budget}", self.supernet_max_params
        found.search.max_params, found.search.budgets = budget, []
        return found

    def lr_factors(self, section: Retrain | BaselineTraining | Finals) -> LrFactors:
        """The learning-rate factors of a section; those of the supernet if it has none."""
        return self.supernet.lr_factors if section.lr_factors is None else section.lr_factors

    @model_validator(mode="after")
    def _check_unlabelled(self) -> Self:
        rows = getattr(self.data, "unlabelled", None)
        if rows is not None and (self.finals is None or not self.finals.teacher):
            raise invalid("data.unlabelled", rows, "null without finals.teacher, which labels these rows")
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        largest, budget = self.supernet.max_params, self.search.max_params
        if largest is not None and (budget is None or largest < budget):
            raise invalid("supernet.max_params", largest, f"null, or at least search.max_params ({budget})")
        return self

    @field_validator("baselines")
    @classmethod
    def _check_baselines(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe from a file, or a shipped recipe by its name.

        Args:
            path: a YAML file, or a name such as ``quickstart``.
            overrides: ``key.sub=value``, with the value in YAML.

        Raises:
            UserError: the file or one of its keys is invalid; the message lists key, value, and accepted values.
        """
        found = find_shipped("experiments", path, key="recipe")
        data = load_yaml(found)
        none = "finals" in data and data["finals"] is None
        if none and re.search(r"^finals:[ \t]*(#.*)?$", found.read_text(encoding="utf-8"), re.M):
            allowed = "a mapping of keys to values; {} has all defaults, and null is no finals"
            raise invalid(f"{found}: finals", None, allowed)
        for override in overrides:
            _override(data, override)
        return validate(cls, data, source=str(found))

    def dump(self) -> str:
        """The recipe as YAML, with all defaults written out."""
        return dump_yaml(self.model_dump(by_alias=True))


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
        place[last] = parse_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key}: not valid YAML: {value!r} ({' '.join(str(error).split())})") from error
