"""What the tasks share whose inputs are texts: a tokenizer, and how rows are padded."""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from glora_search.errors import invalid
from glora_search.tasks.base import Task
from glora_search.tasks.models import check_vocabulary, longest_input


class TextTask(Task):
    """A task whose inputs are texts; its processor is the ``tokenizer``."""

    tokenizer: Any

    def load_processor(self) -> Any:
        """The tokenizer; one without padding pads as the model's config says, else with its end."""
        self.tokenizer = self.load_tokenizer()
        if self.tokenizer.pad_token is None:
            own = getattr(self.config.get_text_config(), "pad_token_id", None)
            named = own is not None and 0 <= own < len(self.tokenizer)
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(own) if named else self.padding()
            if self.tokenizer.pad_token is None:
                allowed = "a model whose tokenizer has a token that pads rows, or one that ends them"
                raise invalid("task.model", self.recipe.task.model, allowed)
        check_vocabulary(self.tokenizer, self.config, name=self.recipe.task.model)
        longest = longest_input(self.tokenizer, self.config)
        if longest is not None and self.max_length > longest:
            raise invalid("task.max_length", self.max_length, f"at most {longest}, the model's longest input")
        return self.tokenizer

    def padding(self) -> str | None:
        """What pads rows where neither tokenizer nor config says it."""
        found: str | None = self.tokenizer.eos_token
        return found

    def batch_tokenizer(self) -> Any:
        """The tokenizer for batches: with padding on the left, a row's positions would depend on the batch.

        A model that reads a row's last place (XLNet) keeps its own.
        """
        tokenizer = copy.deepcopy(self.tokenizer)  # what is saved with the model stays as it is
        if getattr(self.config, "summary_type", None) != "last":
            tokenizer.padding_side = "right"
        return tokenizer

    def load_tokenizer(self) -> Any:
        """The base model's tokenizer as it is."""
        return self.load(AutoTokenizer)

    def model(self, seed: int | None = None) -> PreTrainedModel:
        """See `Task.model`; the model knows the tokenizer's padding, by which decoders find a row's last token."""
        model = super().model(seed)
        for config in (model.config, model.config.get_text_config()):
            config.pad_token_id = self.tokenizer.pad_token_id
        return model

    @property
    def new_padding(self) -> int | None:
        """See `Task.new_padding`."""
        pad: int | None = self.tokenizer.pad_token_id
        return None if pad == self.config.get_text_config().pad_token_id else pad

    @property
    def max_length(self) -> int:
        """The longest input, in tokens."""
        return self.recipe.task.max_length
