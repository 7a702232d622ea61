"""The study's cells: which rate comes next, what a kill leaves, and who does which one."""

from __future__ import annotations

import copy
import itertools
import math
import multiprocessing
import threading

import pytest
import study_cells
import study_runs
import torch
from study_cells import UNFIT, is_done, is_ready, next_rate, next_training, work
from study_found import read_genomes
from study_methods import fresh
from study_plan import Cell, matching
from study_runs import open_run, run_recipe, spent
from study_training import fit, settings_of
from transformers import TrainerCallback

from glora_search import Recipe
from glora_search.errors import UserError
from glora_search.run import supernet
from glora_search.scoring import evaluate, length_sorted_batches
from glora_search.tasks import make_task

RATES = [1.0, 2.0, 4.0, 8.0, 16.0]
NAN = math.nan


# -- rates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ([], 1.0),
        ([5, 4], 4.0),
        ([5, 4, 3, 4, 5], None),
        ([5, 4, 3, 2, 1], 32.0),
        ([1, 2, 3, 4, 5], 0.5),
        ([1, 1, 1, 1, 1], 0.5),  # of equal ones the lowest is the best
        ([5, 4, 3, 2, NAN], None),  # beyond the best one all is lost
        ([NAN, NAN, NAN, NAN, 2], 32.0),
        ([NAN] * 5, None),
    ],
)
def test_the_next_rate_is_beyond_the_border_where_the_best_one_lies_there(losses, wanted):
    assert next_rate(dict(zip(RATES, losses, strict=False)), RATES, 3) == wanted


@pytest.mark.parametrize("best", [2.0**n for n in range(-6, 12)])
def test_the_range_grows_until_the_best_rate_is_inside_or_as_often_as_it_may(best):
    losses = {}
    while (rate := next_rate(losses, RATES, 3)) is not None:
        assert rate not in losses
        losses[rate] = abs(math.log2(rate / best))
    tried = sorted(losses)
    assert set(RATES) <= set(tried)
    assert [math.log2(two / one) for one, two in itertools.pairwise(tried)] == [1] * (len(tried) - 1)
    chosen = min(losses, key=losses.get)
    assert tried[0] < chosen < tried[-1] or len(tried) == len(RATES) + 3


def test_lora_alone_also_trains_for_fewer_epochs_at_its_best_rate_and_the_next_one(desk):
    study = desk(["lora", "dora"], shorter={32: [1, 0.5]}).study
    lora, dora = study.cells()
    rows, trained = [row(lora, 2e-3, 0.5), row(lora, 4e-3, 0.7)], []
    while (wanted := next_training(lora, rows, study)) is not None:
        trained.append(wanted)
        rows.append(row(lora, wanted[0], 0.1, epochs=str(wanted[1])))  # the best of all do not move the rates
    assert trained == [(2e-3, 1), (4e-3, 1), (2e-3, 0.5), (4e-3, 0.5)]
    assert next_training(dora, [row(dora, rate) for rate in (2e-3, 4e-3)], study) is None
    assert next_training(lora, [row(lora, rate, NAN) for rate in (2e-3, 4e-3)], study) is None


def test_a_shorter_training_costs_less_and_is_chosen_where_it_is_better(desk):
    own = desk(["lora"], shorter={32: [1]})
    work(own.study.cells(), own)
    assert [(line["epochs"], line["trainings"]) for line in own.rows()] == 2 * [("2.0", "1.0")] + 2 * [("1.0", "0.5")]


def test_a_single_rate_is_not_extended():
    assert next_rate({1.0: 5}, [1.0], 3) is None


# -- what is done ------------------------------------------------------------------------------------------------------


def row(cell, rate=0.0, loss=1.0, **others):
    return {**cell.key, "rate": str(rate), "epochs": "2.0", "validation_loss": str(loss), "winner": "", **others}


def test_a_cell_is_done_with_all_of_its_rates_a_run_with_its_row_and_what_does_not_fit_at_once(desk):
    study = desk(["lora", "ours"]).study
    lora, ours = study.cells()
    assert not is_done(lora, [row(lora, 2e-3)], study)
    assert is_done(lora, [row(lora, 2e-3), row(lora, 4e-3)], study)
    assert not is_done(lora, [row(lora.of("dora"), rate) for rate in (2e-3, 4e-3)], study)
    assert is_done(lora, [row(lora, 0, "", winner=UNFIT)], study)
    assert is_done(ours, [row(ours)], study)
    assert not is_done(ours, [row(lora, 2e-3), row(lora, 4e-3)], study)


def test_what_builds_on_a_supernet_waits_for_it(desk):
    taught, ours = desk(["taught", "ours"]).study.cells()
    assert not is_ready(taught, [row(ours.of("lora"), 2e-3)])
    assert is_ready(taught, [row(ours)])
    assert is_ready(ours, [])


