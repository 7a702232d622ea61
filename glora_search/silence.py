"""What libraries say for themselves, which this package's own messages say better."""

from __future__ import annotations

import logging
import warnings

LOUD = ("bitsandbytes", "torchao", "torch.utils._pytree")
"""Loggers that warn, when peft imports them, of kernels that this machine has not."""


def silence_imports() -> None:
    """Before peft is imported."""
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # peft sets it, for GPT-2's layers
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)


def silence_libraries() -> None:
    """Before models and data are loaded."""
    import datasets
    import huggingface_hub
    import transformers

    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
