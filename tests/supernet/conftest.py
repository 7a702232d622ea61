"""A small supernet's trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from trainers import STEPS, dataset
from transformers import TrainingArguments

from glora_search.supernet import SupernetConfig, SupernetTrainer


@pytest.fixture
def make_trainer(make_model, bind, tmp_path):
    """``make_trainer(**arguments)``: a supernet of ``glora-paper`` on BERT with dropout, or Llama, and its trainer."""

    def make(
        *,
        seed: int = 5,
        sampling: Any = None,
        folder: str = "out",
        callbacks: Any = None,
        lr_factors: Any = None,
        dropout: bool = True,
        architecture: str = "bert",
        trainer_cls: Any = SupernetTrainer,
        **arguments: Any,
    ) -> Any:
        torch.manual_seed(seed)
        base = make_model(architecture)
        for module in base.modules() if not dropout else ():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        task_type = {"bert": "SEQ_CLS", "llama": "CAUSAL_LM"}[architecture]
        config = SupernetConfig(space=bind("glora-paper", architecture), task_type=task_type)
        options = {
            "output_dir": str(tmp_path / folder),
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 7,
        }
        own = {"sampling": sampling, "lr_factors": lr_factors} if trainer_cls is SupernetTrainer else {}
        return trainer_cls(
            model=get_peft_model(base, config),
            args=TrainingArguments(**{**options, **arguments}),
            train_dataset=dataset(architecture=architecture),
            eval_dataset=dataset(8, architecture),
            callbacks=callbacks,
            **own,
        )

    return make
