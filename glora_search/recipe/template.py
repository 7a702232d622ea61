"""The recipe that ``init`` writes: the keys that users change, each with its default and a comment."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from glora_search.files.text import dump_yaml

# Comments start with "# ". A key after "#" without a space is commented out and shows its default.
TEMPLATE = """\
# A glora-search recipe describes one experiment. Every key is checked; errors list the accepted keys.
# In a section, a line that starts with '#' and a key shows a default. To change it, remove the '#'.
name: {name}                    # the run folder is runs/<name>
seed: 0                         # of the splits, of all training, and of the search

task:
  type: {type}     # or text-regression, multi-label, token-classification, causal-lm, seq2seq-lm, image-classification
  model: {model}                # a hub name, a folder, or minilm (needs the extra 'demo')
  max_length: {max_length}      # maximum length of a text in tokens; longer texts are cut
{prompt}
  #quantization: null           # or {{load_in_4bit: true}}, {{load_in_8bit: true}}, {{int8_weight_only: true}}
  #trust_remote_code: false     # run code from the model's hub repository

data:                           # or from the hub: {{source: hub, name: stanfordnlp/sst2, text_column: sentence}}
{data}
  #validation_fraction: 0.15    # fraction of train to use for a split that is null
  #test_fraction: 0.2
  #max_train_rows: null         # train on a random subset of this size
{unlabelled}

space: {space}                  # a search space; glora-search spaces list shows the shipped ones

supernet:                       # holds all choices of every layer, with shared weights
  training:                     # any field of transformers.TrainingArguments
    num_train_epochs: 10        # each step trains one subnet, so a supernet needs more epochs than one adapter,
    learning_rate: 4.0e-3       # and twice its learning rate, or four times where its steps are few
{supernet_batch}
  #sampling: sizes              # picks the subnets of each step: sizes, uniform (the paper's), fair, sandwich, budget
  #sampling_options: {{}}
  #sharing: separate            # or nested: the kinds of a path share tensors, as in the paper's code
  #max_params: null             # size of the largest subnet to train; null is the budget, or 4 times it with a teacher
  #lr_factors: auto             # multipliers of the learning rate by kind of path: {{vector: 2, head: 5}}
  #patience: null               # stop after this many evaluations without improvement

search:                         # finds the best subnet on the validation split
  max_params: {budget}          # the budget: maximum number of trainable adapter parameters; null sets no budget
  trials: {trials}                  # number of subnets to evaluate; the study in docs/evidence.md has 40
  #budgets: []                  # smaller budgets, each with a final adapter of its own on the same supernet
  #sampler: evolution           # or paper, nsga2, tpe, random
  #objective: best              # or front: the Pareto front of score and parameters, with nsga2 or tpe
  #score: loss                  # what to optimise: the validation loss, or the metric
  #options: {{}}                # keyword arguments of the sampler: {{n_parents: 10}}
  {search_batch}                # rows per evaluation batch
  #racing: false                # stop evaluating a subnet once it can no longer become one of the best
  #calibration_steps: 0         # train each subnet before scoring it: 40 steps rank better, at 3 to 6 times the cost
  #fold: null                   # fold subnets into the base weights to score them; null does so where memory allows

finals:                         # the best subnets race against LoRA and other uniform methods; the winner is exported
  training:                     # of each finalist; its best checkpoint counts, so extra epochs only cost time
    num_train_epochs: 10
    learning_rate: 2.0e-3
{finals_batch}
  #subnets: 2                   # how many of the search's best subnets compete
  #methods: [lora, ia3]         # uniform methods that compete; also bitfit, hira and lora+vectors
  #rates: [0.5, 1, 2]           # LoRA's learning rates, as multiples of the one above
  #teacher: 8                   # how many subnets teach, by their mean prediction; 0 is no teacher
  #teacher_share: 0.5           # the teacher's share of the loss
  #margin: 1                    # standard errors by which a subnet has to lead to win; 0: the lowest loss wins
  #lr_factors: null             # null uses the supernet's

#retrain:                       # in place of finals: trains the best subnet alone; the result is used if it is better
#  from: inherited              # start from the supernet's weights, or from scratch
#  training: {{num_train_epochs: 3, learning_rate: 2.0e-3, per_device_train_batch_size: {batch_size}}}
#  lr_factors: null             # null uses the supernet's

