"""What the stages of a run keep in memory, counted before anything is loaded, on a model of shapes alone.

The formulas are in docs/choosing-a-budget.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from transformers import AutoConfig, PreTrainedModel

from glora_search.errors import invalid
from glora_search.recipe.loading import Quantization
from glora_search.recipe.schema import Recipe
from glora_search.scoring import Batch, Batches
from glora_search.space import BoundSpace, SearchSpace
from glora_search.supernet.config import SupernetConfig
from glora_search.tasks import Task
from glora_search.tasks.models import heads_of
from glora_search.training.baselines import baseline_settings
from glora_search.training.loop import training_arguments
from glora_search.training.uniform import uniform_methods

TRAINED = 16
"""Bytes of a trained parameter: itself, its gradient and two moments of AdamW, in float32."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a stage, by kind.

    Attributes:
        weights: of the base model; of the merged one while merging.
        adapter: what is trained, with gradients and the optimizer's moments while it is.
        dense: two matrices of the largest adapted layer, for a low-rank A, a quantised weight, or folding.
        folded: the second copy of the adapted weights.
        activations: what a training step keeps for its backward pass, or the largest two that scoring has at a time.
        logits: of a batch, with what the loss makes of them.
    """

    weights: int
    adapter: int
    dense: int
    folded: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Sizes:
    """A run's parameters, and the memory of its stages.

    Attributes:
        space: bound to the model without its weights.
        parameters: what is counted -> how many.
        stages: command -> its memory.
    """

    space: BoundSpace
    parameters: dict[str, int]
    stages: dict[str, Memory]


def sizes(recipe: Recipe, task: Task) -> Sizes:
    """Count parameters and memory.

    Raises:
        UserError: the model cannot be made without its weights, or the space does not fit it.
    """
    base, quantization = skeleton(task), recipe.task.quantization
    heads = tuple(heads_of(base)) if task.outputs else ()
    space = SearchSpace.load(recipe.space).bind(base, heads)
    matrices = [layer.in_features * layer.out_features for layer in space.layers]
    itemsize, whole = base.dtype.itemsize, weight_bytes(base)
    output = base.get_output_embeddings() if not task.outputs else None
    kept = [*heads, *(name for name, module in base.named_modules() if module is output)]
    weights = weight_bytes(base, quantization, kept)
    head = sum(value.numel() for name in heads for value in base.get_submodule(name).parameters())
    most = space.params(space.largest)
    budget, methods = recipe.search.max_params, recipe.finals.methods if recipe.finals is not None else ["lora"]
    adapter = most if budget is None else min(most, budget)
    if recipe.finals is not None or recipe.baselines:  # a uniform method's rank grows with the budget
        adapter = max(adapter, *(method.params for method in uniform_methods(space, budget, methods)), 0)
    vocabulary = int(output.weight.shape[0]) if output is not None else 0
    parameters = {"model": base.num_parameters(), "adapted layers": sum(matrices)}

    config = SupernetConfig(space=space, sharing=recipe.supernet.sharing, task_type=task.task_type)
    supernet = get_peft_model(base, config)
    shared = sum(value.numel() for name, value in supernet.named_parameters() if ".supernet_" in name)
    dense = 2 * max(matrices) * max(itemsize, 4)
    folds = quantization is None if recipe.search.fold is None else recipe.search.fold

    def trained(section: dict[str, Any], count: int) -> Memory:
        args = training_arguments(section, Path("unused"), recipe.seed)
        batch = _longest(task, task.train, args.per_device_train_batch_size)
        activations = step_bytes(supernet, batch, vocabulary, checkpointed=args.gradient_checkpointing)
        made = logit_bytes(batch, vocabulary, itemsize, trained=True)
        return Memory(weights, TRAINED * (count + head), dense, 0, activations, made)

    batch = _longest(task, task.train_rows, recipe.search.batch_size)
    tokens = batch["input_ids"].numel() if "input_ids" in batch else len(batch["labels"])
    widest = max(max(layer.in_features, layer.out_features) for layer in space.layers)
    scored = (2 * tokens * widest * itemsize, logit_bytes(batch, vocabulary, itemsize, trained=False))
    section, name = (recipe.finals, "finals") if recipe.finals is not None else (recipe.retrain, "retrain")
    stages = {
        "train-supernet": trained(recipe.supernet.training, shared),
        "search": Memory(weights, 4 * (shared + head), dense, folds * sum(matrices) * itemsize, *scored),
        name: trained(section.training, adapter),
        **({"baselines": trained(baseline_settings(recipe, len(task.train)), adapter)} if recipe.baselines else {}),
        "merge": Memory(whole, 4 * (adapter + head), dense, 0, *scored),
    }
    if recipe.search.calibration_steps:
        stages["search"] = max(stages["search"], stages["train-supernet"], key=lambda memory: memory.total)
    return Sizes(space, {**parameters, "supernet": shared, "largest adapter": adapter, "head": head}, stages)


def skeleton(task: Task) -> PreTrainedModel:
    """The recipe's model without its weights; only its configuration is read.

    Raises:
        UserError: it cannot be made so.
    """
    own, options = task.recipe.task, task.model_options()
    names = {key: options[key] for key in ("id2label", "label2id", "problem_type") if key in options}
    config = task.load(AutoConfig, **names)
    dtype = getattr(torch, own.dtype) if own.dtype is not None else getattr(config, "dtype", None) or torch.float32
    try:
        with torch.device("meta"):
            return task.auto_class.from_config(config, dtype=dtype)  # type: ignore[no-any-return]
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise invalid("task.model", own.model, f"a model that can be made without weights ({error})") from error


def weight_bytes(model: nn.Module, quantization: Quantization | None = None, kept: Sequence[str] = ()) -> int:
    """Bytes of a model's weights, once its linear layers are quantised.

    Args:
        kept: modules that stay as they are.
    """
    found = sum(value.numel() * value.element_size() for value in {*model.parameters(), *model.buffers()})
    if quantization is None:
        return found
    stay = tuple(f"{name}." for name in (*kept, *quantization.skip_modules))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not f"{name}.".startswith(stay):
            rows, columns = module.weight.shape
            found -= (rows * columns) * module.weight.element_size()
            found += packed_bytes(quantization, rows, columns, module.weight.element_size())
    return found


def packed_bytes(quantization: Quantization, rows: int, columns: int, itemsize: int) -> int:
    """Bytes of one quantised weight: its numbers, and a scale for each row or, of 4 bit, for 64 numbers."""
    size = rows * columns
    if not quantization.load_in_4bit:
        return size + rows * (4 if quantization.load_in_8bit else itemsize)
    blocks = -(-size // 64)
    return -(-size // 2) + (blocks + 4 * -(-blocks // 256) if quantization.bnb_4bit_use_double_quant else 4 * blocks)


def logit_bytes(batch: Batch, vocabulary: int, itemsize: int, *, trained: bool) -> int:
    """Bytes of a language model's logits: their own, a copy in float32 where they are in less, their log-softmax, and
    in training their gradient."""
    each = itemsize + (4 if itemsize < 4 else 0) + 4 + (4 if trained else 0)
    return batch["labels"].numel() * vocabulary * each


def step_bytes(model: nn.Module, batch: Batch, vocabulary: int = 0, *, checkpointed: bool = False) -> int:
    """Bytes that autograd keeps of a forward pass until the backward pass, but for weights and logits.

    Args:
        model: where it is on ``meta``, nothing is computed.
    """
    held: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    fake = any(value.is_meta for value in held.values())
    with FakeTensorMode() if fake else nullcontext() as mode:
        if mode is not None:
            held = {
                name: torch.empty(value.shape, dtype=value.dtype, requires_grad=value.requires_grad)
                for name, value in held.items()
            }
            batch = {
                name: mode.from_tensor(value) if isinstance(value, Tensor) else value for name, value in batch.items()
            }
        seen = {_memory(value) for value in held.values()}
        alive: list[Tensor] = []  # else another tensor could take the place of one

        def count(value: Tensor) -> Tensor:
            if _memory(value) not in seen and not (value.dim() > 1 and value.shape[-1] == vocabulary):
                seen.add(_memory(value))
                alive.append(value)
            return value

        model.train()
        if checkpointed:
            model.gradient_checkpointing_enable()  # type: ignore[operator]
        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            functional_call(model, held, kwargs=batch)
        if checkpointed:
            model.gradient_checkpointing_disable()  # type: ignore[operator]
    return sum(value.untyped_storage().nbytes() for value in alive)


def _memory(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _longest(task: Task, rows: Dataset, count: int) -> Batch:
    """A batch of the longest of these rows."""
    batches = Batches(rows, task.collator, min(count, len(rows)))
    return dict(task.collator([rows[int(row)] for row in batches.order[-batches.batch_size :]]))
