"""Write ARC-Easy's questions, choices and answers as JSON lines, from the files of LLM-Adapters.

    python experiments/prepare_arc_easy.py FOLDER

FOLDER has train.json and test.json, whose rows have an instruction with numbered choices and the number of the right
one. The model of the case study, with 135M parameters, names numbers and letters at random, so the answers are texts.
Test has 1,000 questions, drawn with seed 0.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

FOLDER = Path("runs/data/arc-easy")
TEST_ROWS = 1000
ROW = re.compile(r"Please choose the correct answer to the question: (.*)\n\nAnswer1: (.*)\n\nAnswer format: .*", re.S)


def parsed(row: dict[str, str]) -> dict[str, Any]:
    """Question, choices and answer; the answer begins with the space between it and the prompt."""
    match = ROW.fullmatch(row["instruction"])
    assert match is not None, row
    choices = [choice.strip() for choice in re.split(r" Answer\d: ", match[2])]
    right = choices[int(row["answer"].removeprefix("answer")) - 1]
    return {"question": match[1], "choices": choices, "answer": f" {right}"}


def main() -> None:
    """Write the splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FOLDER")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        rows = [parsed(row) for row in json.loads((args.source / f"{split}.json").read_text(encoding="utf-8"))]
        if split == "test":
            rows = random.Random(0).sample(rows, TEST_ROWS)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (args.folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{args.folder / f'{split}.jsonl'}: {len(rows)} rows")


if __name__ == "__main__":
    main()
