"""What a GLoRA layer costs: time over a plain frozen linear layer, and the peak memory of a training step.

    python experiments/bench_layers.py                            # CPU, float32: tables and csv
    python experiments/bench_layers.py --device cuda --dtype bf16 # adds 4096x4096 and 4096x14336 at 4,096 tokens
    python experiments/bench_layers.py --only memory

Times are ratios to the plain layer's within a round, the median over interleaved rounds in one process: every round
runs each contestant once, in random order, so that a change of the machine's speed hits all of them alike. Memory is
the peak of a training step (forward, backward, optimizer step) of a 12-layer BERT-base-wide encoder, above what the
libraries take, each in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import torch
from layer_contestants import LORA_RANK, PATH_SETS, contestants, floor, stock_kinds
from peft import get_peft_model
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from glora_search.tuners.glora import GLoraConfig

RESULTS = Path(__file__).parent / "results" / "bench_layers"
CPU_SHAPES = [(384, 384), (1536, 384), (768, 3072), (2048, 2048)]
"""Sizes of W0, ``(out, in)``."""
GPU_SHAPES = [(4096, 4096), (4096, 14336)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def run_once(layer: nn.Module, x: Tensor, gradient: Tensor | None) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad():
            layer(x)

    parameters = [x, *layer.parameters()]

    def both() -> None:
        for parameter in parameters:
            parameter.grad = None
        layer(x).backward(gradient)

    return forward if gradient is None else both


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def warm_up(args: argparse.Namespace) -> None:
    """Wake the threads and the kernels' caches, so that the first cell is like the others."""
    work = torch.randn(1024, 1024, device=args.device)
    until = time.perf_counter() + 2
    while time.perf_counter() < until:
        work = torch.tanh(work @ work)
    synchronize(args.device)


def ratios(work: dict[str, Callable[[], None]], rounds: int, device: str, least: float = 0.01) -> dict[str, float]:
    """Time over the plain layer's: the ratio within each round, then the median over the rounds.

    Fast work is repeated within a round until it takes ``least`` seconds. The plain layer's own entry is its median in
    seconds.
    """
    repeats = {}
    for name, call in work.items():
        call()
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        repeats[name] = max(1, min(50, round(least / (time.perf_counter() - started))))
    seconds: dict[str, list[float]] = {name: [] for name in work}
    shuffler = random.Random(0)
    for _ in range(rounds):
        for name in shuffler.sample(list(work), len(work)):
            synchronize(device)
            started = time.perf_counter()
            for _ in range(repeats[name]):
                work[name]()
            synchronize(device)
            seconds[name].append((time.perf_counter() - started) / repeats[name])
    plain = seconds["plain"]
    found = {
        name: statistics.median(own / base for own, base in zip(values, plain, strict=True))
        for name, values in seconds.items()
    }
    return {**found, "plain": statistics.median(plain)}


def undisturbed(work: dict[str, Callable[[], None]], rounds: int, device: str, tries: int = 3) -> dict[str, float]:
    """`ratios`, measured again where the control is off: a merged layer is a plain one, so its ratio has to be 1.

    Of several tries the one with the best control counts; the figures themselves have no say.
    """
    best: dict[str, float] = {}
    for _ in range(tries):
        found = ratios(work, rounds, device)
        if not best or abs(found["ours merged"] - 1) < abs(best["ours merged"] - 1):
            best = found
        if abs(best["ours merged"] - 1) <= 0.03:
            break
    return best


def bench_time(args: argparse.Namespace) -> pd.DataFrame:
    dtype = DTYPES[args.dtype]
    cells = [
        (shape, tokens, r, name)
        for shape, all_tokens in [
            *((shape, (512, 2048)) for shape in CPU_SHAPES),
            *((shape, (4096,)) for shape in GPU_SHAPES if args.device != "cpu"),
        ]
        for tokens in all_tokens
        for r in (4, 8)
        for name in PATH_SETS
    ]
    if args.quick:
        wanted = [((768, 3072), 2048, 8), ((2048, 2048), 512, 8), ((384, 384), 512, 4)]
        cells = [cell for cell in cells if cell[:3] in wanted]
    warm_up(args)
    rows: list[dict[str, Any]] = []
    for shape, tokens, r, name in track(cells, description="time"):
        torch.manual_seed(0)
        layers = contestants(shape, r, PATH_SETS[name], args.device, dtype)
        x = torch.randn(tokens, shape[1], device=args.device, dtype=dtype, requires_grad=True)
        gradient = torch.randn(tokens, shape[0], device=args.device, dtype=dtype)
        for backward in (False, True):
            passes = "forward+backward" if backward else "forward"
            work = {key: run_once(layer, x, gradient if backward else None) for key, layer in layers.items()}
            found = undisturbed(work, args.rounds, args.device)
            row = {"out": shape[0], "in": shape[1], "tokens": tokens, "r": r, "paths": name, "pass": passes}
            row |= {"floor": round(floor(shape, tokens, r, PATH_SETS[name], backward), 3)}
            row |= {"plain_ms": round(found["plain"] * 1e3, 3)}
            row |= {key: round(ratio, 3) for key, ratio in found.items() if key != "plain"}
            rows.append({**row, "faster_than_stock": round(found["stock GLoRA"] / found["ours"], 2)})
    return pd.DataFrame(rows)


