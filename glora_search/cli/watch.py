"""Commands that look at a run, also while it works: ``status`` and ``dashboard``."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Any

import typer

from glora_search.cli.app import RUN, Json, RunPath, SharedStorage, app
from glora_search.cli.output import begin, emit, result, table
from glora_search.errors import UserError, invalid
from glora_search.progress import say


@app.command(rich_help_panel=RUN)
def status(run: RunPath, storage: SharedStorage = None, as_json: Json = False) -> None:
    """Show a run's progress: its stages, and the best subnet so far. Works while it runs.

    Example: watch glora-search status runs/reviews
    """
    begin(as_json=as_json)
    from glora_search.run.folder import RunFolder
    from glora_search.run.status import status as read

    view = RunFolder(run)
    found = read(view, None if storage is None else _shared_study(view, storage))
    if as_json:
        emit(found)
        return
    rows = [
        (entry["command"], entry["state"], "" if entry["seconds"] is None else f"{entry['seconds']:,.1f}")
        for entry in found["stages"]
    ]
    budget = "no budget" if found["budget"] is None else f"budget {found['budget']:,} parameters"
    table(f"{found['name']}: {budget}", ("stage", "state", "seconds"), rows, left=2)
    for one in found["budgets"]:
        left = f", left: {', '.join(one['left'])}" if one["left"] else ""
        result(f"budget {one['budget']:,}: {one['state']}{left}")
    search = found["search"]
    if search is not None:
        extra = "".join(f", {search[key]} {key}" for key in ("partial", "failed") if search[key])
        result(f"search: {search['trials']} of {search['of']} trials{extra}")
        if search["best"] is not None:
            best = search["best"]
            result(f"best: validation {best['validation']:.4f}, {best['params']:,} parameters, from {best['origin']}")


def _shared_study(run: Any, storage: str) -> Any:
    import optuna

    from glora_search.search.shared.storage import open_storage

    try:
        return optuna.load_study(study_name=run.shared_name(), storage=open_storage(storage))
    except KeyError:
        raise UserError(f"{run.path}: its search has not begun in this storage") from None


@app.command(rich_help_panel=RUN)
def dashboard(
    run: RunPath,
    storage: SharedStorage = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8080,
) -> None:
    """Watch the search in a browser with optuna-dashboard; a run's journal is read-only there.

    Example: glora-search dashboard runs/reviews --port 8081
    """
    begin()
    from glora_search.run.folder import RunFolder

    view = RunFolder(run)
    if storage is None:
        opened = view.journal()
    else:
        from glora_search.search.shared.storage import open_storage

        opened = open_storage(storage)
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise UserError("dashboard: needs optuna-dashboard: pip install 'glora-search[dashboard]'")
    _serve(opened, host, port)


def _serve(storage: Any, host: str, port: int) -> None:
    from optuna_dashboard import run_server

    say(f"http://{host}:{port}/  Press Ctrl-C to stop")
    try:
        run_server(storage, host=host, port=port)
    except (OSError, OverflowError) as error:
        raise invalid("--port", port, f"a free port of {host} ({error.args[-1]})") from None
    except KeyboardInterrupt:
        pass
    say("stopped")