def test_only_takes_names_and_values_of_cells(desk):
    cells = desk(["lora", "dora"], seeds=[0, 1]).study.cells()
    assert [(cell.method, cell.seed) for cell in matching(cells, ["method=dora", "seed=1", "seed=0"])] == [
        ("dora", 0),
        ("dora", 1),
    ]
    with pytest.raises(UserError, match=r"--only: got 'rate=1'; allowed: .*method=\.\.\."):
        matching(cells, ["rate=1"])
    with pytest.raises(UserError, match=r"got 'data=trec,sst2'; allowed: .*data="):
        matching(cells, ["data=trec,sst2"])


# -- a training --------------------------------------------------------------------------------------------------------


def task_of(own, cell):
    return make_task(
        Recipe.model_validate({**study_runs.recipe_of(cell, own.study, own.data, own.cache), "space": "glora"})
    )


def test_a_training_scores_its_best_checkpoint_and_not_its_last(desk):
    own = desk(["lora"])
    (cell,) = own.study.cells()
    task = task_of(own, cell)
    start = fresh("lora", task, 500, 0, 8, 16)
    seen = []

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            seen.append(metrics["eval_loss"])

    found = fit(start.model, task, settings_of(1.0, 6, 16), 0, lr_factors={"head": 3.0}, callbacks=[Watch()])
    assert len(seen) == 6
    assert min(seen) < seen[-1]  # at this rate the last one is not the best
    assert found["validation_loss"] == min(seen)
    again = evaluate(start.model, length_sorted_batches(task.validation, task.collator, 64), task)
    assert again.loss == pytest.approx(found["validation_loss"], rel=1e-5)
    assert again.metric == pytest.approx(found["validation"])


