"""The whole thing in one call, on a model and rows of the caller's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import TaskType, get_peft_model
from transformers import (
    BertForTokenClassification,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

from glora_search import GLoraConfig, SearchSpace, SupernetTrainer, find_adapter
from glora_search.errors import UserError
from glora_search.scoring import RowMetric, evaluate
from glora_search.search import best_trial

pytestmark = pytest.mark.slow


BUDGET = 400


def rows(count, seed):
    """The first token tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size=count)
    ids = np.concatenate([5 + labels[:, None], rng.integers(10, 50, size=(count, 5))], axis=1)
    return Dataset.from_dict(
        {"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist(), "labels": labels.tolist()}
    )


def accuracy(logits, labels):
    return logits.argmax(-1) == labels


@pytest.fixture
def find(make_model, tmp_path):
    """``find(**options)``: what was found for a tiny BERT, or another model."""

    def arguments(**settings):
        quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        return TrainingArguments(str(tmp_path / "out"), **{**quiet, "learning_rate": 1e-2, **settings})

    def call(retrain=None, epochs=2, model="bert", training=None, **options):
        return find_adapter(
            make_model(model),
            options.pop("train", rows(64, 0)),
            options.pop("validation", rows(40, 1)),
            task_type="SEQ_CLS",
            args=arguments(num_train_epochs=epochs, **(training or {})),
            retrain_args=None if retrain is None else arguments(**retrain),
            **{"metric": accuracy, "space": "glora-ranks", "max_params": BUDGET, "trials": 8, **options},
        )

    return call


def test_the_found_subnet_keeps_the_budget_and_scores_as_the_search_says(find, make_model, weights):
    found = find()
    assert isinstance(found.config, GLoraConfig)
    assert 0 < found.params <= BUDGET
    trials = found.study.get_trials(deepcopy=False)
    assert len(trials) == 8
    best = min(trials, key=lambda trial: trial.value)
    assert best.params == found.genome
    assert found.inherited == found.evaluation
    assert found.inherited.loss == pytest.approx(best.value, abs=1e-5)
    assert found.inherited.metric == best.user_attrs["metric"]
    head = found.model.base_model.model.classifier.modules_to_save["default"]
    trained = sum(p.numel() for p in found.model.parameters() if p.requires_grad)
    assert trained == found.params + sum(p.numel() for p in head.parameters())
    untouched = weights(make_model("bert"))
    for name, value in weights(found.model).items():
        assert name.startswith("classifier") or torch.equal(value, untouched[name])


@pytest.mark.parametrize("model", ["bert", "roberta"])  # a head of one layer, and of several
def test_it_is_saved_and_merged_as_any_adapter(find, make_model, logits, tmp_path, model):
    from peft import PeftModel

    found = find(model=model)
    found.model.save_pretrained(tmp_path / "adapter")
    expected = logits(found.model)
    again = PeftModel.from_pretrained(make_model(model), tmp_path / "adapter")
    torch.testing.assert_close(logits(again), expected)
    merged = found.model.merge_and_unload()
    assert type(merged) is type(make_model(model))
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task_type", ["TOKEN_CLS", TaskType.TOKEN_CLS])
def test_a_head_that_only_peft_knows_is_trained_in_float32(tmp_path, make_model, task_type):
    model = BertForTokenClassification(make_model("bert").config).bfloat16()
    tags = rows(16, 0).map(lambda row: {"labels": [row["labels"]] * len(row["input_ids"])})
    found = find_adapter(
        model,
        tags,
        tags,
        task_type=task_type,
        metric=lambda logits, labels: (logits.argmax(-1) == labels).float().mean(-1),
        args=TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_strategy="no"),
        space="glora-ranks",
        trials=2,
    )
    head = found.model.base_model.model.classifier.modules_to_save["default"]
    assert head.weight.dtype == torch.float32
    assert {p.dtype for p in found.model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(("saved", "trained"), [(None, True), ([], False)])
def test_the_head_of_an_image_classifier_is_trained_unless_that_is_refused(tmp_path, saved, trained):
    pixels = np.random.default_rng(0).normal(size=(16, 3, 16, 16))
    images = Dataset.from_dict({"pixel_values": pixels, "labels": [0, 1] * 8}).with_format("torch")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=2))
    drawn = model.classifier.weight.detach().clone()
    found = find_adapter(
        model,
        images,
        images,
        task_type=None,
        metric=accuracy,
        args=TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_strategy="no"),
        modules_to_save=saved,
        trials=2,
    )
    heads = [name for name, own in found.model.named_parameters() if own.requires_grad and "classifier" in name]
    assert bool(heads) == trained
    assert torch.equal(found.model.merge_and_unload().classifier.weight, drawn) != trained


