"""What the small experiments on the study's runs share: a part either fills a csv or reads it."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transformers
from csv_rows import fill
from study_plan import Study

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
