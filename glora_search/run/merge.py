"""The fifth stage: merging the final subnet into the base model."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from glora_search.adapters.load import load_adapter, merge
from glora_search.compat import BaseTunerLayer
from glora_search.errors import UserError
from glora_search.progress import say, track
from glora_search.run.context import Context
from glora_search.scoring import Evaluation, evaluate, logits_of
from glora_search.tuners.quantized import dequantize, precision


def merge_final(run: Context, folder: Path) -> dict[str, Any]:
    """Fold the final subnet into the base weights; leaves ``merged/``, a plain transformers folder.

    A quantised base model is made dense first: the merged model is as large as one that was never quantised.

    What is compared with the adapter is the model as transformers loads it from there.

    Raises:
        UserError: the merged model does not compute what the adapter does; the message says why.
    """
    source, _ = run.view.final() or ("best", run.view.result("best"))
    return merge_adapter(run, source, folder)


def merge_adapter(run: Context, source: str, folder: Path) -> dict[str, Any]:
    """Fold an adapter into the base weights, see `merge_final`.

    Args:
        source: its folder below the run folder.
        folder: gets the model.
    """
    with track("merge", 3) as bar:
        model = run.load(source)
        before, expected = logits_of(model, run.validation), evaluate(model, run.validation, run.task)
        shared, epsilon = shared_weights(model), precision(model)
        bar.advance()
        if run.recipe.task.quantization:
            del model
            model = load_adapter(dense_base(run), run.folder / source)
        try:
            plain = merge(model)
        except ValueError as error:
            raise UserError(f"merge: {run.folder / source} cannot be merged ({error})") from error
        plain.save_pretrained(str(folder))
        run.task.processor.save_pretrained(str(folder))
        del model, plain
        bar.advance()
        loaded = run.placed(run.task.load_merged(str(folder)))
        after, scored = logits_of(loaded, run.validation), evaluate(loaded, run.validation, run.task)
        bar.advance()
    wrong = _differences(before, after, expected, scored, epsilon=epsilon, rows=len(run.task.validation))
    if wrong:
        shutil.rmtree(folder)
        cause = f"{shared}: give the space other targets" if shared else "no cause was found: please report it"
        raise UserError(f"merge: the merged model does not compute what {run.folder / source} does: {wrong}; {cause}")
    return {
        "source": source,
        "validation": scored.metric,
        "max_abs_logit_difference": _largest(before, after),
        "chats": run.task.chats,
    }


def dense_base(run: Context) -> PreTrainedModel:
    """The base model as the adapter sees it, its quantised weights made dense; a message says so."""
    base = run.task.model()
    say(f"merge: {dequantize(base)} quantised layers are dequantised to {base.dtype}", "dim")
    return base


def _largest(before: list[Tensor], after: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))


def _differences(
    before: list[Tensor], after: list[Tensor], expected: Evaluation, scored: Evaluation, *, epsilon: float, rows: int
) -> str:
    """What differs beyond rounding, in words; empty where nothing does.

    Rounding grows with a model's depth: what is let through is the square root of the precision, .0003 in float32 and
    .09 where 8-bit layers round their inputs. A logit that hardly differs can turn an answer; that two rows do so is no
    error either.
    """
    allowed = math.sqrt(epsilon)
    scale = max(1.0, *(float(logits.abs().max()) for logits in before))
    difference = _largest(before, after)
    wrong = []
    if not difference <= allowed * scale:  # NaN is no rounding
        wrong.append(f"logits of up to {scale:.3g} differ by {difference:.3g}")
    metric, loss = max(allowed * abs(expected.metric), 2 / rows + 1e-9), allowed * max(1.0, abs(expected.loss))
    for name, step in (("metric", metric), ("loss", loss)):
        was, now = getattr(expected, name), getattr(scored, name)
        if not abs(now - was) <= step:
            wrong.append(f"the validation {name} was {was:.4f} and is {now:.4f}")
    return ", ".join(wrong)


def shared_weights(model: nn.Module) -> str:
    """Which adapted layers have a weight that other modules have too, in words; empty where none has."""
    owners: dict[int, list[str]] = defaultdict(list)
    adapted: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and not name.endswith("base_layer"):
            owners[weight.data_ptr()].append(name.removeprefix("base_model.model."))
            if isinstance(module, BaseTunerLayer):
                adapted.add(weight.data_ptr())
    found = [" and ".join(names) for pointer, names in owners.items() if pointer in adapted and len(names) > 1]
    return f"{', '.join(found)} share a weight" if found else ""