def test_training_on_betters_it(find):
    found = find(retrain={"num_train_epochs": 12})
    assert found.evaluation.metric > found.inherited.metric


def test_a_lower_metric_is_better_where_that_is_said(find):
    def mistakes(logits, labels):
        return logits.argmax(-1) != labels

    found = find(metric=mistakes, direction="minimize", score="metric", retrain={"num_train_epochs": 12})
    assert found.study.best_value == min(trial.value for trial in found.study.trials)
    assert found.evaluation.metric < found.inherited.metric


def test_where_training_on_is_worse_the_inherited_weights_are_kept(find):
    found = find(epochs=12, retrain={"max_steps": 8, "learning_rate": 10.0})
    assert found.evaluation == found.inherited
    batch = {name: torch.tensor(values[:]) for name, values in rows(40, 1).to_dict().items()}
    assert evaluate(found.model, [batch], RowMetric(accuracy)).loss == pytest.approx(found.inherited.loss, abs=1e-5)


DIVERGING = {"max_steps": 4, "learning_rate": 1e37, "optim": "sgd", "max_grad_norm": 0.0}


def test_where_training_on_diverges_that_is_said_and_the_inherited_weights_are_kept(find):
    with pytest.warns(UserWarning, match=r"diverged.*Lower retrain_args\.learning_rate, 1e\+37"):
        found = find(retrain=DIVERGING)
    assert found.evaluation == found.inherited
    assert all(bool(torch.isfinite(parameter).all()) for parameter in found.model.parameters())


def test_a_supernet_that_diverges_is_refused(find):
    with pytest.raises(UserError, match=r"args\.learning_rate: got 1e\+37; .*the supernet has diverged"):
        find(training=DIVERGING)


def test_the_same_seed_finds_the_same(find):
    first, second = find(), find()
    assert first.genome == second.genome
    assert first.evaluation == second.evaluation


def test_a_bound_space_and_options_of_the_search_are_taken(find, make_model, tmp_path):
    bound = SearchSpace.load("lora-ranks").bind(make_model("bert"))
    journal = tmp_path / "journal.log"
    found = find(space=bound, sampler="random", score="metric", storage=journal, seed=1)
    assert {paths.A for paths in bound.layer_paths(found.genome).values()} == {"none"}
    assert found.study.best_value == found.evaluation.metric
    assert journal.is_file()


def test_a_budget_below_the_cheapest_subnet_is_refused_before_any_training(find):
    space = SearchSpace(paths={"B": ["lora"]}, ranks=[2])
    with pytest.raises(UserError, match="cheapest"):
        find(space=space, max_params=5)


def test_with_calibration_what_is_returned_is_what_was_scored(find):
    found = find(calibration_steps=4)
    assert best_trial(found.study).user_attrs["loss"] == pytest.approx(found.inherited.loss, rel=1e-5)


def test_a_wrong_number_of_calibration_steps_is_refused_before_the_training(find, monkeypatch):
    monkeypatch.setattr(SupernetTrainer, "train", lambda *args, **kwargs: pytest.fail("trained"))
    with pytest.raises(UserError, match="calibration_steps"):
        find(calibration_steps=-1)


def test_trials_of_another_supernet_in_the_same_storage_are_refused(find, tmp_path):
    journal = tmp_path / "journal.log"
    first = find(storage=journal)
    assert find(storage=journal).genome == first.genome  # the same supernet again
    with pytest.raises(UserError, match="weights"):
        find(storage=journal, epochs=3)


