"""The finals on one data set, with made-up trainings: who is never dropped, and at which rates methods train."""

from __future__ import annotations

import math

import pytest
from datasets import Dataset
from transformers import TrainingArguments

from glora_search.finals.contest import Contest, own_factors
from glora_search.finals.finalists import Finalist, Subnet
from glora_search.finals.lessons import Lesson
from glora_search.finals.rungs import Standing
from glora_search.recipe.schema import Finals
from glora_search.training.distillation import SOFT_CLASSES
from glora_search.training.uniform import uniform_methods
from glora_search.vocabulary import LR_FACTORS


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("ia3", LR_FACTORS, LR_FACTORS),
        ("hira", LR_FACTORS, {**LR_FACTORS, "A.lora": 15.0}),
        ("ia3", {"vector": 1.0}, {"vector": 1.0}),
        ("ia3", {"A.vector": 2.0}, {"A.vector": 2.0}),
        ("lora+vectors", {"A.vector": 2.0}, {"A.vector": 2.0, "E.vector": 2.0}),
        ("hira", {"vector": 1.0}, {"vector": 1.0, "A.lora": 15.0}),
        ("hira", {}, {}),
        ("lora", {"head": 3.0}, {"head": 3.0}),
    ],
)
def test_a_methods_own_factors_hold_for_kinds_that_the_user_says_nothing_of(bind, method, given, expected):
    (made,) = uniform_methods(bind("glora"), None, [method])
    assert own_factors(Finalist(made.name, made, made.params), given) == expected


class MadeUp(Contest):
    """A contest whose trainings end at losses by name, the first name that fits; those of nobody else get 1."""

    ends: dict[str, float]

    def _train_to(self, some, step, bar):
        def loss(one):
            return next((end for name, end in self.ends.items() if name in one.name), 1.0) / step

        return {one.name: Standing(step, loss(one), 0.5, step, {step: loss(one)}) for one in some}


@pytest.fixture
def contest(bind, tmp_path):
    """``contest(ends, taught)``: three subnets against six trainings of uniform methods."""

    def make(ends, *, taught, poor=False, subnets=3, losses=(0.0, 0.1, 0.2)):
        space = bind("glora-paper")
        genome = {gene.name: gene.choices[0] for gene in space.genes}
        lesson = None
        if taught:
            lesson = Lesson(
                Dataset.from_dict({SOFT_CLASSES: [[0]] * 16}), "supernet", 2, 0.5, math.inf if poor else 0.0
            )
        found = MadeUp(
            space=space,
            subnets=[Subnet(genome, 10, loss) for loss in losses[:subnets]],
            scoring=None,
            train=Dataset.from_dict({"labels": [0] * 16}),
            validation=None,
            unlabelled=lambda: None,
            lesson=lesson,
            args=TrainingArguments(str(tmp_path), max_steps=16, use_cpu=True),
            folder=tmp_path,
            settings=Finals(methods=["lora", "ia3", "bitfit", "hira"]),
            max_params=None,
            base=lambda: None,
            load=lambda folder: None,
            inherit=lambda one, base: None,
            lr_factors={},
            task_type="SEQ_CLS",
            modules_to_save=(),
        )
        found.ends = ends
        return found

    return make


@pytest.mark.parametrize("column", ["labels", "label"])
def test_a_classifier_that_overfits_has_ended_and_a_regression_may_come_down_again(contest, column):
    made = contest({}, taught=False)
    assert (made.ends_from, made.first, made.steps) == (4, 4, 16)
    made.train = Dataset.from_dict({column: [0.5] * 16})
    assert made.ends_from == 16


@pytest.mark.parametrize("best", ["LoRA r=8 x2", "(IA)3", "BitFit", "HiRA r=8"])
def test_the_best_uniform_method_and_its_taught_twin_are_never_dropped(contest, best):
    ends = {f"{best} + teacher": 2.0, "+ teacher": 0.1, best: 0.5}
    outcome = contest(ends, taught=True).run()
    assert outcome.baseline == best
    for name in (best, f"{best} + teacher"):
        assert outcome.result.standings[name].step == 16
    assert outcome.winner != f"{best} + teacher"


def test_lora_with_a_teacher_is_never_dropped_at_the_rate_that_was_best_without_one(contest):
    ends = {"LoRA r=8 x2 + teacher": 9.0, "+ teacher": 0.1, "LoRA r=8 x2": 0.6, "(IA)3": 0.5}
    outcome = contest(ends, taught=True).run()
    whole = {row["name"] for row in outcome.table() if row["steps"] == 16}
    assert {"LoRA r=8 x2 + teacher", "(IA)3 + teacher"} <= whole