# -- memory: each measured in a process of its own ---------------------------------------------------------------------

MODELS = (
    "frozen, head only",
    "peft LoRA r=8",
    *(f"{who}: {name}" for name in PATH_SETS for who in ("stock GLoRA", "ours")),
)


def memory_model(which: str, r: int) -> nn.Module:
    """A BERT-base-wide encoder of 12 layers with an adapter on all its linear layers."""
    config = BertConfig(vocab_size=1000, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2)
    base = BertForSequenceClassification(config)
    targets = r"bert\.encoder\..*(query|key|value|dense)"
    who, _, name = which.partition(": ")
    if which == "frozen, head only":
        for parameter in base.bert.parameters():
            parameter.requires_grad_(False)
        return base
    if which == "peft LoRA r=8":
        return get_peft_model(base, peft.LoraConfig(r=LORA_RANK, target_modules=targets, task_type="SEQ_CLS"))
    kinds = PATH_SETS[name]
    if who == "stock GLoRA":
        stock = peft.GloraConfig(r=r, target_modules=targets, task_type="SEQ_CLS", **stock_kinds(kinds))
        return get_peft_model(base, stock)
    none = {f"config_{path}": "none" for path in ("A_B", "C", "D_E")}
    own = {f"config_{path}": kind for path, kind in kinds.items()}
    return get_peft_model(base, GLoraConfig(r=r, target_modules=targets, task_type="SEQ_CLS", **{**none, **own}))


def measure_memory(which: str, args: argparse.Namespace) -> None:
    """Print the peak memory of a training step, in MB; run in a process of its own."""
    torch.manual_seed(0)
    libraries = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model = memory_model(which, r=8).to(args.device)
    if args.dtype != "fp32":
        frozen = [p for p in model.parameters() if not p.requires_grad]
        for parameter in frozen:
            parameter.data = parameter.data.to(DTYPES[args.dtype])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    tokens = torch.randint(0, 1000, (args.batch, 128), device=args.device)
    labels = torch.zeros(args.batch, dtype=torch.long, device=args.device)
    for _ in range(2):
        with torch.autocast(args.device, dtype=DTYPES[args.dtype], enabled=args.dtype != "fp32"):
            loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if args.device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - libraries
    else:
        peak = torch.cuda.max_memory_allocated() / 2**20
    # A trained parameter, its gradient and AdamW's two moments.
    state = 4 * sum(p.numel() * p.element_size() for p in optimizer.param_groups[0]["params"]) / 2**20
    print(json.dumps({"peak_mb": round(peak, 1), "state_mb": round(state, 1)}))


def bench_memory(args: argparse.Namespace) -> pd.DataFrame:
    rows = []
    for which in track(MODELS, description="memory"):
        command = [sys.executable, __file__, "--memory-of", which, "--device", args.device, "--dtype", args.dtype]
        # glibc gives freed memory back at once only where a block is mapped by itself; without this the figure is one
        # of the heap's fragments, to which peft LoRA's many temporaries add several hundred MB.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        command += ["--batch", str(args.batch)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        rows.append({"model": which, **json.loads(done.stdout.strip().splitlines()[-1])})
    frame = pd.DataFrame(rows)
    lora = frame[frame["model"] == "peft LoRA r=8"].iloc[0]
    frame["over_lora"] = (frame["peak_mb"] / lora["peak_mb"]).round(3)
    without_state = frame["peak_mb"] - frame["state_mb"]
    frame["above_lora_without_state_mb"] = (without_state - (lora["peak_mb"] - lora["state_mb"])).round(1)
    return frame


def show(frame: pd.DataFrame, title: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in frame.columns:
        table.add_column(str(column), justify="left" if frame[column].dtype == object else "right")
    for row in frame.itertuples(index=False):
        table.add_row(*(str(value) for value in row))
    Console(width=200).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the base layer and the input")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batch", type=int, default=8, help="texts of 128 tokens in the training step (memory)")
    parser.add_argument("--only", choices=("time", "memory"))
    parser.add_argument("--quick", action="store_true", help="only the cells that have a target")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the csv files")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        measure_memory(args.memory_of, args)
        return
    suffix = f"{args.device}-{args.dtype}"
    args.output.mkdir(parents=True, exist_ok=True)
    for part, bench in (("time", bench_time), ("memory", bench_memory)):
        if args.only in (None, part):
            frame = bench(args)
            show(frame, f"{part}, {suffix}")
            frame.to_csv(args.output / f"{part}-{suffix}.csv", index=False)
    facts = {
        "command": " ".join(["python", "experiments/bench_layers.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if args.device != "cpu" else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "peft": peft.__version__},
    }
    (args.output / f"environment-{suffix}.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