def test_trials_that_were_scored_otherwise_are_refused(find, tmp_path):
    journal = tmp_path / "journal.log"
    find(storage=journal)
    with pytest.raises(UserError, match="weights"):
        find(storage=journal, calibration_steps=2)
    with pytest.raises(UserError, match="weights"):
        find(storage=journal, validation=rows(40, 7))
    with pytest.raises(UserError, match="weights"):
        find(storage=journal, metric=lambda logits, labels: ~accuracy(logits, labels))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "evolutoin"}, "search.sampler"),
        ({"options": {"populaton": 3}}, "search.options"),
        ({"sampling": "best"}, "supernet.sampling"),
        ({"objective": "front"}, "objective front"),
        ({"score": "accuracy", "trials": 0}, r"(?s)search\.trials: got 0.*search\.score"),
        ({"batch_size": 0}, "batch_size: got 0; allowed: an int >= 1"),
        ({"storage": "sqlit:///x"}, "storage"),
        ({"patience": 2}, "patience: got 2; allowed: None"),
    ],
)
def test_a_wrong_option_is_refused_before_the_training(find, monkeypatch, options, words):
    monkeypatch.setattr(SupernetTrainer, "train", lambda *args, **kwargs: pytest.fail("trained"))
    with pytest.raises(UserError, match=words):
        find(**options)


def test_a_subnet_with_nothing_to_train_is_returned_as_it_is(find):
    found = find(retrain={"num_train_epochs": 1}, max_params=0)
    assert found.params == 0


RACE = {"subnets": 1, "rates": [1, 4], "teacher": 2}


@pytest.mark.parametrize(
    ("model", "own"), [("bert", {}), ("roberta", {"methods": ["lora"], "rates": [1]})], ids=["bert", "roberta"]
)
def test_a_search_ends_in_a_race(find, make_model, logits, weights, tmp_path, model, own):
    from peft import PeftModel

    found = find(model=model, retrain={"num_train_epochs": 4}, finals={**RACE, **own})
    names = [row["name"] for row in found.finals]
    assert len(names) == len(set(names))
    assert found.baseline in names
    assert any(name.startswith("subnet 1") and name.endswith(" + teacher") for name in names)
    assert "teacher" not in found.baseline
    lowest = min((row for row in found.finals if row["steps"] == 32), key=lambda row: row["validation_loss"])["name"]
    assert lowest == (found.passed_over or found.finals[0])["name"]
    assert found.evaluation.loss == pytest.approx(found.finals[0]["validation_loss"], abs=1e-5)
    assert found.params == found.finals[0]["params"] <= BUDGET
    assert found.config.modules_to_save == ["classifier", "score"]
    untouched = weights(make_model(model))
    for name, value in weights(found.model).items():
        assert name.startswith("classifier") or torch.equal(value, untouched[name])
    assert not list((tmp_path / "out").glob("finals-*"))
    found.model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(make_model(model), tmp_path / "adapter")
    torch.testing.assert_close(logits(again), logits(found.model))


@pytest.mark.parametrize(
    "own",
    [
        {"eval_on_start": True, "learning_rate": 5.0},  # training makes it worse
        {"eval_delay": 100},
        {"prediction_loss_only": True},
        {"save_only_model": True},
        {"batch_eval_metrics": True},
        {"eval_do_concat_batches": False},
    ],
    ids=lambda own: next(iter(own)),
)
def test_what_a_race_evaluates_and_saves_is_not_the_callers_to_say(find, own):
    retrain = {"num_train_epochs": 2, "per_device_train_batch_size": 16, **own}
    finals = {"subnets": 0, "teacher": 0, "methods": ["lora"], "rates": [1]}
    found = find(trials=1, epochs=1, retrain=retrain, finals=finals)
    assert len(found.finals) == 1
    assert found.evaluation.loss == pytest.approx(found.finals[0]["validation_loss"], abs=1e-5)


def test_every_training_of_a_race_begins_as_a_fresh_one(find, make_model, monkeypatch):
    from glora_search.finals import contest

    began, untouched = [], {name: value.clone() for name, value in make_model("bert").state_dict().items()}
    original = contest.train_to

    def spy(step, fresh, *args, **options):
        model = fresh()
        heads = dict(model.base_model.model.classifier.modules_to_save["default"].named_parameters())
        began.append({name: value.detach().clone() for name, value in heads.items()})
        return original(step, lambda: model, *args, **options)

    monkeypatch.setattr(contest, "train_to", spy)
    find(retrain={"num_train_epochs": 4}, finals={**RACE, "subnets": 0, "teacher": 0})
    assert len(began) > 4
    assert all(torch.equal(head["weight"], untouched["classifier.weight"]) for head in began)


