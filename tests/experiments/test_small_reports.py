"""Experiments of one row a key: what is missing is done once, and the tables of learning rates and of spaces."""

from __future__ import annotations

from csv_rows import append_rows, fill, read_rows


def test_a_methods_rates_are_compared_on_the_sets_that_have_both(tmp_path):
    import rates

    rows = [
        ("a", "one", 0.80, 0.50), ("a", "0.25", 0.81, 0.45), ("a", "1", 0.82, 0.46),
        ("b", "0.25", 0.81, 0.45), ("b", "1", 0.83, 0.44),
    ]  # fmt: skip
    names = ("data", "scale", "validation", "validation_loss")
    key = {"encoder": "minilm", "seed": 0, "method": "ia3"}
    append_rows(tmp_path / "rates.csv", [{**key, **dict(zip(names, row, strict=True))} for row in rows])
    lines = rates.report(tmp_path / "rates.csv").splitlines()
    assert "| minilm | ia3 | b | - | 81.0 (0.450) | 83.0 (0.440) |" in lines
    assert lines[-1] == (
        "- minilm, ia3, beside the best of the five: factor 1 -1.0 points, loss +0.050 (1 sets); "
        "auto +0.5 points, loss +0.005 (2 sets)"
    )


def test_spaces_have_the_mean_of_their_seeds_and_of_their_sets(tmp_path):
    import spaces

    rows = [
        {
            "space": "glora",
            "data": data,
            "seed": seed,
            "teacher": teacher,
            "teacher_loss": 1.0,
            "best": 0.5,
            "best_loss": 2.0,
        }
        for data, seed, teacher in (("a", 0, 0.4), ("a", 1, 0.6), ("b", 0, 0.7))
    ]
    append_rows(tmp_path / "spaces.csv", rows)
    lines = spaces.report(tmp_path / "spaces.csv").splitlines()
    assert lines[0] == "| teacher | a | b | mean |"
    assert lines[2] == "| glora | 50.0 (1.000) | 70.0 (1.000) | 60.0 (1.000) |"
    assert lines[-1] == "| glora | 50.0 (2.000) | 50.0 (2.000) | 50.0 (2.000) |"


def test_what_is_missing_is_measured_once(tmp_path):
    measured = []

    def figures(key):
        measured.append(key)
        return {"worth": len(measured)}

    keys = [("lora+vectors", "0"), ("hira", "0")]
    for _ in range(2):
        fill(tmp_path / "t.csv", ("method", "seed"), keys, figures, tmp_path / "cache", minutes=1)
    assert measured == keys
    rows = read_rows(tmp_path / "t.csv")
    assert [(row["method"], row["seed"], row["worth"]) for row in rows] == [(*keys[0], "1"), (*keys[1], "2")]
    assert all(float(row["seconds"]) >= 0 for row in rows)
    fill(tmp_path / "t.csv", ("method", "seed"), [("ia3", "0")], figures, tmp_path / "cache", minutes=-1)
    assert measured == keys


def test_supernets_of_several_learning_rates_are_beside_the_tuned_lora(tmp_path):
    import supernet_rates

    losses = {("mpqa", "0.002"): 0.5, ("mpqa", "0.008"): 0.4, ("trec", "0.008"): 0.3}
    rows = [{"data": data, "rate": rate, "seed": 0, "teacher_loss": loss} for (data, rate), loss in losses.items()]
    rows.append({**rows[0], "seed": 1, "teacher_loss": 0.6})
    append_rows(tmp_path / "rates.csv", [{**row, "teacher": 0.5, "steps": 384} for row in rows])
    same = {"encoder": "minilm", "data": "mpqa", "rows": 500, "seed": 0, "budget": 41472, "method": "lora"}
    tuned = [{**same, "rate": rate, "validation_loss": loss} for rate, loss in ((0.001, 0.45), (0.002, 0.6))]
    append_rows(tmp_path / "study.csv", [*tuned, {**tuned[0], "rows": 2000, "validation_loss": 0.1}])
    lines = supernet_rates.report(tmp_path / "rates.csv", tmp_path / "study.csv").splitlines()
    assert lines[0] == "| data | seed | steps | 0.002 | 0.008 | LoRA alone, tuned |"
    assert lines[2:] == [
        "| mpqa | 0 | 384 | 0.500 | 0.400 | 0.450 (at 0.001) |",
        "| trec | 0 | 384 |  | 0.300 |  |",
        "| mpqa | 1 | 384 | 0.600 |  |  |",
    ]


