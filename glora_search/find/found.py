"""What was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import optuna
from peft import PeftConfig, PeftModel

from glora_search.scoring import Evaluation
from glora_search.space import Genome


@dataclass(frozen=True)
class FoundAdapter:
    """What `find_adapter` returns.

    Attributes:
        model: the base model with the found adapter: to be trained on, saved, or merged.
        config: the adapter's fixed configuration; peft's ``LoraConfig`` where LoRA has won the finals.
        genome: gene -> choice; None where a uniform method has won.
        params: trainable parameters of the adapter, the head not counted.
        evaluation: metric and loss of ``model`` on the validation rows.
        inherited: of the search's best subnet, with the weights of the supernet, before it was trained on.
        study: the search, one finished trial a subnet.
        finals: how the race ended, a row for each finalist, the winner first; empty without one.
        baseline: the name of the tuned uniform method among them, trained without a teacher; None without one.
        passed_over: a subnet with a lower validation loss than the winner, by too little: its ``name``, its ``lead``,
            and the ``standard_error`` of that; None without one.
    """

    model: PeftModel
    config: PeftConfig
    genome: Genome | None
    params: int
    evaluation: Evaluation
    inherited: Evaluation
    study: optuna.Study
    finals: list[dict[str, Any]] = field(default_factory=list)
    baseline: str | None = None
    passed_over: dict[str, Any] | None = None
