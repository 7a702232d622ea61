"""Commands that look at a run while it works, or after: ``status`` and ``dashboard``."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from glora_search.cli.app import RUN, Json, RunFolder, SharedStorage, app
from glora_search.cli.output import begin, emit, result, table
from glora_search.errors import UserError, invalid
from glora_search.progress import say


@app.command(rich_help_panel=RUN)
def status(run: RunFolder, storage: SharedStorage = None, as_json: Json = False) -> None:
    """How far a run is: its stages, and the search's best so far; also while it runs.

    Example: watch glora-search status runs/reviews
    """
    begin(as_json=as_json)
    from glora_search.run.status import status as read

    found = read(run, None if storage is None else _shared_study(run, storage))
    if as_json:
        emit(found)
        return
    rows = [
        (entry["command"], entry["state"], "" if entry["seconds"] is None else f"{entry['seconds']:,.1f}")
        for entry in found["stages"]
    ]
    budget = "no budget" if found["budget"] is None else f"budget {found['budget']:,} parameters"
    table(f"{found['name']}: {budget}", ("stage", "state", "seconds"), rows, left=2)
    search = found["search"]
    if search is not None:
        extra = "".join(f", {search[key]} {key}" for key in ("partial", "failed") if search[key])
        result(f"search: {search['trials']} of {search['of']} trials{extra}")
        if search["best"] is not None:
            best = search["best"]
            result(f"best: validation {best['validation']:.4f}, {best['params']:,} parameters, from {best['origin']}")


def _shared_study(run: Path, storage: str) -> Any:
    import optuna

    from glora_search.run.pipeline import Run
    from glora_search.search.shared.storage import open_storage

    name = Run(run).study_name()
    try:
        return optuna.load_study(study_name=name, storage=open_storage(storage))
    except KeyError:
        raise UserError(f"{run}: its search has not begun in this storage") from None


@app.command(rich_help_panel=RUN)
def dashboard(
    run: RunFolder,
    storage: SharedStorage = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8080,
) -> None:
    """Watch the search in a browser, by optuna-dashboard; a run's own journal cannot be changed there.

    Example: glora-search dashboard runs/reviews --port 8081
    """
    begin()
    from glora_search.run.status import open_journal, read_recipe

    read_recipe(run)
    if storage is None:
        opened = open_journal(run)
    else:
        from glora_search.search.shared.storage import open_storage

        opened = open_storage(storage)
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise UserError("dashboard: needs optuna-dashboard: pip install 'glora-search[dashboard]'")
    _serve(opened, host, port)


def _serve(storage: Any, host: str, port: int) -> None:
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    from optuna_dashboard import wsgi

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    class Handler(WSGIRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """A line for every request helps nobody."""

    try:
        server = make_server(host, port, wsgi(storage), server_class=Server, handler_class=Handler)
    except (socket.gaierror, OSError, OverflowError) as error:
        raise invalid("--port", port, f"a free port of {host} ({error.args[-1]})") from None
    with server:
        say(f"http://{host}:{server.server_port}/  Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")
