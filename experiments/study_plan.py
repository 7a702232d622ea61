"""What the study trains: its settings as YAML, the cells of its grid in their order, and what they will take."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from glora_search.errors import invalid
from glora_search.files.checked import validate
from glora_search.files.text import load_yaml
from glora_search.recipe.data import Section

DATASETS = (
    *("bbc-headlines", "sst2", "trec", "trec-fine", "clinc150", "tweet-emotion", "mpqa", "snips"),
    *("stsb", "wordnet", "election-tweets", "newsgroups", "reuters"),  # the method was not developed on these
)
ALL_ROWS = {"bbc-headlines": 2096}
"""Where 2,000 train rows cannot be had beside validation rows and a test."""
UNSIZED = ("head", "full")
"""Methods of one size, whatever the budget."""
RACES = ("random", "untaught", "taught")
"""What builds on the supernet of `ours`."""
RUNS = ("ours", "random", "untaught", "paper")
"""Methods that are whole runs, each a training of the csv."""
METHODS = (
    *("lora", "lora-averaged", "lora-qv", "rslora", "dora", "adalora", "eva", "hira", "glora", "ia3", "bitfit"),
    "lora+vectors",
    *UNSIZED,
    "taught",
    *RUNS,
)
BASELINES = (
    *("head", "lora", "lora-averaged", "lora-qv", "rslora", "dora", "adalora", "eva", "hira", "glora"),
    *("ia3", "bitfit"),
)
"""What people use: the best of them is the second thing to beat."""


@dataclass(frozen=True)
class Cell:
    """A method on a data set: all of its learning rates, or one run.

    Attributes:
        encoder: a key of the study's encoders.
        data: one of `DATASETS`.
        rows: train rows.
        seed: of the split, the order of the rows, and all that is drawn.
        budget: adapter parameters at most; 0 for `UNSIZED` methods.
        method: one of `METHODS`.
    """

    encoder: str
    data: str
    rows: int
    seed: int
    budget: int
    method: str

    @property
    def name(self) -> str:
        """Of its files."""
        return "-".join(str(value) for value in dataclasses.astuple(self)).replace("+", "-")

    @property
    def key(self) -> dict[str, str]:
        """As it stands in the csv."""
        return {name: str(value) for name, value in dataclasses.asdict(self).items()}

    def of(self, method: str) -> Cell:
        """The same with another method."""
        return dataclasses.replace(self, method=method, budget=0 if method in UNSIZED else self.budget)


class Encoder(Section):
    """A base model: what a recipe calls it, and the budgets that are about .04, .1, .2 and .4 % of it."""

    model: str
    budgets: list[int] = Field(min_length=1)


class Block(Section):
    """A part of the grid; seeds are the slowest to change, methods the fastest."""

    encoder: str = "minilm"
    datasets: list[str] = list(DATASETS)
    rows: list[int] = [500]
    seeds: list[int] = [0]
    budgets: list[int] | None = None
    methods: list[str]

    @model_validator(mode="after")
    def _check_names(self) -> Block:
        for key, names, known in (("datasets", self.datasets, DATASETS), ("methods", self.methods, METHODS)):
            if wrong := [name for name in names if name not in known]:
                raise invalid(key, wrong[0], known)
        return self


class Study(Section):
    """The whole study.

    Attributes:
        encoders: the base models.
        epochs: train rows -> epochs of every training; the best checkpoint on validation is its result.
        shorter: train rows -> epochs of shorter trainings, each with a schedule of its own, of the tuned LoRA alone; at
            its best learning rate and at the next higher one.
        supernet_epochs: train rows -> epochs of a supernet.
        supernet_rates: train rows -> learning rate of a supernet, where it is not ``rate``.
        batch, max_length: of every training.
        validation_rows, test_rows: at most so many.
        rate: the learning rate of the trainings of runs, where a section does not say another one.
        head: what the learning rate of the new head is multiplied by.
        rates: method, or ``default`` -> learning rates in equal ratios. A best one on the border extends them.
        extensions: of the rates, at most.
        teacher_size: the largest subnets of a supernet, in budgets.
        members, teacher_share: of the teacher of the method `taught`.
        recipe: sections of the recipe of `ours`.
        runs: method of `RUNS` -> what its recipe has in place of those.
        blocks: of the grid, the most telling first.
        primary_budget: encoder -> the budget of the primary figure.
    """

    encoders: dict[str, Encoder]
    epochs: dict[int, float]
    shorter: dict[int, list[float]] = Field(default_factory=dict)
    supernet_epochs: dict[int, float]
    supernet_rates: dict[int, float] = Field(default_factory=dict)
    batch: int = 16
    max_length: int = 64
    validation_rows: int = 500
    test_rows: int = 2500
    rate: float = 2e-3
    head: float = 3.0
    rates: dict[str, list[float]]
    extensions: int = 3
    teacher_size: int = 4
    members: int = 8
    teacher_share: float = 0.5
    recipe: dict[str, Any]
    runs: dict[Literal["ours", "random", "untaught", "paper"], dict[str, Any]]
    blocks: list[Block]
    primary_budget: dict[str, int]

    @classmethod
    def load(cls, path: Path) -> Study:
        """From a YAML file."""
        return validate(cls, load_yaml(path), source=str(path))

    def rates_of(self, method: str) -> list[float]:
        """The learning rates that a method is tuned over, before any extension."""
        return self.rates.get(method, self.rates["default"])

    def ours(self, data: str, seed: int) -> Cell:
        """Our run on a data set, with 500 train rows at the primary budget of MiniLM."""
        return Cell("minilm", data, 500, seed, self.primary_budget["minilm"], "ours")

    def cells(self) -> list[Cell]:
        """All cells in the order of the plan, each once."""
        return list(dict.fromkeys(itertools.chain.from_iterable(map(self._cells, self.blocks))))

    def _cells(self, block: Block) -> Iterator[Cell]:
        budgets = block.budgets or self.encoders[block.encoder].budgets
        grid = itertools.product(block.rows, block.seeds, block.datasets, budgets, block.methods)
        for rows, seed, data, budget, method in grid:
            if rows + 1000 < ALL_ROWS.get(data, rows + 1001):
                yield Cell(block.encoder, data, rows, seed, 0 if method in UNSIZED else budget, method)


def matching(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells with these values, each given as ``name=value``; several of one name are alternatives."""
    wanted: dict[str, set[str]] = {}
    for text in only:
        name, _, value = text.partition("=")
        if name not in Cell.__dataclass_fields__:
            raise invalid("--only", text, [f"{field}=..." for field in Cell.__dataclass_fields__])
        if value not in (known := list(dict.fromkeys(cell.key[name] for cell in cells))):
            raise invalid("--only", text, [f"{name}={own}" for own in known])
        wanted.setdefault(name, set()).add(value)
    return [cell for cell in cells if all(cell.key[name] in values for name, values in wanted.items())]