def test_starts_of_a_subnet_are_beside_lora_at_the_same_rates(tmp_path):
    import starts

    losses = {("inherited", "0.5"): 0.36, ("scratch", "0.5"): 0.37, ("lora", "1"): 0.4, ("inherited", "1"): 0.38}
    rows = [
        {"data": "mpqa", "seed": 0, "start": start, "rate": rate, "validation_loss": loss, "teacher_loss": 0.367}
        for (start, rate), loss in losses.items()
    ]
    append_rows(tmp_path / "starts.csv", rows)
    lines = starts.report(tmp_path / "starts.csv").splitlines()
    assert lines[0] == "| data | seed | teacher | inherited x0.5 | inherited x1 | scratch x0.5 | lora x1 |"
    assert lines[2] == "| mpqa | 0 | 0.367 | 0.360 | 0.380 | 0.370 | 0.400 |"


def test_what_selection_gains_is_what_is_lost_on_other_rows(tmp_path):
    import selection

    names = ("data", "seen", "unseen", "random_seen", "random_unseen")
    rows = [("mpqa", 0.4, 0.45, 0.5, 0.5), ("mpqa", 0.8, 0.9, 1.0, 1.0), ("trec", 0.3, 0.3, 0.6, 0.6)]
    append_rows(tmp_path / "s.csv", [dict(zip(names, row, strict=True)) for row in rows])
    lines = selection.report(tmp_path / "s.csv").splitlines()
    assert lines[2:] == [
        "| mpqa | 2 | 0.800 | 0.900 | +12.5% |",
        "| trec | 1 | 0.500 | 0.500 | +0.0% |",
        "| mean | 3 | 0.650 | 0.700 | +7.7% |",
    ]


def test_students_are_compared_with_the_same_teacher_and_rate(tmp_path):
    import students

    def row(loss, **own):
        row = {"data": "mpqa", "seed": "0", "rate": "0.5", **students.PLAIN, **own}
        return {**{name: row[name] for name in students.KEY}, "validation_loss": loss}

    rows = [row(0.36), row(0.4, rate="1"), row(0.35, share="0.8"), row(0.38, share="0.8", rate="1")]
    append_rows(tmp_path / "s.csv", [*rows, row(0.37, method="ia3", rate="2"), row(0.3, data="trec", share="0.8")])
    lines = [line.replace(" |  |", " |").rstrip("| ") for line in students.report(tmp_path / "s.csv").splitlines()]
    assert lines[2:] == [
        "| method ia3, rate 2 | 0.370 (0.360)",
        "| share 0.8 | 0.350 (0.360), 0.380 (0.400) | 0.300",
        "| rate 1 | 0.400 (0.360)",
    ]


def test_losses_on_seen_and_unseen_rows_are_means_of_both_directions(tmp_path):
    import unseen

    names = ("data", "half", "who", "seen", "unseen")
    rows = [("mpqa", half, who, 0.4, 0.4) for half in ("first", "second") for who in ("scratch", "lora", "ia3")]
    rows += [("mpqa", "first", "inherited", 0.3, 0.5), ("mpqa", "second", "inherited", 0.4, 0.5)]
    rows += [("trec", "first", "inherited", 0.1, 0.1)]
    append_rows(tmp_path / "u.csv", [dict(zip(names, row, strict=True)) for row in rows])
    assert unseen.report(tmp_path / "u.csv").splitlines()[2:] == [
        "| mpqa | 0.350, 0.500 | 0.400, 0.400 | 0.400, 0.400 | 0.400, 0.400 |"
    ]


def test_a_training_ends_once_its_lowest_loss_is_in_its_first_half_and_not_before_the_first_rung():
    import ends

    losses = dict(zip(range(40, 361, 40), (0.9, 0.5, 0.6, 0.7, 0.4, 0.6, 0.6, 0.6, 0.3), strict=True))
    assert ends.end_of(losses, 160) == 160
    assert ends.end_of(losses, 200) == 360  # at 200 there is a new lowest one, and at 360 another
    assert ends.end_of(dict.fromkeys(range(40, 361, 40), 0.5), 160) == 160


def test_what_ends_early_misses_and_saves_is_told(tmp_path):
    import ends

    row = {"data": "a", "seed": 0, "steps": 100, "early_metric": 0.8, "metric": 0.9}
    rows = [
        {**row, "who": "lora-taught x1", "ends": 50, "early_loss": 0.5, "loss": 0.4},
        {**row, "who": "lora x1", "ends": 100, "early_loss": 0.3, "loss": 0.3},
    ]
    append_rows(tmp_path / "ends.csv", rows)
    lines = ends.report(tmp_path / "ends.csv").splitlines()
    assert lines[2] == "| a, 0 | lora-taught x1 | 50 of 100 | 0.500 (0.800) | 0.400 (0.900) |"
    assert lines[-2].startswith("alone: 1 trainings, 0 end early")
    assert lines[-1] == (
        "taught: 1 trainings, 1 end early, 1 of these would find a lower loss later; trained to the end, the loss of "
        "all is -20.0% on the mean, for +100% of the steps"
    )
