"""The final subnet in formats of peft's own, written anew each time that it is asked for."""

from __future__ import annotations

from pathlib import Path

from glora_search.adapters.export import export_stock
from glora_search.run.runner import Run


def export_as(run: Run, form: str) -> Path:
    """Write the final subnet in a format that plain peft loads; leaves ``exports/<form>``.

    Args:
        form: ``peft`` (stock GLoRA) or ``lora``.

    Returns:
        The folder.

    Raises:
        UserError: there is no subnet yet, or the format cannot express it.
    """
    run.view.result("best")
    final = run.view.final()
    assert final is not None
    source, figures = final
    context, folder = run.context, run.folder / "exports" / form
    facts = {**context.facts(figures["params"], figures["validation"]), "exported from": source}
    with run.working():
        folder.parent.mkdir(exist_ok=True)
        export_stock(context.load(source), form, folder, base_model=context.task.model_path, facts=facts)
        context.task.processor.save_pretrained(str(folder))
    return folder
