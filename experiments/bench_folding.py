"""What folding subnets costs in memory and saves in time: the same subnets scored folded and unfolded.

    python experiments/bench_folding.py

The model has the sizes of SmolLM2-135M (30 layers of 576, 211 linears) and random weights, in float32, on the CPU. The
two ways take turns; the ratio of the medians is printed. The memory is the peak above the loaded supernet, each way in
a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time

import numpy as np
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, default_data_collator

from glora_search import SearchSpace, SupernetConfig
from glora_search.scoring import RowMetric
from glora_search.search import SubnetEvaluator

SIZES = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
LENGTH = 64


def made(rows: int) -> tuple[SubnetEvaluator, list[dict]]:
    """An evaluator that can do both, and subnets of several sizes."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    space = SearchSpace.load("glora").bind(model)
    supernet = get_peft_model(model, SupernetConfig(space=space, task_type="CAUSAL_LM"))
    ids = torch.randint(0, 1_000, (rows, LENGTH)).tolist()
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * LENGTH] * rows, "labels": ids})
    scoring = RowMetric(lambda logits, labels: torch.ones(len(labels)), default_data_collator)
    rng = np.random.default_rng(0)
    return SubnetEvaluator(supernet, data, scoring, batch_size=4), [space.sample(rng) for _ in range(3)]


def peak(fold: bool, rows: int, answer: multiprocessing.SimpleQueue) -> None:
    """The peak of this process above what the supernet takes, in MB."""
    evaluator, genomes = made(rows)
    evaluator.supernet.eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    evaluator.folds = fold
    evaluator(genomes[0])
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    """Print the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32)
    args = parser.parse_args()
    context, memory = multiprocessing.get_context("spawn"), {}
    for fold in (True, False):
        answer = context.SimpleQueue()
        process = context.Process(target=peak, args=(fold, args.rows, answer))
        process.start()
        memory[fold] = answer.get()
        process.join()
    evaluator, genomes = made(args.rows)
    taken: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(args.rounds):
        for genome in genomes:
            for fold in taken:
                evaluator.folds = fold
                started = time.perf_counter()
                evaluator(genome)
                taken[fold].append(time.perf_counter() - started)
    seconds = {fold: statistics.median(values) for fold, values in taken.items()}
    adapted = sum(layer.get_base_layer().weight.numel() for layer in evaluator.supernet.layers().values()) * 4 / 2**20
    print(f"{args.rows} rows of {LENGTH} tokens, {torch.get_num_threads()} threads; adapted weights {adapted:.0f} MB")
    for fold, name in ((True, "folded"), (False, "unfolded")):
        print(f"{name}: {seconds[fold]:.2f} s a subnet, {memory[fold]:.0f} MB above the loaded supernet")
    print(f"unfolded over folded: {seconds[False] / seconds[True]:.2f} of the time")


if __name__ == "__main__":
    main()
