"""How long an epoch takes with and without packing: LoRA r=8 on a random model of SmolLM2-135M's width.

    python experiments/bench_packing.py

Rows are as long as instructions with answers (log-normal, of 90 tokens in the middle, up to 512), and all tokens are
learned. A step has 8 rows in random order, or 8 of similar length, as Trainer's ``group_by_length`` makes them, or as
many packed sequences as hold about 8 rows. A few steps of each are timed, in seconds of a processor; an epoch takes
what its tokens do, those that pad included.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich.console import Console
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, RandomSampler
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.trainer_pt_utils import LengthGroupedSampler

from glora_search.files.text import write_json
from glora_search.run.making import environment
from glora_search.tasks.packing import PackedRows, packed

RESULTS = Path(__file__).resolve().parent / "results" / "bench_packing"
LAYOUT = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
SIZE, BATCH = 512, 8
FILL = {"input_ids": 0, "attention_mask": 0, "labels": -100}


def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows that are not packed, in a batch."""
    return {
        name: pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=fill)
        for name, fill in FILL.items()
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocabulary", type=int, default=49152)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(90), 0.7, args.rows), 8, SIZE).astype(int)
    ids = [rng.integers(1, args.vocabulary, length).tolist() for length in lengths]
    masks = [[1] * len(own) for own in ids]
    rows = Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": [[-100, *own[1:]] for own in ids]})
    sequences = packed(rows, SIZE)
    config = LlamaConfig(**LAYOUT, num_hidden_layers=args.layers, vocab_size=args.vocabulary)
    model: Any = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=8, target_modules="all-linear"))
    collator = PackedRows(padded, 0)
    few = max(1, round(BATCH * len(sequences) / len(rows)))
    grouped = LengthGroupedSampler(BATCH, lengths=lengths.tolist())
    ways = {
        "random order": DataLoader(rows, BATCH, sampler=RandomSampler(rows), collate_fn=collator),
        "group_by_length": DataLoader(rows, BATCH, sampler=grouped, collate_fn=collator),
        "packing": DataLoader(sequences, few, sampler=RandomSampler(sequences), collate_fn=collator),
    }
    table = []
    for name, batches in ways.items():
        tokens, timed, seconds = 0, 0, 0.0
        for number, batch in enumerate(batches):
            tokens += batch["input_ids"].numel()
            if number < args.steps:
                timed, started = tokens, time.process_time()
                model(**batch).loss.backward()
                seconds += time.process_time() - started
        table.append({"rows": name, "steps": len(batches), "tokens": tokens, "seconds": seconds * tokens / timed})
    frame = pd.DataFrame(table)
    frame["padding"] = (1 - lengths.sum() / frame["tokens"]).round(2)
    frame["part"] = (frame["seconds"] / frame["seconds"][0]).round(2)
    frame["seconds"] = frame["seconds"].round()
    RESULTS.mkdir(parents=True, exist_ok=True)
    frame.to_csv(RESULTS / "epochs.csv", index=False)
    write_json(RESULTS / "environment.json", {**environment(), **vars(args)})
    Console(width=160).print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
