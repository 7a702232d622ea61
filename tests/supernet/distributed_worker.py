"""One process of distributed trainings, of `test_supernet_distributed`.

Each rank's draws, losses and norms of weights go to a folder. The strategy ``adapter`` trains a fixed GLoRA adapter.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from glora_search import GLoraConfig, PathTrainer
from glora_search.space.schema import SearchSpace
from glora_search.supernet import Sampling, SupernetConfig, SupernetTrainer, make_sampling


class Log(Sampling):
    """Another strategy's genomes, noted."""

    def __init__(self, inner: Sampling) -> None:
        self.inner, self.distill, self.drawn = inner, inner.distill, []

    def __call__(self, step):
        genomes = self.inner(step)
        self.drawn.append([sorted(genome.items()) for genome in genomes])
        return genomes


def train(folder: str, batch: str, strategy: str, *settings: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base = BertForSequenceClassification(
        BertConfig(vocab_size=50, max_position_embeddings=16, num_labels=3, **sizes, **dropout)
    )
    space = SearchSpace.load("glora-paper").bind(base)
    fixed = strategy == "adapter"
    config = GLoraConfig(target_modules="all-linear", config_C="vector", config_D_E="vector", task_type="SEQ_CLS")
    model = get_peft_model(base, config if fixed else SupernetConfig(space=space, task_type="SEQ_CLS"))
    ids = torch.randint(1, 50, (48, 6), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row.sum() % 3} for row in ids]
    scored = [
        {**row, "labels": row["labels"] if n % 5 in (0, 3) else torch.tensor(-100)} for n, row in enumerate(rows[:16])
    ]
    arguments = {key: json.loads(value) for key, value in (setting.split("=", 1) for setting in settings)}
    args = TrainingArguments(
        output_dir=folder,
        max_steps=6,
        per_device_train_batch_size=int(batch),
        per_device_eval_batch_size=int(batch) // 2,
        learning_rate=0.1,
        optim="sgd",  # Adam would blow up what differs in the last bit where a gradient is nothing but rounding
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=7,
        **arguments,
    )
    options = {"model": model, "args": args, "train_dataset": rows, "eval_dataset": scored}
    sampling = Log(make_sampling("sizes" if fixed else strategy, space, seed=7))
    trainer = PathTrainer(**options) if fixed else SupernetTrainer(**options, sampling=sampling)
    trainer.train()
    found = {
        "processes": trainer.accelerator.num_processes,
        "drawn": sampling.drawn,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "weights": {name: float(p.detach().double().norm()) for name, p in model.named_parameters() if p.requires_grad},
        "eval_loss": trainer.evaluate()["eval_loss"],
    }
    rank = os.environ.get("RANK", "0")
    (Path(folder) / f"{strategy}-{rank}.json").write_text(json.dumps(found, default=np.ndarray.tolist))


def train_all(folder: str, batch: str, cases: list[str]) -> None:
    """One after the other; the process ends with them."""
    for case in cases:
        train(folder, batch, *case.split())
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # all is written; a thread of gloo's or autograd's now and then never lets the interpreter end