@pytest.mark.parametrize("taught", [True, False])
@pytest.mark.parametrize(
    ("ends", "rates"),
    [
        ({"LoRA r=8 x8": 0.1, "LoRA r=8 x4": 0.2, "LoRA r=8 x2": 0.3}, [0.5, 1, 2, 4, 8]),
        ({"LoRA r=8 x0.5": 0.2}, [0.25, 0.5, 1, 2]),
        ({"LoRA r=8 x4": 9.0, "LoRA r=8 x2": 0.3}, [0.5, 1, 2, 4]),
        ({"LoRA r=8 x0.5": 0.3, "LoRA r=8 x2": 0.3, "LoRA r=8": 0.2}, [0.5, 1, 2]),
    ],
)
def test_loras_learning_rate_is_raced_beyond_those_given_until_the_best_lies_inside(contest, ends, rates, taught):
    outcome = contest(ends, taught=taught).run()
    alone = [one for one in outcome.result.field if one.rated and not one.taught]
    assert sorted(one.rate for one in alone) == rates
    assert outcome.baseline == min(ends, key=ends.__getitem__)
    assert {one.name for one in outcome.result.field} == outcome.result.standings.keys()


@pytest.mark.parametrize(
    ("best", "rates", "tuned"), [("LoRA", [1, 2], True), ("LoRA", [1], False), ("HiRA", [1, 2], False)]
)
def test_a_baseline_is_tuned_if_it_raced_at_several_learning_rates(contest, best, rates, tuned):
    made = contest({best: 0.1}, taught=True)
    made.settings = Finals(methods=["lora", "hira"], rates=rates)
    outcome = made.run()
    assert outcome.baseline.startswith(best)
    assert outcome.tuned is tuned


@pytest.mark.parametrize("best", ["LoRA r=8 x2", "(IA)3", "BitFit", "HiRA r=8"])
def test_without_a_teacher_the_best_uniform_method_is_never_dropped(contest, best):
    outcome = contest({"subnet": 0.1, best: 0.5}, taught=False).run()
    assert outcome.winner.startswith("subnet")
    assert outcome.baseline == best
    assert outcome.result.standings[best].step == 16
    last = [row["name"] for row in outcome.table() if row["steps"] == 16]
    uniform = [outcome.named(name) for name in last if outcome.named(name).uniform]
    assert best in {one.name for one in uniform}
    assert all(one.rated for one in uniform if one.name != best)


@pytest.mark.parametrize("poor", [True, False])
def test_of_tokens_subnets_race_without_a_teacher_that_is_poor(contest, poor):
    outcome = contest({"subnet": 0.05, "(IA)3": 0.1}, taught=True, poor=poor).run()
    last = [one for one in outcome.result.field if not one.uniform or one.taught]
    assert {one.taught for one in last} == {not poor}
    assert any(one.uniform for one in last) != poor
    assert outcome.winner.startswith("subnet")
    assert outcome.teacher.get("taught", True) != poor


@pytest.mark.parametrize("taught", [True, False])
def test_subnets_race_at_loras_best_learning_rate_and_inherit_what_is_better_than_all_trained_alone(contest, taught):
    ends = {"LoRA r=8 x2": 0.9, "(IA)3": 0.8}  # divided by 16 steps, the best loss is .05
    outcome = contest(ends, taught=taught, losses=(0.049, 0.05, math.nan)).run()
    searched = [one for one in outcome.result.field if not one.uniform]
    assert {one.rate for one in searched} == {2}
    assert [one.inherits for one in searched] == [True, False, False]
    names = ["subnet 1", "subnet 2 from scratch", "subnet 3 from scratch"]
    assert [one.method for one in searched] == names


def test_where_no_method_fits_the_budget_subnets_inherit(contest):
    one = contest({}, taught=True)
    one.max_params = 0
    assert [(finalist.inherits, finalist.rate) for finalist in one.run().result.field] == 3 * [(True, 1)]


def test_without_lora_subnets_race_at_the_learning_rate_of_the_finals(contest):
    one = contest({"(IA)3": 0.1}, taught=True)
    one.settings = Finals(methods=["ia3"])
    assert {one.rate for one in one.run().result.field} == {1}


def test_where_nobody_teaches_and_no_subnet_races_the_methods_alone_decide(contest):
    outcome = contest({"(IA)3": 0.1}, taught=True, poor=True, subnets=0).run()
    assert outcome.winner == outcome.baseline == "(IA)3"
    assert not any(one.taught for one in outcome.result.field)


@pytest.mark.parametrize("taught", [True, False])
@pytest.mark.parametrize(("second", "rates"), [(0.207, {2, 4}), (0.22, {2})])
def test_lora_is_trained_to_the_end_at_its_two_best_learning_rates_where_they_are_close(contest, second, rates, taught):
    ends = {"LoRA r=8 x4": second, "LoRA r=8 x2": 0.2, "LoRA r=8 x0.5": 0.9, "(IA)3": 0.05, "subnet": 0.01}
    outcome = contest(ends, taught=taught).run()
    whole = [row for row in outcome.table() if row["steps"] == 16 and "teacher" not in row["name"]]
    assert {row["rate"] for row in whole if row["method"] == "LoRA r=8"} == rates
    assert "(IA)3" in {row["name"] for row in whole}


def test_what_a_subnet_begins_with_has_one_name():
    found = [Finalist("subnet 1", {}, 10, rate, taught) for rate in (1.0, 2.0) for taught in (True, False)]
    assert {one.start for one in found} == {"subnet-1"}
    assert len({one.slug for one in found}) == 4