#baselines: [lora]              # for runs without finals, which have a tuned baseline: peft's LoRA at the largest rank
#baseline:
#  training: {{}}               # as the supernet's, with the epochs of supernet and retraining together
#  lr_factors: null             # null uses the supernet's
"""

EXAMPLE = {"source": "csv", "train": "train.csv", "text_column": "text", "label_column": "label"}
EXAMPLES: dict[str, dict[str, Any]] = {
    "token-classification": {**EXAMPLE, "source": "json", "train": "train.jsonl", "label_column": "tags"},
    "causal-lm": {"source": "json", "train": "train.jsonl", "messages_column": "messages"},
    "seq2seq-lm": {"source": "json", "train": "train.jsonl", "text_column": "text", "response_column": "response"},
    "image-classification": {"source": "imagefolder", "train": "train", "label_column": "label"},
}
COMMENTS = {
    "train": "a csv file with a header line",
    "validation": "used by the search; null cuts it from train",
    "test": "read once, at the end; null cuts it from train",
    "response_column": "the response to the prompt, which is learned",
    "messages_column": "conversations; the assistant's turns are learned",
}
DEFAULTS: dict[str, Any] = {
    "type": "text-classification",
    "model": "minilm",
    "max_length": 128,
    "batch_size": 32,
    "space": "glora-ranks",
    "budget": 60_000,
    "trials": 40,
}
OTHERS: dict[str, dict[str, Any]] = {
    "causal-lm": {"model": "HuggingFaceTB/SmolLM2-135M", "max_length": 512, "batch_size": 8, "budget": 500_000},
    "seq2seq-lm": {"model": "google/flan-t5-small", "max_length": 256, "batch_size": 8, "budget": 300_000},
    "image-classification": {"model": "google/vit-base-patch16-224-in21k", "budget": 200_000},
}
"""Other defaults of a task; the budgets are one to two times LoRA of rank 1 on these models."""
CHAT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model of conversations: its tokenizer has a chat template."""


def recipe_template(
    name: str, values: Mapping[str, Any], *, data: Mapping[str, Any] | None = None, prompt: Any = None
) -> str:
    """The text of a recipe.

    Args:
        name: name of the experiment.
        values: values that replace those of `DEFAULTS`, and of `OTHERS` for the task's ``type``.
        data: the data section; None is an example.
        prompt: the task's; None is none.
    """
    type_ = values.get("type", DEFAULTS["type"])
    data = {"validation": None, "test": None, **(EXAMPLES.get(type_, EXAMPLE) if data is None else data)}
    own = OTHERS.get(type_, {}) | ({"model": CHAT_MODEL} if "messages_column" in data else {})
    filled = {key: _as_yaml(value) for key, value in {**DEFAULTS, **own, **values, "name": name}.items()}
    size = own.get("batch_size")
    filled |= {f"data_{key}": _as_yaml(value) for key, value in data.items()}
    filled["search_batch"] = f"batch_size: {size}" if size else "#batch_size: 64"
    blocks = {
        "{data}": _data_lines(data),
        "{prompt}": _task_lines(type_, prompt),
        "{supernet_batch}": _batch_lines("" if size else "16, 12 epochs, and a rate of 8.0e-3"),
        "{finals_batch}": _batch_lines("" if size else "16, and 20 epochs"),
        "{unlabelled}": _unlabelled_lines(type_, data["source"]),
    }
    lines = [line for written in TEMPLATE.splitlines() for line in blocks.get(written, [written])]
    return "\n".join(_filled(line, filled) for line in lines) + "\n"


def _data_lines(data: Mapping[str, Any]) -> list[str]:
    order = ("source", "folder", "name", "config", "train", "separator", "validation", "test")
    keys = [*(key for key in order if key in data), *(key for key in data if key not in order)]
    lines = []
    for key in keys:
        comment = COMMENTS.get(key, "") if key != "train" or data["source"] == "csv" else ""
        text = f"  #{key}: null" if data[key] is None else f"  {key}: {{data_{key}}}"
        lines.append(f"{text} # {comment}" if comment else text)
    return lines


def _task_lines(type_: str, prompt: Any) -> list[str]:
    lines = []
    if prompt is not None:
        templates = [prompt] if isinstance(prompt, str) else prompt
        quoted = [json.dumps(template, ensure_ascii=False) for template in templates]
        lines += [
            "  prompt: # columns in braces; a row uses the first template whose columns all have text",
            *(f"    - {_escaped(text)}" for text in quoted),
        ]
    if type_ in ("causal-lm", "seq2seq-lm"):
        lines += ["  #metrics: [] # of the answers, such as {{type: exact-match}}; perplexity is always measured"]
    return lines


def _batch_lines(few: str) -> list[str]:
    """Args: few: what was better with few rows; empty is nothing."""
    line = "    per_device_train_batch_size: {batch_size}"
    return [f"{line} # with about 500 rows: {few} (docs/evidence.md)" if few else line]


def _unlabelled_lines(type_: str, source: str) -> list[str]:
    if type_ not in ("text-classification", "image-classification"):
        return []
    what = "csv file" if source == "csv" else "split" if source in ("saved", "hub") else "path"
    return [f"  #unlabelled: null # a {what} with further rows, which the teacher of the finals labels"]


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _as_yaml(value: Any) -> str:
    return dump_yaml([value], default_flow_style=True, width=sys.maxsize)[1:-2]


def _filled(line: str, values: Mapping[str, str]) -> str:
    """Fill in a line and keep its comment aligned with the others."""
    if line.lstrip().startswith("- "):
        return line.format(**values)
    key, mark, comment = (part.format(**values) for part in line.partition(" # "))
    return f"{key.rstrip():<31} # {comment}" if mark and key.strip() else f"{key}{mark}{comment}"
