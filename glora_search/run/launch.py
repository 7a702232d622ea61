"""One run by the processes of a launch: ``torchrun`` or ``accelerate launch``, each with a device of its own.

The first process runs the command as if it were alone. Before a stage that several can do, it gives the others an
order: to train with it (DDP), or to share the trials of a search or the trainings of a race. Outside of a training that
they do together no process knows of the others, so that everything else is what it is without a launch. The order goes
through the launch's own store, which no timeout ends.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import distributed

from glora_search.errors import invalid
from glora_search.recipe.schema import Recipe
from glora_search.run.context import Context
from glora_search.run.launcher import end_with_the_launcher, forget, take_device, told
from glora_search.run.origin import check_origin
from glora_search.run.stages import STAGES, Stage, function

SHARDING = ("fsdp", "deepspeed", "parallelism_config")
"""Training arguments for weights that no process has whole: subnets could not be folded into them."""
FAILED, WAIT, FOREVER = "failed", 0.2, timedelta(days=365)


@dataclass
class Launch:
    """This process's place in a launch.

    Attributes:
        rank: 0 is the first process.
        processes: of the whole launch.
        store: what all of them read and write.
        environment: what the launcher has told, put back for a training that the processes do together.
        orders: how many the first process has given.
    """

    rank: int
    processes: int
    store: Any
    environment: Mapping[str, str]
    orders: int = field(default=0, init=False)

    def run(self, command: Callable[[], Any]) -> Any:
        """The first process's command; the others' part in it.

        Raises:
            UserError: see `take_device` and `follow`, or from the command.
        """
        take_device(self.environment)
        return command() if self.rank == 0 else self.follow()

    # -- the first process ---------------------------------------------------------------------------------------------

    @contextmanager
    def order(self, stage: Stage, folder: Path, options: Mapping[str, Any]) -> Iterator[None]:
        """A stage's work, in which the others do their part; it is over when theirs is."""
        number = self._say({"stage": stage.name, "folder": str(folder.resolve()), "options": dict(options)})
        with self.training(number) if stage.together else contextlib.nullcontext():
            yield
        while self.store.add(f"done {number}", 0) < self.processes - 1:
            self._pause()

    def _say(self, order: dict[str, Any] | None) -> int:
        self.store.set(f"order {self.orders}", json.dumps(order))
        self.orders += 1
        return self.orders - 1

    # -- the others ----------------------------------------------------------------------------------------------------

    def follow(self) -> int:
        """Do what the first process orders until it ends.

        Raises:
            UserError: the run folder, the data or the model is another one here.
        """
        for number in itertools.count():
            while not self.store.check([f"order {number}"]):
                self._pause()
            order = json.loads(self.store.get(f"order {number}"))
            if order is None:
                break
            self._obey(number, STAGES[order["stage"]], Path(order["folder"]), order["options"])
            self.store.add(f"done {number}", 1)
        return 0

    def _obey(self, number: int, stage: Stage, folder: Path, options: dict[str, Any]) -> None:
        run = Context(folder)
        if not run.view.is_busy():  # the first process holds its lock
            raise invalid("run", str(folder), "a run folder that all processes of the launch share")
        if stage.together:
            check_origin(run)
            with self.training(number):
                function(stage.function)(run, folder / stage.name)
        else:
            function(stage.joined_by)(folder, **{key: value for key, value in options.items() if key != "workers"})

    # -- all -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def training(self, number: int) -> Iterator[None]:
        """A block in which a Trainer trains with those of the other processes, in a process group for it alone."""
        cuda = torch.cuda.is_available()
        os.environ.update(self.environment)
        if not cuda:  # accelerate looks for the others on a CPU where it is told to use one
            os.environ["ACCELERATE_USE_CPU"] = "true"
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=distributed.PrefixStore(f"training {number}", self.store),
            rank=self.rank,
            world_size=self.processes,
            timeout=FOREVER,
        )
        yield
        distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        forget()

    def tells(self) -> bool:
        """Whether this process is the first that has to say why the launch ends; the others end without a word."""
        try:
            return bool(self.store.add(FAILED, 1) == 1)
        except RuntimeError:  # whoever kept the store has ended
            return self.rank == 0

    def leave(self, code: int) -> NoReturn:
        """End this process, and with the first one all; threads of process groups now and then never do."""
        with contextlib.suppress(RuntimeError):  # whoever kept the store has ended
            if code:
                self.store.add(FAILED, 1)
            elif self.rank == 0:
                self._say(None)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _pause(self) -> None:
        try:
            failed = self.store.check([FAILED])
        except RuntimeError:
            failed = True
        if failed:
            self.leave(1)
        time.sleep(WAIT)


_launch: Launch | None = None


def join() -> Launch:
    """Take this process's place in the launch that the environment describes.

    Raises:
        UserError: see `launcher.told`.
    """
    global _launch
    found = told()
    store, rank, processes = next(distributed.rendezvous("env://"))
    store.set_timeout(FOREVER)
    forget()
    _launch = Launch(rank, processes, store, found)
    end_with_the_launcher()
    return _launch


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that asks for what a launch cannot do.

    Raises:
        UserError: it names the key.
    """
    if _launch is None:
        return
    if recipe.task.device_map is not None:
        raise invalid("task.device_map", recipe.task.device_map, "null in a launch: each process has its own device")
    for section in ("supernet", "retrain", "baseline"):
        training = getattr(recipe, section).training
        for name in SHARDING:
            if training.get(name):
                raise invalid(f"{section}.training.{name}", training[name], "none: each process has the whole model")


def processes() -> int:
    """How many processes do this run."""
    return 1 if _launch is None else _launch.processes


def follows() -> bool:
    """Whether another process of the launch writes the results."""
    return _launch is not None and _launch.rank > 0


@contextmanager
def helped(stage: Stage, folder: Path, options: Mapping[str, Any]) -> Iterator[int]:
    """A stage's work, with the other processes of the launch where it is one for several.

    Args:
        folder: the run folder, whose lock this process holds.
        options: of the stage's function.

    Yields:
        How many processes do it.
    """
    if _launch is None or not (stage.together or stage.joined_by):
        yield 1
        return
    with _launch.order(stage, folder, options):
        yield _launch.processes