@pytest.mark.parametrize(
    ("retrain", "finals", "words"),
    [
        (None, {}, ["retrain_args", "with finals"]),
        ({}, {"subnet": 1}, ["finals: subnet", "subnets"]),
        ({}, {"teacher": -1}, ["finals: teacher", "-1"]),
        ({}, {"training": {}}, ["finals.training", "retrain_args"]),
        ({"eval_strategy": "epoch", "metric_for_best_model": "f1"}, None, ["metric_for_best_model", "loss or metric"]),
    ],
)
def test_wrong_settings_of_what_follows_the_search_are_refused_before_the_training(
    find, monkeypatch, retrain, finals, words
):
    monkeypatch.setattr(SupernetTrainer, "train", lambda *args, **kwargs: pytest.fail("trained"))
    with pytest.raises(UserError) as error:
        find(retrain=retrain, finals=finals)
    for word in words:
        assert word in str(error.value)


def test_a_budget_with_which_nobody_can_race_is_refused_before_the_training(find, monkeypatch):
    monkeypatch.setattr(SupernetTrainer, "train", lambda *args, **kwargs: pytest.fail("trained"))
    with pytest.raises(UserError, match=r"max_params: got 0; .*a subnet or a method can train"):
        find(retrain={}, finals={}, max_params=0)


def test_rows_are_taken_as_trainer_takes_them_with_options_in_their_batches(find):
    def collate(some):
        return {**default_data_collator(some), "return_dict": True}

    found = find(validation=rows(40, 1).add_column("text", ["a text"] * 40), data_collator=collate, trials=2)
    assert found.evaluation.metric > 0.3


def test_rows_that_cannot_be_scored_are_refused_before_the_training(find, monkeypatch):
    monkeypatch.setattr(SupernetTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(UserError, match=r"validation: got 'input_ids.*'; allowed: .*`labels`"):
        find(validation=rows(40, 1).remove_columns("labels"))


@pytest.mark.parametrize(
    ("metric", "given"),
    [
        (lambda logits, labels: logits > 0, r"a tensor \[2, 3\]"),
        (lambda logits, labels: logits[:, :1] - labels, r"a tensor \[2, 2\]"),
        (lambda logits, labels: accuracy(logits, labels).float().mean(), r"a tensor \[\]"),
        (lambda logits, labels: accuracy(logits, labels).numpy(), "ndarray"),
    ],
)
def test_a_metric_without_a_value_for_each_row_is_refused_before_the_training(find, monkeypatch, metric, given):
    monkeypatch.setattr(SupernetTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(UserError, match=rf"metric: got '{given}'; allowed: a tensor \[rows\].*one value a row"):
        find(metric=metric)


@pytest.mark.parametrize("plain", [False, True])
def test_a_model_that_has_adapters_already_is_refused(make_model, plain):
    """As the model is that an earlier search was given."""
    base = make_model("bert")
    adapted = get_peft_model(base, GLoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    with pytest.raises(UserError, match=r"model: got '.*'; allowed: one without adapters, .*load it anew"):
        find_adapter(
            base if plain else adapted, rows(8, 0), rows(8, 1), task_type="SEQ_CLS", metric=accuracy, args=None
        )


def test_a_transform_is_refused_where_finalists_are_taught(find, monkeypatch):
    monkeypatch.setattr(SupernetTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    train = rows(64, 0).with_transform(lambda batch: batch)
    with pytest.raises(UserError, match=r"train: got 'a data set with a transform'.*without a teacher"):
        find(train=train, retrain={}, finals={})


def test_a_race_in_which_all_diverge_is_refused(find):
    with pytest.raises(UserError, match=r"retrain_args\.learning_rate.*every finalist has diverged"):
        find(retrain={"learning_rate": 1e30, "max_grad_norm": 0.0, "num_train_epochs": 1}, finals=RACE)
