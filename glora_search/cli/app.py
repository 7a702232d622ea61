"""The app that all commands belong to, the options that they share, and what happens when one goes wrong."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from glora_search import __version__
from glora_search.cli import complete
from glora_search.errors import UserError, invalid
from glora_search.files.disk import full_disk
from glora_search.progress import console, set_up
from glora_search.run.stages import STAGES

START, RUN, USE, STAGE = "Start", "Run and watch", "Compare and use", "Stage by stage, in this order"

STORY = """Find the best per-layer GLoRA adapter for a Hugging Face model under a budget of parameters.

\b
[bold]From start to finish[/bold]
glora-search init reviews.yaml --train reviews.csv   write a recipe
glora-search run reviews.yaml                        all stages, runs/reviews
glora-search status runs/reviews                     show its progress
glora-search report runs/reviews                     write an HTML report
glora-search compare runs/reviews runs/other         compare runs
glora-search predict runs/reviews "A fine book"      use the merged model
glora-search export runs/reviews --format peft       load it with peft alone

Finished stages are not repeated. To resume an interrupted run, give the same command again."""

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


LOUD = ("bitsandbytes", "torchao", "torch.utils._pytree")
"""Loggers that warn, when peft imports them, of kernels that this machine has not."""


def silence_libraries() -> None:
    """Before a command loads models: what went wrong is said by this package's own messages."""
    import datasets
    import huggingface_hub
    import transformers

    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Run the command line.

    Exit codes: 0; 2 where the user got something wrong, which is one message on stderr; 130 after Ctrl-C.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    set_up(console)
    try:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            allowed = "1: a run is one process; SupernetTrainer in your own script can be launched with several"
            raise invalid("WORLD_SIZE", os.environ["WORLD_SIZE"], allowed)
        code = app(sys.argv[1:] or ["--help"], prog_name="glora-search", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except UserError as error:
        code = _failed(str(full_disk(error, Path.cwd()) or error))
    except UsageError as error:
        code = _failed(_explain(error))
    except Exception as error:
        full = full_disk(error, Path.cwd())
        if full is not None:
            code = _failed(str(full))
        elif isinstance(error, OSError) and error.filename is not None:
            code = _failed(f"{error.filename}: {error.strerror}")
        else:
            raise
    if code == 130:
        _say_how_to_go_on()
    raise SystemExit(code if isinstance(code, int) else 0)


def _explain(error: Any) -> str:
    """The parser's message, with the value that it was given, and where the command is described."""
    names = getattr(getattr(error, "param", None), "opts", [])
    given = [after for word, after in zip(sys.argv, sys.argv[1:], strict=False) if word in names]
    got = f"; got {given[-1]!r}" if given else ""
    command = error.ctx.command_path if error.ctx is not None else "glora-search"
    return f"{error.format_message().rstrip('.')}{got}. See: {command} --help"


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _say_how_to_go_on() -> None:
    words = [word for word in sys.argv[1:] if word != "--again"]
    goes_on = bool(words) and words[0] in GOES_ON
    how = f"; finished work is kept. Resume with: glora-search {shlex.join(words)}" if goes_on else ""
    print(f"interrupted{how}", file=sys.stderr)
