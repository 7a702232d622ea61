"""What a launcher tells each process that it starts, and the device that is the process's own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping

import torch

from glora_search.errors import invalid

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells each process. Whoever reads it believes that it trains with others."""
SHARDED = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)
"""Variables that ask for weights that no process has whole."""


def told() -> dict[str, str]:
    """What the launcher has told, of `NAMES`.

    Raises:
        UserError: something is missing.
    """
    found = {name: os.environ[name] for name in NAMES if name in os.environ}
    if len(found) < len(NAMES):
        allowed = f"1, or what torchrun and accelerate launch set, with {', '.join(NAMES)}"
        raise invalid("WORLD_SIZE", found.get("WORLD_SIZE"), allowed)
    return found


def forget() -> None:
    """Let libraries believe that this process is the only one."""
    for name in NAMES:
        os.environ.pop(name, None)


def take_device(launched: Mapping[str, str]) -> None:
    """Leave this process one device of the machine, which is its own.

    Args:
        launched: what the launcher has told, see `NAMES`.

    Raises:
        UserError: there are too few, or the launch is to shard weights.
    """
    for name in SHARDED:
        if os.environ.get(name, "false").lower() in ("true", "1"):
            raise invalid(name, os.environ[name], "false: each process has the whole model (DDP)")
    here, local = int(launched["LOCAL_WORLD_SIZE"]), int(launched["LOCAL_RANK"])
    devices = own_devices()
    if devices and here > len(devices):
        allowed = f"{len(devices)} or fewer processes on this machine, one for each GPU; on the CPU, set "
        raise invalid("LOCAL_WORLD_SIZE", here, f"{allowed}ACCELERATE_USE_CPU=true")
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[local] if devices else ""


def own_devices() -> list[str]:
    """The GPUs that the launch may use on this machine, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1"):
        return []
    count = torch.cuda.device_count()  # asks the driver's library, and starts nothing that would fix the devices
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(index) for index in range(count)])[:count]


def end_with_the_launcher() -> None:
    """A launcher that is killed does not end what it has launched, and that would hold the run folder's lock."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
