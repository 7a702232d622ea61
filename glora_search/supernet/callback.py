"""All subnets of a supernet in somebody else's Trainer."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from glora_search.errors import invalid
from glora_search.supernet.sampling import Sampling


class SamplingCallback(TrainerCallback):
    """Trains another subnet at each step, in any trainer that calls back as ``transformers.Trainer`` does.

    It is for trainers that bring a loss of their own, such as TRL's ``SFTTrainer``; `SupernetTrainer` does the same and
    more: learning rates by kind of path, several subnets a step, and evaluations of several probes. Here, evaluations
    and what is saved after them have the largest subnet active.

    Args:
        sampling: step -> the genome that it trains, such as `SizeSampling`.

    Raises:
        UserError: in training: a step has several subnets, as with `SandwichSampling`, or
            ``ddp_find_unused_parameters`` is off, though every step leaves parameters without a gradient.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check what a supernet needs."""
        if args.ddp_find_unused_parameters is False:
            raise invalid("ddp_find_unused_parameters", False, "True: a subnet leaves the other subnets' weights out")

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: PeftModel,
        **kwargs: Any,
    ) -> None:
        """Activate the step's subnet."""
        genomes = self.sampling(state.global_step)
        if len(genomes) != 1:
            name = type(self.sampling).__name__
            raise invalid("sampling", name, "a strategy of one subnet a step; SupernetTrainer trains several")
        model.activate(genomes[0])

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: PeftModel,
        **kwargs: Any,
    ) -> None:
        """Activate the largest subnet, so that the evaluations of different steps compare."""
        model.activate(self.sampling.space.largest)
