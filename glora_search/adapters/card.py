"""The model card of an adapter folder: what it is, and the lines of Python that load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glora_search.files.text import write_text

PEFT_CLASSES: dict[str | None, str] = {
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
    None: "AutoPeftModel",
}
"""peft's name of a task -> the class that loads an adapter with its base model."""


def write_card(folder: Path, base_model: str, facts: Mapping[str, Any], name: Path | None = None) -> None:
    """The model card of an adapter folder: what it is and how it is loaded.

    Args:
        name: the folder that the card speaks of, where that is another.
    """
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    kinds: dict[str, int] = {}
    ours = "path_pattern" in settings
    for paths in settings.get("path_pattern", {}).values():
        for path, kind in paths.items():
            if path != "r":
                kinds[f"{path}={kind}"] = kinds.get(f"{path}={kind}", 0) + 1
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    counts = "".join(f"| {name} | {count} |\n" for name, count in sorted(kinds.items()))
    layers = f"\n| path and kind | layers |\n| --- | --- |\n{counts}" if ours else ""
    import_line = "import glora_search  # makes the adapter's type known to peft\n" if ours else ""
    head = " The classification head is included." if "labels" in facts else ""
    plain = "without peft and without this package" if ours else "without peft"
    write_text(
        folder / "README.md",
        f"""---
base_model: {json.dumps(base_model)}
library_name: peft
tags: [glora, glora-search]
---

# {"GLoRA adapter with per-layer paths" if ours else f"{settings['peft_type']} adapter"}

Found by glora-search (GLoRA: arXiv 2306.07967).{head}

| | |
| --- | --- |
{rows}
{layers}
```python
{import_line}{_loading(settings["task_type"], str(name or folder), facts.get("labels"))}
plain = model.merge_and_unload()  # a transformers model, {plain}
```
""",
    )


def _loading(task_type: str | None, folder: str, labels: int | None) -> str:
    """The lines of Python that load an adapter folder."""
    options = "" if labels is None else f", num_labels={labels}"
    cls = PEFT_CLASSES[task_type]
    return f"from peft import {cls}\n\nmodel = {cls}.from_pretrained({json.dumps(folder)}{options})"