MINUTES = {"bbc-headlines": 2.0, "sst2": 3.5, "trec": 2.0, "trec-fine": 2.0, "clinc150": 2.0, "tweet-emotion": 4.0}
MINUTES |= {
    "mpqa": 1.5,
    "snips": 2.0,
    "stsb": 4.0,
    "wordnet": 2.5,
    "election-tweets": 4.0,
    "newsgroups": 4.0,
    "reuters": 4.0,
}
"""Of one LoRA training of MiniLM on 500 rows for 20 epochs on one thread, with its test."""
UNITS = {"ours": 5.3, "random": 4.5, "untaught": 3.0, "paper": 9.0, "full": 8.0, "glora": 6.5, "dora": 6.5, "head": 2.0}
"""What a cell takes in LoRA trainings; a tuned LoRA with an extension now and then is 5.3."""


def minutes_of(cell: Cell, study: Study) -> float:
    """An estimate, on one thread."""
    epochs = study.epochs[cell.rows] * cell.rows
    return MINUTES[cell.data] * UNITS.get(cell.method, 5.3) * epochs / (20 * 500)


def print_plan(study: Study, cells: Sequence[Cell], left: Sequence[Cell]) -> None:
    """What is to be done, block by block, with hours of two processes of one thread each."""
    seen: set[Cell] = set()
    total, missing = 0.0, set(left)
    print("block                                                        cells  left  hours on two processes, in sum")
    for block in study.blocks:
        own = [cell for cell in dict.fromkeys(study._cells(block)) if cell not in seen and cell in set(cells)]
        seen |= set(own)
        todo = [cell for cell in own if cell in missing]
        total += sum(minutes_of(cell, study) for cell in todo) / 120
        what = f"{block.encoder} {block.rows} rows, seeds {block.seeds}, {len(block.datasets)} sets: "
        what += " ".join(block.methods)
        print(f"{what[:60]:60} {len(own):5} {len(todo):5}  {total:5.1f}")
