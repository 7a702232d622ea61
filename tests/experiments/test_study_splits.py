"""The study's splits: nothing leaks, every label is learned, a seed always draws the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import study_data
from study_data import keys, split_rows, write_splits

from glora_search.errors import UserError

LABELS = 5


def rows(count, seed, start=0):
    labels = np.random.default_rng(seed).integers(LABELS, size=count)
    return pd.DataFrame({"text": [f"text {start + n}" for n in range(count)], "label": labels.astype(str)})


def odd(frame):
    """The same texts, as other people write them."""
    return frame.assign(text=["  " + text.upper().replace(" ", "\t ") for text in frame["text"]])


@pytest.mark.parametrize("seed", range(5))
def test_no_text_is_in_two_splits_whatever_its_case_and_white_space(seed):
    pool, test = rows(300, seed), rows(40, seed, start=280)
    splits = split_rows(pd.concat([pool, odd(pool[:100])]), odd(test), 50, 30, 100, seed=seed)
    found = [set(keys(split)) for split in splits]
    assert [len(split) for split in splits] == [50, 30, 100]
    assert [len(one) for one in found] == [50, 30, 100]
    assert len(set.union(*found)) == 180


@pytest.mark.parametrize("seed", range(5))
def test_no_pair_is_in_two_splits_in_either_order(seed):
    pairs = pd.DataFrame({"text": [f"a {n}" for n in range(60)], "text_pair": [f"b {n}" for n in range(60)]})
    pairs["score"] = "1.0"
    turned = pairs.rename(columns={"text": "text_pair", "text_pair": "text"})
    splits = split_rows(pd.concat([pairs, turned]), turned[:10], 20, 10, 30, seed=seed, labelled=False)
    found = pd.concat([keys(split) for split in splits])
    assert len(found) == 60
    assert not found.duplicated().any()


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_label_is_among_the_train_rows(seed):
    pool = rows(200, seed)
    pool.loc[17, "label"] = "rare"
    train, *_ = split_rows(pool, rows(20, seed, start=900), LABELS + 1, 30, 50, seed=seed)
    assert set(train["label"]) == set(pool["label"])


def test_a_seed_always_draws_the_same_and_another_one_does_not():
    first, again, other = (split_rows(rows(200, 0), rows(20, 1, 900), 50, 30, 60, seed=seed) for seed in (0, 0, 1))
    for one, two, three in zip(first, again, other, strict=True):
        pd.testing.assert_frame_equal(one, two)
        assert set(one["text"]) != set(three["text"])


def test_of_a_large_test_that_is_in_the_order_of_its_labels_all_labels_stay():
    test = rows(400, 0, start=900).sort_values("label")
    *_, drawn = split_rows(rows(200, 0), test, 50, 30, 100, seed=0)
    assert len(drawn) == len(set(drawn["text"])) == 100
    assert set(drawn["text"]) <= set(test["text"])
    assert set(drawn["label"]) == set(test["label"])


def test_a_small_test_is_whole_and_what_is_left_of_the_others_fills_it_up():
    pool, test = rows(200, 0), rows(20, 1, start=900)
    train, validation, filled = split_rows(pool, test, 50, 30, 100, seed=0)
    assert filled["text"].tolist()[:20] == test["text"].tolist()
    assert set(filled["text"][20:]) <= set(pool["text"]) - set(train["text"]) - set(validation["text"])
    *_, all_there_is = split_rows(pool, test, 50, 30, 5000, seed=0)
    assert len(all_there_is) == 200 + 20 - 80


@pytest.mark.parametrize(
    ("pool", "test", "train", "said"),
    [
        (rows(70, 0), rows(5, 0, 900), 50, "70 rows are too few for 50 train and 30 validation rows"),
        (rows(200, 0), rows(5, 0, 900), 4, "5 labels do not fit 4 rows"),
        (rows(200, 0), rows(5, 0, 900).assign(label="new"), 50, "a test row has another one"),
    ],
)
def test_rows_that_do_not_suffice_are_an_error(pool, test, train, said):
    with pytest.raises(UserError, match=said):
        split_rows(pool, test, train, 30, 50, seed=0)


def test_splits_are_written_whole_and_once(desk, monkeypatch):
    own = desk(["lora"])
    (cell,) = own.study.cells()
    cache = own.cache / "splits"
    with monkeypatch.context() as patch:
        patch.setattr(study_data, "SPLITS", (*study_data.SPLITS, "one too many"))  # as a kill: two of four are written
        with pytest.raises(ValueError, match="zip"):
            write_splits(cell, own.study, own.data, cache)
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".making"]
    folder = write_splits(cell, own.study, own.data, cache)
    assert sorted(path.name for path in folder.iterdir()) == ["test.csv", "train.csv", "validation.csv"]
    (folder / "train.csv").write_text("kept")
    write_splits(cell, own.study, own.data, cache)
    assert (folder / "train.csv").read_text() == "kept"


def test_a_missing_data_set_is_an_error(desk, tmp_path):
    own = desk(["lora"])
    with pytest.raises(UserError, match=r"--data: .*allowed: a folder with mpqa/train.csv and mpqa/test.csv"):
        write_splits(own.study.cells()[0], own.study, tmp_path / "nowhere", own.cache)
