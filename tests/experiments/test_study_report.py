"""The study's page: what is compared, what it costs, and how it reads when most cells are missing."""

from __future__ import annotations

import csv
import dataclasses
import math

import pytest
from study_cells import COLUMNS, UNFIT
from study_plan import Cell, Study
from study_report import sentence, targets, without_empty, write_report
from study_results import Results
from study_statistics import TIE
from study_tables import inside

SETS = ["mpqa", "snips", "trec"]
METHODS = ["lora", "dora", "bitfit", "taught", "ours", "random", "paper"]
RUNS = ("ours", "random", "paper")
RATES = [1.0, 2.0, 4.0]


@pytest.fixture
def study():
    """A study of three sets and two seeds; LoRA and ours on another encoder too."""
    block = {"datasets": SETS, "seeds": [0, 1]}
    return Study.model_validate(
        {
            "encoders": {"minilm": {"model": "minilm", "budgets": [10]}, "other": {"model": "x", "budgets": [10]}},
            "primary_budget": {"minilm": 10, "other": 10},
            "epochs": {500: 20},
            "supernet_epochs": {500: 10},
            "rates": {"default": RATES},
            "recipe": {},
            "runs": {},
            "blocks": [{**block, "methods": METHODS}, {**block, "encoder": "other", "methods": ["lora", "ours"]}],
        }
    )


def rows_of(cell, loss=0.5, test=0.8, seconds=60, **others):
    """A cell's finished rows, as the csv has them; the middle rate is the best one."""
    rates = [0.0] if cell.method in RUNS else RATES
    units = {"ours": 5.0, "random": 4.0, "paper": ""}.get(cell.method, 1.0)
    values = {
        "metric": "accuracy",
        "epochs": 20,
        "params": 10,
        "seconds": seconds,
        "trainings": units,
        "winner": "LoRA r=1",
        **others,
    }
    found = []
    for rate in rates:
        worse = abs(rate - 2) / 10 if rate else 0
        scores = {"validation": test - worse, "validation_loss": loss + worse, "test": test, "test_loss": loss}
        row = {**dict.fromkeys(COLUMNS, ""), **values, **cell.key, "rate": rate, **scores}
        found.append({name: str(value) for name, value in row.items()})
    return found


def cell_of(method, data="mpqa", seed=0, encoder="minilm"):
    return Cell(encoder, data, 500, seed, 10, method)


def all_rows(study, **figures):
    return [row for cell in study.cells() for row in rows_of(cell, **figures.get(cell.method, {}))]