def test_averaged_weights_are_evaluated_and_scored_and_the_training_goes_on_from_its_own(desk):
    own = desk(["lora-averaged"])
    (cell,) = own.study.cells()
    task = task_of(own, cell)

    def trained(decay):
        start = fresh("lora-averaged", task, 500, 0, 8, 16)
        assert start.decay == 0.95
        weights = [value for value in start.model.parameters() if value.requires_grad]
        steps, evaluated = [copy.deepcopy(weights)], []

        class Watch(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                steps.append(copy.deepcopy(weights))

            def on_evaluate(self, args, state, control, metrics, **kwargs):
                evaluated.append((metrics["eval_loss"], copy.deepcopy(weights)))

        options = {"lr_factors": {"head": 3.0}, "callbacks": [Watch()], "decay": decay}
        return fit(start.model, task, settings_of(0.1, 4, 16), 0, **options), steps, evaluated, weights

    _, alone, *_ = trained(0.0)
    found, steps, evaluated, weights = trained(0.95)
    for one, other in zip(steps, alone, strict=True):
        torch.testing.assert_close(one, other)
    average = steps[0]
    for number, step in enumerate(steps[1:], start=1):
        decay = min(0.95, (1 + number) / (10 + number))
        average = [decay * mean + (1 - decay) * value for mean, value in zip(average, step, strict=True)]
        if number % 2 == 0:  # an epoch
            torch.testing.assert_close(evaluated[number // 2 - 1][1], average)
    loss, best = min(evaluated, key=lambda one: one[0])
    assert found["validation_loss"] == loss
    torch.testing.assert_close(weights, best)


def test_a_training_that_diverges_has_no_figures_and_its_time(desk):
    own = desk(["lora"])
    (cell,) = own.study.cells()
    task = task_of(own, cell)
    start = fresh("lora", task, 500, 0, 2, 16)
    with torch.no_grad():
        next(parameter for parameter in start.model.parameters() if parameter.requires_grad).fill_(NAN)
    found = fit(start.model, task, settings_of(1e-3, 1, 16), 0, lr_factors={})
    assert all(math.isnan(found[name]) for name in ("validation", "validation_loss", "test", "test_loss"))
    assert found["test_rows"] == 20


# -- the work ----------------------------------------------------------------------------------------------------------


def figures(own):
    names = ("rate", "validation", "validation_loss", "test", "test_loss", "params")
    return [[line[name] for name in names] for line in own.rows()]


def test_work_goes_on_where_a_kill_left_it_and_what_is_done_stays(desk, monkeypatch):
    whole, own = desk(["lora"], name="whole"), desk(["lora"], name="killed")
    assert work(whole.study.cells(), whole).startswith("nothing is left")
    wanted = figures(whole)
    assert [line[0] for line in wanted] == ["0.002", "0.004"]

    def killed(*args, **options):
        if own.rows():
            raise KeyboardInterrupt
        return fit(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(study_cells, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            work(own.study.cells(), own)
    assert figures(own) == wanted[:1]
    work(own.study.cells(), own)
    assert figures(own) == wanted
    before = own.table.read_bytes()
    assert work(own.study.cells(), own).startswith("nothing is left")
    assert own.table.read_bytes() == before


def test_a_method_that_does_not_fit_is_noted_once(desk):
    own = desk(["rslora"])  # at rank 1 it is LoRA
    work(own.study.cells(), own)
    work(own.study.cells(), own)
    assert [line["winner"] for line in own.rows()] == [UNFIT]


def test_a_cell_that_fails_does_not_end_the_work(desk, monkeypatch):
    own = desk(["lora", "dora", "bitfit"])

    def do(cell, desk, late):
        if cell.method == "dora":
            raise ValueError("no")
        desk.append(row(cell, winner=UNFIT))

    monkeypatch.setattr(study_cells, "do_cell", do)
    assert "1 have failed: tiny-mpqa-32-0-500-dora" in work(own.study.cells(), own)
    assert [line["method"] for line in own.rows()] == ["lora", "bitfit"]


def test_no_training_begins_after_the_limit(desk):
    own = desk(["lora"])
    assert work(own.study.cells(), own, minutes=-1) == "stopped at the limit; 1 cells are left"
    assert own.rows() == []


def test_two_processes_never_do_one_cell(desk, monkeypatch):
    own, processes = desk(["lora", "dora", "bitfit", "ia3"]), multiprocessing.get_context("fork")
    both = processes.Barrier(2)  # each is in a cell while the other one is

    def do(cell, desk, late):
        both.wait(60)
        desk.append(row(cell, winner=UNFIT))

    monkeypatch.setattr(study_cells, "do_cell", do)
    workers = [processes.Process(target=work, args=(own.study.cells(), own)) for _ in range(2)]
    for one in workers:
        one.start()
    for one in workers:
        one.join(120)
    assert [one.exitcode for one in workers] == [0, 0]
    assert sorted(line["method"] for line in own.rows()) == ["bitfit", "dora", "ia3", "lora"]


def test_rows_that_are_appended_at_the_same_time_are_whole(desk):
    own = desk(["lora"])
    cells = [Cell("tiny", "mpqa", 32, seed, 500, "lora") for seed in range(40)]
    threads = [threading.Thread(target=own.append, args=(row(cell), {"best": {}})) for cell in cells]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(int(line["seed"]) for line in own.rows()) == list(range(40))
    assert len(read_genomes(own.results / "genomes.jsonl")) == 40


def test_of_a_cell_that_was_killed_before_its_row_the_last_genome_counts(desk):
    own = desk(["ours"])
    (cell,) = own.study.cells()
    own.append(row(cell), {"best": {"old": {}}})
    own.append(row(cell), {"best": {"new": {}}})
    assert [line["best"] for line in read_genomes(own.results / "genomes.jsonl")] == [{"new": {}}]


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_has_the_supernet_of_its_method_and_the_study_is_as_it_was(desk):
    own = desk(["ours", "paper"])
    before = copy.deepcopy(own.study)
    ours, paper = (
        Recipe.model_validate(run_recipe(cell, own.study, own.data, own.cache)) for cell in own.study.cells()
    )
    assert own.study == before
    assert ours.supernet_max_params == 4 * 500
    assert paper.supernet_max_params == 500
    assert (ours.search.max_params, paper.search.max_params) == (500, 500)
    assert paper.finals is None


def test_finals_that_went_on_after_a_kill_cost_all_of_their_trainings():
    finals = {"seconds_per_training": 10.0, "trainings": 4.0}
    seconds = {"train-supernet": 15.0, "search": 5.0, "finals": 42.0, "evaluate": 99.0}
    assert spent(seconds, finals, 6.2) == (62.0, 6.2)
    assert spent({**seconds, "finals": 12.0}, finals, 3.2) == (60.0, 6.0)
    assert spent(seconds, {}, None) == (62.0, None)


@pytest.mark.slow
def test_what_builds_on_the_supernet_of_ours_trains_no_other_one(desk, monkeypatch):
    own, trained, train = desk(["ours", "random", "taught"]), [], supernet.train

    def watched(run, folder):
        trained.append(folder)
        return train(run, folder)

    monkeypatch.setattr(supernet, "train", watched)
    assert work(own.study.cells(), own).startswith("nothing is left")
    ours, random, *taught = own.rows()
    assert [line["method"] for line in (ours, random, *taught)] == ["ours", "random", "taught", "taught"]
    assert len(read_genomes(own.results / "genomes.jsonl")) == 2
    for line in (ours, random, *taught):
        assert math.isfinite(float(line["validation_loss"]))
        assert line["test_rows"] == "20"
    assert len({line["teacher_validation_loss"] for line in taught}) == 1
    assert len(trained) == 1
    seconds = open_run(own.study.cells()[0], own.study, own.data, own.cache).view.seconds()
    assert float(ours["seconds"]) >= seconds["train-supernet"] + seconds["search"] > 0
    assert float(random["seconds"]) > seconds["train-supernet"]
