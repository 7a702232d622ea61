"""Text regression: correlation and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from transformers import TrainingArguments

from glora_search.errors import UserError
from glora_search.scoring import Batches, evaluate
from glora_search.search.evaluator import SubnetEvaluator
from glora_search.training.answers import Answers
from glora_search.training.loop import train


@pytest.fixture
def numbers(task, make):
    rows = [{**row, "label": index - 100.0} for index, row in enumerate(make.rows(24))]  # -100 counts
    return task("bert", "text-regression", rows)


def test_metric_and_further_figures_are_those_of_scipy(numbers):
    rng = np.random.default_rng(0)
    said, true = rng.normal(size=40).round(1), rng.integers(0, 6, 40).astype(float)
    rows = numbers.tally(torch.tensor(said)[:, None], torch.tensor(true)).double().numpy()
    assert numbers.score(rows) == pytest.approx(spearmanr(said, true).statistic, abs=1e-6)
    also = numbers.also(rows)
    assert also["pearson"] == pytest.approx(pearsonr(said, true).statistic, abs=1e-6)
    assert also["rmse"] == pytest.approx(np.sqrt(np.mean((said - true) ** 2)), abs=1e-6)


def test_a_constant_answer_is_worth_nothing_and_one_that_is_not_finite_is_not_finite(numbers):
    rows = np.stack([np.full(5, 2.0), np.arange(5.0)], axis=1)
    assert numbers.score(rows) == numbers.best_constant(numbers.validation).metric == numbers.also(rows)["pearson"] == 0
    rows[0, 0] = np.nan
    assert np.isnan(numbers.score(rows))
    assert np.isnan(numbers.also(rows)["pearson"])


def test_the_metric_does_not_depend_on_batches_and_every_number_counts(numbers):
    model = numbers.model()
    found = [evaluate(model, Batches(numbers.train, numbers.collator, size), numbers) for size in (1, 5, 64)]
    said, true = [], []
    with torch.no_grad():
        for row in numbers.train:
            batch = numbers.collator([row])
            said.append(float(model(**batch).logits))
            true.append(float(batch["labels"]))
    for one in found:
        assert one.metric == pytest.approx(spearmanr(said, true).statistic, abs=1e-4)
        assert one.loss == pytest.approx(one.also["rmse"] ** 2, rel=1e-4)


def test_an_evaluation_while_training_has_the_same_metric(numbers, tmp_path):
    args = TrainingArguments(
        str(tmp_path), max_steps=2, eval_strategy="steps", eval_steps=1, use_cpu=True, report_to=[]
    )
    model = numbers.model()
    trainer = train(model, numbers, numbers.train, numbers.validation, args)
    after = evaluate(model, Batches(numbers.validation, numbers.collator, 2), numbers).metric
    assert trainer.state.log_history[-2]["eval_spearman"] == pytest.approx(after, abs=1e-6)


def test_the_legs_of_a_race_end_with_the_metric_of_all_rows(numbers):
    from peft import get_peft_model

    from glora_search.space import SearchSpace
    from glora_search.supernet import SupernetConfig

    model = numbers.model()
    space = SearchSpace.load("glora").bind(model, numbers.modules_to_save)
    supernet = get_peft_model(model, SupernetConfig(space=space, task_type="SEQ_CLS"))
    evaluator = SubnetEvaluator(supernet, numbers.train, numbers, batch_size=2)
    legs = list(evaluator.legs(space.smallest))
    assert [round(leg.share, 1) for leg in legs] == [0.1, 0.2, 0.5, 1.0]
    assert legs[-1].metric == pytest.approx(evaluator(space.smallest).metric, abs=1e-6)


def test_whole_numbers_are_no_classes(task, make):
    made = task("bert", "text-regression", [{**row, "label": index - 100} for index, row in enumerate(make.rows(24))])
    batch = made.collator([made.train[0], made.train[1]])
    assert batch["labels"].is_floating_point()
    logits = made.model()(**batch).logits
    assert Answers.of(made.model(), logits, batch["labels"]).kind == "numbers"
    with pytest.raises(UserError, match="these logits cannot be learned from"):
        Answers.of(made.model(), logits, batch["labels"].long())
