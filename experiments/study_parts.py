"""What the small experiments on the study's runs share: the contest of a run, and the parts that fill or read a csv."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transformers
from csv_rows import fill
from study_plan import Study

from glora_search import Run
from glora_search.finals.contest import Contest
from glora_search.run import finals

HERE = Path(__file__).resolve().parent


def do_part(
    name: str,
    args: argparse.Namespace,
    key: Sequence[str],
    keys: Sequence[tuple[str, ...]],
    measured: Callable[..., dict[str, Any]],
    report: Callable[[Path], str],
) -> None:
    """Train what is missing in the csv, or print its report.

    Args:
        name: of the csv.
        args: part, data, minutes, results, and cache.
        key, keys, measured: see `csv_rows.fill`; the last one also takes the study, and the folders of data and cache.
        report: the csv -> its tables.
    """
    path = args.results / f"{name}.csv"
    if args.part == "report":
        print(report(path))
        return
    transformers.logging.set_verbosity_error()
    study = Study.load(HERE / "study" / "plan.yaml")
    figures = functools.partial(measured, study=study, data=args.data, cache=args.cache)
    fill(path, key, keys, figures, args.cache / name, args.minutes)


def contest_of(run: Run, folder: Path, **changes: Any) -> Contest:
    """The contest of a run's finals, with its teacher.

    Args:
        run: its search is done.
        folder: of what is trained, made if it is not there.
        changes: of the recipe's section ``finals``.
    """
    settings = run.context.recipe.finals
    assert settings is not None
    for name, value in changes.items():
        setattr(settings, name, value)
    folder.mkdir(parents=True, exist_ok=True)
    finals.teach(run.context, folder, settings)
    return finals.contest_of(run.context, folder, settings)
