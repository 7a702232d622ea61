"""The fifth stage: merging the final subnet into the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glora_search.adapters.load import merge
from glora_search.progress import track
from glora_search.run.context import Context
from glora_search.scoring import evaluate, logits_of


def merge_final(run: Context, folder: Path) -> dict[str, Any]:
    """Fold the final subnet into the base weights; leaves ``merged/``, a plain transformers folder."""
    source, _ = run.view.final() or ("best", run.view.result("best"))
    with track("merge", 3) as bar:
        model = run.load(source)
        before = logits_of(model, run.validation)
        bar.advance()
        plain = merge(model)
        after = logits_of(plain, run.validation)
        scored = evaluate(plain, run.validation, run.task)
        bar.advance()
        plain.save_pretrained(str(folder))
        run.task.processor.save_pretrained(str(folder))
        bar.advance()
    return {
        "source": source,
        "validation": scored.metric,
        "max_abs_logit_difference": max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)),
    }
