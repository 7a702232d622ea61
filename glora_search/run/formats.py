"""The final subnet in formats of peft's own, written anew each time that it is asked for."""

from __future__ import annotations

from pathlib import Path

from glora_search.adapters.export import export_stock
from glora_search.run.origin import check_origin
from glora_search.run.runner import Run


def export_as(run: Run, form: str, *, pad: bool = False) -> Path:
    """Write the final subnet in a format that plain peft loads; leaves ``exports/<form>``.

    Args:
        form: ``peft`` (stock GLoRA) or ``lora``.
        pad: of a ``lora``: one rank for all layers.

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
        options = {"base_model": context.task.model_path, "processor": context.task.processor, "pad": pad}
        export_stock(context.load(source), form, folder, facts=facts, **options)
    return folder
