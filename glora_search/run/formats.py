"""The final subnet in formats of peft's own, written anew each time that it is asked for."""

from __future__ import annotations

from pathlib import Path

from glora_search.adapters.export import export_stock
from glora_search.run.origin import check_origin
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
    context, folder = run.context, run.folder / "exports" / form
    with run.working():
        check_origin(context)
        source, figures = run.view.final() or ("best", run.view.result("best"))
        facts = {**context.facts(figures["params"], figures["validation"]), "exported from": source}
        folder.parent.mkdir(exist_ok=True)
        processor, base_model = context.task.processor, context.task.model_path
        export_stock(context.load(source), form, folder, base_model=base_model, facts=facts, processor=processor)
    return folder