def written(study, rows, folder):
    """The page from these rows."""
    with (folder / "study.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    write_report(study, folder, folder / "evidence.md")
    return (folder / "evidence.md").read_text()


# -- what is compared --------------------------------------------------------------------------------------------------


def test_a_lora_without_all_of_its_rates_is_not_compared(study):
    ours, lora = rows_of(cell_of("ours")), rows_of(cell_of("lora"))
    assert Results(study, [*ours, *lora[:2]], "minilm").ours(500, "lora").found is None
    own = Results(study, [*ours, *lora], "minilm").ours(500, "lora")
    assert (len(own.pairs), own.planned, own.missing) == (1, 6, 5)


def test_a_lora_on_the_border_is_not_finished_and_one_that_stays_there_is_named(study):
    low = {1.0: "0.1", 0.5: "0.09", 0.25: "0.08", 0.125: "0.07"}
    rows = rows_of(cell_of("lora"))
    rows[0]["validation_loss"] = low[1.0]
    assert Results(study, rows, "minilm").done == {}
    more = [{**rows[0], "rate": str(rate), "validation_loss": low[rate]} for rate in (0.5, 0.25, 0.125)]
    own = Results(study, [*rows, *more], "minilm")
    assert own.on_border() == ["minilm-mpqa-500-0-10-lora"]
    assert own.chosen["tried"].tolist() == [6]


def test_diverged_trainings_cost_and_a_cell_of_nothing_else_is_named(study):
    lora, dora, unfit = (rows_of(cell_of(method)) for method in ("lora", "dora", "bitfit"))
    lora[2]["validation_loss"] = lora[2]["test"] = "nan"
    for row in dora:
        row["validation_loss"] = row["test"] = "nan"
    unfit = [{**unfit[0], "rate": "0", "validation_loss": "", "test": "", "trainings": "", "winner": UNFIT}]
    own = Results(study, [*lora, *dora, *unfit], "minilm")
    assert own.chosen["method"].tolist() == ["lora"]
    assert own.chosen["trainings"].tolist() == [3]
    assert own.diverged() == ["minilm-mpqa-500-0-10-dora"]


def test_another_encoder_is_not_compared_with_the_first(study):
    rows = [*rows_of(cell_of("ours")), *rows_of(cell_of("lora", encoder="other"))]
    for encoder in study.encoders:
        assert Results(study, rows, encoder).ours(500, "lora").found is None


def test_the_best_baseline_is_that_on_validation_where_there_is_more_than_lora(study):
    alone = [*rows_of(cell_of("ours", seed=1)), *rows_of(cell_of("lora", seed=1))]
    there = [
        *rows_of(cell_of("ours"), test=0.9),
        *rows_of(cell_of("lora"), loss=0.5, test=0.7),
        *rows_of(cell_of("dora"), loss=0.4, test=0.6),
        *rows_of(cell_of("bitfit"), loss=0.6, test=0.95),
    ]
    own = Results(study, [*alone, *there], "minilm")
    assert own.picked(500)[["picked", "seed", "choices", "trainings"]].values.tolist() == [["dora", 0, 3, 9]]
    assert own.against_picked(500).found.mean == pytest.approx(30)
    assert own.ours(500, "lora").found.mean == pytest.approx((20 + 0) / 2)


def test_the_structure_is_compared_with_the_better_of_both_where_both_are_there(study):
    rows = [
        *rows_of(cell_of("ours"), test=0.9),
        *rows_of(cell_of("taught"), loss=0.5, test=0.95),
        *rows_of(cell_of("random"), loss=0.4, test=0.8),
        *rows_of(cell_of("ours", seed=1)),
        *rows_of(cell_of("random", seed=1)),
    ]
    own = Results(study, rows, "minilm").structure()
    assert own.pairs["points"].tolist() == pytest.approx([10])
    assert own.planned == 6


def test_the_baseline_of_its_own_race_is_another_comparison(study):
    rows = [*rows_of(cell_of("ours"), test=0.9, baseline_test="0.85"), *rows_of(cell_of("ours", seed=1), test=0.9)]
    own = Results(study, rows, "minilm").own_race(500)
    assert own.pairs["points"].tolist() == pytest.approx([5])
    assert own.planned == 6


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_the_teacher_costs_its_supernet_and_the_paper_its_time(study):
    rows = [*rows_of(cell_of("lora"), seconds=50), *rows_of(cell_of("taught"), seconds=60)]
    rows += [*rows_of(cell_of("paper"), seconds=450), *rows_of(cell_of("ours"), seconds=300)]
    own = Results(study, rows, "minilm")
    cost = own.chosen.set_index("method")[["trainings", "seconds"]]
    supernet = 1.3 * 10 / 20
    assert cost.loc["lora"].tolist() == [3, 150]
    assert cost.loc["taught"].tolist() == pytest.approx([3 + supernet, 180 * (1 + supernet / 3)])
    assert cost.loc["paper"].tolist() == [9, 450]
    assert own.ours(500, "lora").cost == pytest.approx(5 / 3)


def test_trainings_that_end_early_cost_twice_their_best_step_or_the_first_rung(study):
    rows = rows_of(cell_of("lora"))
    for row, best in zip(rows, ("1", "8", ""), strict=True):  # of 20 epochs; the last one has diverged
        row["best_epoch"] = best
    rows[-1]["validation_loss"] = "nan"
    own = Results(study, [*rows, *rows_of(cell_of("ours"))], "minilm")
    assert own.chosen.set_index("method")["stopped"].to_dict() == pytest.approx({"lora": 0.25 + 0.8 + 0.25, "ours": 5})
    assert own.ours(500, "lora").cost_stopped == pytest.approx(5 / 1.3)


# -- the targets -------------------------------------------------------------------------------------------------------


def judged(study, rows):
    return [verdict for _, verdict, _ in targets(Results(study, rows, "minilm"))]


def test_a_target_is_judged_when_its_last_pair_is_there(study):
    rows = all_rows(study, ours={"test": 0.85, "loss": 0.3})
    absent = {1, 4, 6}  # 2,000 rows, and larger ranks
    verdicts = judged(study, rows)
    assert {n for n, verdict in enumerate(verdicts) if verdict == "not enough rows yet"} == absent
    assert verdicts[0] == verdicts[3] == verdicts[5] == "met"
    assert verdicts[2] == "missed"  # 5 trainings are more than 1.2 times 3
    last = [row for row in rows if (row["method"], row["data"], row["seed"]) != ("lora", "trec", "1")]
    assert judged(study, last)[0] == "not enough rows yet"


def test_one_set_far_below_misses_its_target_whatever_the_mean(study):
    rows = all_rows(study, ours={"test": 0.9})
    for row in rows:
        if (row["method"], row["data"]) == ("ours", "snips"):
            row["test"] = str(0.8 - (TIE + 0.1) / 100)
    verdicts = judged(study, rows)
    assert verdicts[3] == "missed"
    assert verdicts[0] == "missed"  # its interval is not above 0


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_of_nothing_says_so(study, tmp_path, capsys):
    text = written(study, [], tmp_path)
    assert text.startswith("# Evidence\n\n**0 of the 54 planned cells are finished**, from 0 trainings.")
    assert "## 500 training rows" not in text
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "product claim: not enough rows yet",
        "structure claim: not enough rows yet",
    ]


