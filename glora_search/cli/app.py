"""The app that all commands belong to, the options that they share, and what happens when one goes wrong."""

from __future__ import annotations

import gc
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from glora_search import __version__
from glora_search.cli import complete
from glora_search.errors import UserError
from glora_search.files.disk import full_disk
from glora_search.files.text import shell
from glora_search.progress import console, set_up
from glora_search.run.stages import STAGES
from glora_search.silence import silence_imports, silence_libraries

START, RUN, USE, STAGE = "Start", "Run and watch", "Compare and use", "Stage by stage, in this order"

STORY = """\
Find a per-layer GLoRA adapter for a Hugging Face model under a parameter budget, and compare it with a tuned LoRA.

\b
[bold]From start to finish[/bold]
glora-search init reviews.yaml --train reviews.csv   write a recipe
glora-search run reviews.yaml                        run all stages
glora-search status runs/reviews                     show the run's progress
glora-search report runs/reviews                     write an HTML report
glora-search compare runs/reviews runs/other         compare runs
glora-search predict runs/reviews "A fine book"      use the merged model
glora-search export runs/reviews --format peft       export for peft alone

Finished stages are not repeated. To resume an interrupted run, run the same command again."""

UsageError: Any = typer.BadParameter.__mro__[1]
"""What the parser raises; typer itself names only this one of its subclasses."""

GOES_ON = ("run", "prepare", *(stage.command for stage in STAGES.values()))
"""Commands that go on where they were when they are given again."""


class _InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        """``init`` is where the story begins; typer puts groups first."""
        return sorted(super().list_commands(ctx), key=lambda name: name != "init")


app = typer.Typer(
    cls=_InOrder,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)

RunPath = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run folder, e.g. runs/quickstart.", autocompletion=complete.run_folders),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; everything else goes to stderr.")]
SharedStorage = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The storage shared with other machines: postgresql://..., grpc://..."),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"glora-search {__version__}")
        raise typer.Exit()


@app.callback(help=STORY)
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Options without a command."""


def settle() -> None:
    """Once all is imported: it is no garbage, and to look through it takes a third of a second at each training."""
    gc.freeze()


def main() -> None:
    """Run the command line.

    Exit codes: 0; 2 where the user got something wrong, which is one message on stderr; 130 after Ctrl-C. Of the
    processes of a launch, the first one runs the command, and the first that fails has the message.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    silence_imports()
    set_up(console)
    launch, code, words = None, None, ""
    try:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            launch = _join()
        code = _command() if launch is None else launch.run(_command)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        known = _known(error)
        if known is None and launch is None:
            raise
        code, words = (1, traceback.format_exc()) if known is None else (2, f"error: {known}")
    if code == 130:
        words = _how_to_go_on()
    if words and (launch is None or launch.tells()):
        print(words, file=sys.stderr)
    code = code if isinstance(code, int) else 0
    if launch is not None:
        launch.leave(code)
    raise SystemExit(code)


def _command() -> Any:
    return app(sys.argv[1:] or ["--help"], prog_name="glora-search", standalone_mode=False)


def _join() -> Any:
    """This process's place in the launch; the first process alone prints anything but errors."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each process would warn of each training
    silence_libraries()
    from glora_search.cli.output import begin
    from glora_search.run.launch import join

    launch = join()
    settle()
    if launch.rank:
        begin(quiet=True, as_json=True)
        warnings.filterwarnings("ignore")
    return launch


def _known(error: Exception) -> str | None:
    """What to tell the user; None where it is none of the user's errors."""
    full = full_disk(error, Path.cwd())
    if full is not None:
        return str(full)
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UsageError):
        return _explain(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def _explain(error: Any) -> str:
    """The parser's message, with the value that it was given, and where the command is described."""
    names = getattr(getattr(error, "param", None), "opts", [])
    given = [after for word, after in zip(sys.argv, sys.argv[1:], strict=False) if word in names]
    got = f"; got {given[-1]!r}" if given else ""
    command = error.ctx.command_path if error.ctx is not None else "glora-search"
    return f"{error.format_message().rstrip('.')}{got}. See: {command} --help"


def _how_to_go_on() -> str:
    words = [word for word in sys.argv[1:] if word != "--again"]
    goes_on = bool(words) and words[0] in GOES_ON
    how = f"; finished work is kept. Resume with: glora-search {shell(words)}" if goes_on else ""
    return f"interrupted{how}"
