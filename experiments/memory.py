"""The memory table of docs/choosing-a-budget.md: what `glora-search plan` counts for models of 1B, 7B and 70B.

python experiments/memory.py
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from glora_search.recipe.schema import Recipe
from glora_search.run.memory import sizes

MODELS = {
    "1B": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "7B": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "70B": {
        "vocab_size": 32000,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
"""The layouts of Llama 3.2 1B, Llama 2 7B and Llama 2 70B."""
TRAINED, SCORED, TOKENS = 4, 8, 512


class Rows:
    """As many rows of `TOKENS` tokens as are asked for."""

    column_names = ("input_ids",)

    def __len__(self) -> int:
        return SCORED

    def __getitem__(self, key: Any) -> Any:
        return [[1] * TOKENS] * SCORED if key == "input_ids" else {"input_ids": [1] * TOKENS}


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch of which every token is learned."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids}


def main() -> None:
    """Print the table, in GB."""
    print("| | weights | stage | " + "weights | adapter | dense | folded | activations | logits | in all |")
    for name, layout in MODELS.items():
        for quantization in (None, {"load_in_4bit": True}):
            task_keys = {"type": "causal-lm", "model": "unused", "dtype": "bfloat16", "quantization": quantization}
            training = {"per_device_train_batch_size": TRAINED, "gradient_checkpointing": True, "use_cpu": True}
            recipe = Recipe.model_validate(
                {
                    "name": "memory",
                    "task": task_keys,
                    "data": {"source": "json", "train": "unused"},
                    "space": "glora",
                    "supernet": {"training": training},
                    "search": {"batch_size": SCORED},
                }
            )
            task: Any = SimpleNamespace(
                recipe=recipe, outputs=[], task_type="CAUSAL_LM", auto_class=AutoModelForCausalLM,
                model_options=dict, load=lambda *_, layout=layout, **__: LlamaConfig(**layout), train=Rows(),
                train_rows=Rows(), collator=collate,
            )  # fmt: skip
            found = sizes(recipe, task)
            for stage in ("train-supernet", "search"):
                memory = found.stages[stage]
                figures = " | ".join(f"{size / 1e9:.2f}" for size in (*vars(memory).values(), memory.total))
                print(f"| {name} | {'4 bit' if quantization else 'bfloat16'} | {stage} | {figures} |")


if __name__ == "__main__":
    main()