def test_the_page_says_first_what_is_there_and_then_what_was_missed(study, tmp_path, capsys):
    text = written(study, all_rows(study, ours={"test": 0.81}), tmp_path)
    first, second = text.split("\n## ")[:2]
    assert "54 of the 54 planned cells" in first
    assert "3 sets with 2 seeds, in 6 of 6 planned pairs" in first
    assert second.startswith("The targets\n\n- **missed**")
    assert "$" not in text
    assert "nan" not in text
    assert {path.name for path in tmp_path.glob("*.svg")} == {"evidence-sets.svg"}
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "product claim: +1.00 [+1.00, +1.00] points over 3 sets x 2 seeds at cost 5.0 LoRA trainings",
        "structure claim: +1.00 [+1.00, +1.00] points over 3 sets x 2 seeds at cost 5.0 LoRA trainings",
    ]


def test_a_page_of_half_of_the_rows_has_no_gap(study, tmp_path):
    rows = [row for row in all_rows(study) if row["method"] in ("lora", "ours") and row["data"] == "mpqa"]
    rows[0]["validation_loss"] = "nan"
    text = written(study, rows, tmp_path)
    assert "[no interval]" in text
    assert "nan" not in text
    assert "\n\n\n" not in text
    assert (
        "No rows yet for these sections: Sensitivity; Inside the races; Fewer parameters; 2,000 training rows;" in text
    )


def test_sections_without_text_are_left_out_and_named():
    page = "# A\n\n## B\n\n### C\n\ntext\n\n### D\n\n## E\n\n### F\n\n## G\n\ntext\n"
    text, empty = without_empty(page)
    assert text == "# A\n\n## B\n\n### C\n\ntext\n\n## G\n\ntext\n"
    assert empty == ["D", "E"]


def test_a_sentence_counts_what_there_is_one_of(study):
    own = Results(study, [*rows_of(cell_of("ours")), *rows_of(cell_of("lora"))], "minilm").ours(500, "lora")
    said = sentence(own, "LoRA")
    assert "1 set with 1 seed: 0 wins, 1 tie, 0 losses" in said
    assert "Pairs so far: 1 of 6." in said
    assert math.isnan(own.found.p)
    assert "Wilcoxon" not in said


def test_the_lowest_losses_inside_the_races_are_compared_by_who_was_taught():
    def race(**losses):
        return {"finalists": [{"name": name, "validation_loss": loss} for name, loss in losses.items()]}

    first = race(**{"LoRA r=1 x2": 0.5, "(IA)3": 0.6, "LoRA r=1 x2 + teacher": 0.4, "subnet 2 + teacher": 0.45})
    second = race(**{"LoRA r=1": 1.0, "LoRA x4": None, "LoRA + teacher": 1.0, "subnet 1 from scratch + teacher": 0.8})
    rows = [line.split(" | ") for line in inside([first, second]).splitlines()[2:]]
    assert [row[0].strip("| ") for row in rows] == [
        "uniform methods, with a teacher",
        "searched subnets with inherited weights, with a teacher",
        "searched subnets from scratch, with a teacher",
    ]
    assert [row[2] for row in rows] == ["-10.0%", "-10.0%", "-20.0%"]
    assert [row[3] for row in rows] == ["-10.0%", "-20.0%", "+0.0%"]
    assert [row[4].strip(" |") for row in rows] == ["1", "0", "1"]
    assert inside([]) == ""


def test_ours_within_a_smaller_budget_is_compared_with_lora_at_the_primary_one(study):
    study.encoders["minilm"].budgets.append(5)
    study.blocks.append(study.blocks[0].model_copy(update={"budgets": [5], "methods": ["ours"]}))
    own = [*rows_of(cell_of("lora"), test=0.8), *rows_of(dataclasses.replace(cell_of("ours"), budget=5), test=0.82)]
    ((budget, found),) = Results(study, own, "minilm").smaller(500).items()
    assert (budget, found.planned, len(found.pairs)) == (5, 6, 1)
    assert found.found.mean == pytest.approx(2)
    assert Results(study, own[:3], "minilm").smaller(500) == {}


def test_ours_is_compared_with_lora_of_the_rank_that_is_best_on_validation_once_all_ranks_are_there(study):
    study.blocks.append(study.blocks[0].model_copy(update={"budgets": [20, 40], "methods": ["lora"]}))

    def lora(budget, loss, test):
        return rows_of(dataclasses.replace(cell_of("lora"), budget=budget), loss=loss, test=test, params=budget)

    own = [*rows_of(cell_of("ours"), test=0.9), *lora(10, 0.5, 0.7), *lora(20, 0.4, 0.8)]
    assert Results(study, own, "minilm").any_size(500).found is None
    found = Results(study, [*own, *lora(40, 0.45, 0.95)], "minilm").any_size(500)
    assert (found.found.mean, found.size, found.planned) == (pytest.approx(10), 0.5, 6)


def test_pairs_from_before_a_subnet_needed_a_margin_are_told_from_those_made_since(study, tmp_path):
    before = [row for data in ("mpqa", "snips") for row in rows_of(cell_of("ours", data), test=0.81)]
    with (tmp_path / "lowest-loss.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(before)
    page = written(study, all_rows(study, ours={"test": 0.82}), tmp_path)
    (known,) = (line for line in page.splitlines() if line.startswith("- On the 2 pairs known"))
    assert "it is +2.00 [" in known
    assert "as the winner, it was +1.00 [" in known
    assert "- On the 4 pairs made since, it is +2.00 [" in page
