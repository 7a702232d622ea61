"""The model card of an adapter folder: what it is, and the lines of Python that load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glora_search.files.text import write_json, write_text

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
HEAD_FILE = "labels.json"
"""What a model has to be told besides an adapter folder: the labels in their order, and what the head learns."""
PAD = "pad_token_id"


def write_card(folder: Path, base_model: str, facts: Mapping[str, Any], name: Path | None = None) -> None:
    """The model card of an adapter folder, and beside it `HEAD_FILE` where the model has a head.

    Args:
        facts: name -> value; ``labels``, ``problem type``, and ``pad_token_id`` are the head's, and with
            ``trust_remote_code`` the base model is loaded.
        name: the folder that the card speaks of, where that is another.
    """
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    kinds: dict[str, int] = {}
    ours = "path_pattern" in settings
    for paths in settings.get("path_pattern", {}).values():
        for path, kind in paths.items():
            if path != "r":
                kinds[f"{path}={kind}"] = kinds.get(f"{path}={kind}", 0) + 1
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items())
    counts = "".join(f"| {name} | {count} |\n" for name, count in sorted(kinds.items()))
    layers = f"\n| path and kind | layers |\n| --- | --- |\n{counts}" if ours else ""
    import_line = "import glora_search  # makes the adapter's type known to peft\n" if ours else ""
    head = " The head is included." if facts.get("labels") else ""
    if facts.get("labels"):
        pad = {"pad_token_id": facts[PAD]} if PAD in facts else {}
        write_json(folder / HEAD_FILE, {"labels": list(facts["labels"]), "problem_type": facts["problem type"], **pad})
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
{import_line}{_loading(settings["task_type"], str(name or folder), facts)}
plain = model.merge_and_unload()  # a transformers model, {plain}
```
""",
    )


def _cell(value: Any) -> str:
    """A value in a table; names may hold whatever a table is made of."""
    text = ", ".join(map(_name, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|")


def _name(name: str) -> str:
    """A name that may hold commas or line ends, as it is where it holds neither."""
    return name if name.isprintable() and "," not in name else json.dumps(name, ensure_ascii=False)


def _loading(task_type: str | None, folder: str, facts: Mapping[str, Any]) -> str:
    """The lines of Python that load an adapter folder, its head with the names that the labels have."""
    cls, where, labels = PEFT_CLASSES[task_type], json.dumps(folder), facts.get("labels")
    lines = [f"from peft import {cls}", ""]
    custom = facts.get("trust_remote_code")
    if labels is None:
        trusted = ", trust_remote_code=True" if custom else ""
        return "\n".join([*lines, f"model = {cls}.from_pretrained({where}{trusted})"])
    lines += [
        f"labels = {list(labels)!r}",
        f"model = {cls}.from_pretrained(",
        f"    {where},",
        "    id2label=dict(enumerate(labels)),",
        "    label2id={label: index for index, label in enumerate(labels)},",
        f"    problem_type={facts['problem type']!r},",
        "    ignore_mismatched_sizes=True,  # the adapter has the head's weights",
        *(["    trust_remote_code=True,"] if custom else []),
        ")",
    ]
    if PAD in facts:  # the head of a decoder reads the last token before the padding
        lines.append(f"model.config.get_text_config().pad_token_id = {facts[PAD]}")
    return "\n".join(lines)
