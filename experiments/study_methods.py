"""The uniform methods of the study, each at its largest size within a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from peft import (
    AdaLoraConfig,
    EvaConfig,
    GloraConfig,
    LoraConfig,
    get_peft_model,
    initialize_lora_eva_weights,
)
from study_training import AllocateRanks
from transformers import TrainerCallback, set_seed

from glora_search.adapters.load import adapter_params
from glora_search.scoring import length_sorted_batches
from glora_search.space.bound import ATTENTION_QV, BoundSpace
from glora_search.space.layers import SpaceLayer
from glora_search.space.schema import SearchSpace
from glora_search.training.uniform import uniform_methods

SPACE = "glora"
"""Its layers are those that all methods may adapt."""


@dataclass(frozen=True)
class Start:
    """A method before its training.

    Attributes:
        model: with gradients where it is trained.
        params: of the adapter at its end, without the head.
        lr_factors: what the learning rate of its kinds of paths is multiplied by; the head's is the study's.
        after: the step from which it has this size.
        decay: of the moving average that it ends in; 0 where it ends in the weights themselves.
        callbacks: what its training needs.
    """

    model: Any
    params: int
    lr_factors: dict[str, float] = field(default_factory=dict)
    after: int = 0
    decay: float = 0.0
    callbacks: tuple[TrainerCallback, ...] = ()


@dataclass(frozen=True)
class Ranked:
    """A method of peft whose size is a rank.

    Attributes:
        cost: inputs, outputs and rank of a layer -> the parameters that it adds there.
        config: rank and steps of the training -> peft's config, without what `fresh` fills in.
        queries_and_values: never on more than those; else on all linear layers where rank 1 fits them.
        smallest: rank, below which it is another method.
    """

    cost: Callable[[int, int, int], int]
    config: Callable[[int, int], Any]
    queries_and_values: bool = False
    smallest: int = 1


def _lora(**options: Any) -> Callable[[int, int], Any]:
    return lambda rank, steps: LoraConfig(r=rank, lora_alpha=2 * rank, **options)


def _adalora(rank: int, steps: int) -> Any:
    """Ranks begin at twice the target, and are final after a quarter of the steps."""
    schedule = {"tinit": steps // 20, "tfinal": steps - settled(steps), "deltaT": 1, "total_step": steps}
    return AdaLoraConfig(init_r=2 * rank, target_r=rank, lora_alpha=2 * rank, **schedule)


def settled(steps: int) -> int:
    """The step from which AdaLoRA has its final size: checkpoints before are larger than the budget."""
    return steps // 4


def _pair(inputs: int, outputs: int, rank: int) -> int:
    return rank * (inputs + outputs)


RANKED = {
    "lora": Ranked(_pair, _lora()),
    "lora-qv": Ranked(_pair, _lora(), queries_and_values=True),
    "rslora": Ranked(_pair, _lora(use_rslora=True), smallest=2),  # rank 1 is LoRA
    "dora": Ranked(lambda i, o, r: _pair(i, o, r) + o, _lora(use_dora=True)),
    "adalora": Ranked(_pair, _adalora),
    # rho 1: ranks stay where they are, since moving them to larger layers would break the budget
    "eva": Ranked(_pair, _lora(init_lora_weights="eva", eva_config=EvaConfig(rho=1.0, use_label_mask=False))),
    "glora": Ranked(
        lambda i, o, r: 2 * _pair(i, o, r) + r * (i + 1) + 2 * o,
        lambda rank, steps: GloraConfig(r=rank, config_A_B="lora", config_C="lora", config_D_E="vector"),
    ),
}
LORA = {"taught": 0.0, "lora-averaged": 0.95}
"""Methods that start as LoRA does -> the decay of their averaged weights."""
OWN = ("ia3", "bitfit", "hira", "lora+vectors")
"""Methods of `glora_search.training.uniform`, of which peft has none for all linear layers that fits."""


def size_of(method: Ranked, space: BoundSpace, budget: int) -> tuple[int, list[SpaceLayer]] | None:
    """The largest rank within a budget, and the layers; None where none fits."""
    attention = [layer for layer in space.layers if layer.name.rpartition(".")[2] in ATTENTION_QV]
    for layers in (attention,) if method.queries_and_values else (space.layers, attention):
        rank = 0
        while sum(method.cost(one.in_features, one.out_features, rank + 1) for one in layers) <= budget:
            rank += 1
        if rank:
            return (rank, list(layers)) if rank >= method.smallest else None
    return None


def fresh(method: str, task: Any, budget: int, seed: int, steps: int, batch: int) -> Start | None:
    """A method with new weights; None where it does not fit the budget, or is another method there.

    Args:
        method: of `study_plan.METHODS`, but for runs.
        steps: of its training.
        batch: rows of one, which EVA looks at its layers' inputs with.
    """
    set_seed(seed)  # a new head is drawn
    base = task.model()
    space = SearchSpace.load(SPACE).bind(base, task.modules_to_save)
    if method == "full":  # one rate for all, as it is done
        return Start(base, sum(parameter.numel() for parameter in base.base_model.parameters()), {"head": 1.0})
    if method == "head":
        base.base_model.requires_grad_(False)
        return Start(base, 0)
    if method in OWN:
        found = uniform_methods(space, budget, [method])
        if not found:
            return None
        set_seed(seed)
        model = get_peft_model(base, found[0].config(task.task_type, task.modules_to_save))
        return Start(model, found[0].params, dict(found[0].lr_factors))
    start = _ranked("lora" if method in LORA else method, task, base, space, budget, seed, steps, batch)
    return None if start is None else replace(start, decay=LORA.get(method, 0.0))


def _ranked(
    method: str, task: Any, base: Any, space: BoundSpace, budget: int, seed: int, steps: int, batch: int
) -> Start | None:
    own = RANKED[method]
    size = size_of(own, space, budget)
    if size is None or (method == "lora-qv" and size_of(RANKED["lora"], space, budget) == size):
        return None
    rank, layers = size
    config = own.config(rank, steps)
    config.target_modules = space.targets(layer.name for layer in layers)
    config.task_type, config.modules_to_save = task.task_type, list(task.modules_to_save) or None
    set_seed(seed)
    model = get_peft_model(base, config)
    if method == "eva":
        batches = length_sorted_batches(task.train, task.collator, batch)
        initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    params = sum(own.cost(one.in_features, one.out_features, rank) for one in layers)
    if method == "adalora":  # the diagonal folds into A, and what is pruned is zero
        return Start(model, params, after=settled(steps), callbacks=(AllocateRanks(model),))
    assert adapter_params(model) == params, (method, adapter_params(model), params)
    return Start(model, params)
