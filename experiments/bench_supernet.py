"""What a training step of a supernet costs, beside one of peft's LoRA r=4: MiniLM, the quickstart's headlines.

    python experiments/bench_supernet.py --rounds 60

Every round runs each contestant once on the same batch, in random order; a supernet's step includes drawing the subnet,
and all include the optimizer's. The table has the medians, and the median of each round's ratio to LoRA's.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pandas as pd
import torch
import transformers
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import track

from glora_search.files.text import write_json
from glora_search.recipe.schema import Recipe
from glora_search.run.making import environment
from glora_search.space.schema import SearchSpace
from glora_search.supernet import SupernetConfig, make_sampling
from glora_search.tasks.text_classification import TextClassification

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results" / "bench_supernet"
SPACES = {"glora": "glora", "all five paths, 3 ranks": str(ROOT / "experiments" / "spaces" / "fidelity.yaml")}
BUDGET = 60_000
CONTESTANTS = [
    (space, strategy, sharing, budget)
    for space in SPACES
    for strategy, sharing, budget in (
        ("sizes", "separate", None),
        ("sizes", "separate", BUDGET),
        ("sizes", "nested", None),
        ("uniform", "separate", None),
        ("fair", "separate", None),
        ("budget", "separate", BUDGET),
    )
]


def step_of(model: Any, activate: Callable[[int], None]) -> Callable[[int, dict[str, Any]], None]:
    """A training step: choose the subnet, forward, backward, optimizer."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(number: int, batch: dict[str, Any]) -> None:
        activate(number)
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    recipe = {"name": "bench", "task": {"model": "minilm", "max_length": 64}, "data": {"source": "bbc-headlines"}}
    task = TextClassification(Recipe.model_validate({**recipe, "space": "glora"}))
    lora = LoraConfig(r=4, target_modules="all-linear", exclude_modules=["pooler.dense"], task_type=task.task_type)
    steps = {("peft LoRA r=4", "", "", None): step_of(get_peft_model(task.model(), lora), lambda number: None)}
    for contestant in CONTESTANTS:
        space_name, strategy, sharing, budget = contestant
        base = task.model()
        space = SearchSpace.load(SPACES[space_name]).bind(base, task.modules_to_save)
        model: Any = get_peft_model(base, SupernetConfig(space=space, sharing=sharing, task_type=task.task_type))
        sampling = make_sampling(strategy, space, seed=0, max_params=budget)
        steps[contestant] = step_of(model, lambda number, m=model, draw=sampling: m.activate(draw(number)[0]))
    order = random.Random(0)
    times: dict[Any, list[float]] = {name: [] for name in steps}
    for number in track(range(-3, args.rounds), description="rounds"):
        rows = [task.train[order.randrange(len(task.train))] for _ in range(args.batch)]
        batch = dict(task.collator(rows))
        for name in order.sample(list(steps), len(steps)):
            started = time.perf_counter()
            steps[name](number + 3, batch)
            if number >= 0:
                times[name].append(time.perf_counter() - started)
    first = next(iter(times.values()))
    table = [
        {
            "space": space, "sampling": strategy, "sharing": sharing, "budget": budget or "",
            "ms": round(statistics.median(own) * 1000, 1),
            "over_lora": round(statistics.median(a / b for a, b in zip(own, first, strict=True)), 3),
        }
        for (space, strategy, sharing, budget), own in times.items()
    ]  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(table)
    frame.to_csv(RESULTS / "steps.csv", index=False)
    write_json(RESULTS / "environment.json", {**environment(), "threads": args.threads, "rounds": args.rounds})
    Console(width=160).print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
