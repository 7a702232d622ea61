"""The head of the base model: kept where it says the same, drawn anew where it does not."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from glora_search.recipe.schema import Recipe
from glora_search.run.runner import Run
from glora_search.tasks import make_task


@pytest.fixture
def headed(tiny, tmp_path):
    """``headed(architecture, auto_class, labels, **config)``: a folder of a model whose head has these labels."""

    def build(architecture, auto_class, labels, **config):
        folder = tmp_path / "headed"
        names = {"id2label": dict(enumerate(labels)), "label2id": {name: n for n, name in enumerate(labels)}}
        made = AutoConfig.from_pretrained(tiny(architecture), num_labels=len(labels), **names, **config)
        torch.manual_seed(5)
        auto_class.from_pretrained(tiny(architecture), config=made).save_pretrained(folder)
        for file in tiny(architecture).iterdir():
            if file.name not in ("config.json", "model.safetensors"):
                (folder / file.name).write_bytes(file.read_bytes())
        return folder

    return build


@pytest.fixture
def over(recipe, make, tmp_path):
    """``over(folder, rows, type)``: a task over a model's folder."""

    def build(folder, rows, type_="text-classification", **columns):
        data = {"source": "json", "train": make.json(tmp_path / "rows.jsonl", rows), **columns}
        return make_task(Recipe.model_validate(recipe(folder, data, type=type_)))

    return build


def head(model):
    return {name: value.clone() for name, value in model.state_dict().items() if name.startswith("classifier")}


@pytest.mark.slow
def test_a_head_of_a_model_in_bfloat16_is_trained_in_float32_from_supernet_to_merged_model(
    tiny, recipe, make, tmp_path
):
    data = {"source": "json", "train": make.json(tmp_path / "rows.jsonl", make.rows(24))}
    made = recipe(tiny("bert"), data, type="text-classification", dtype="bfloat16")
    training = {**made.pop("retrain")["training"], "num_train_epochs": 4}
    made["finals"] = {"subnets": 1, "methods": ["lora"], "rates": [1.0], "teacher": 2, "training": training}
    del made["baselines"]
    run = Run.create(Recipe.model_validate(made), tmp_path / "run")
    metrics = run.all_stages()
    for name in ("supernet", "finals", "finals/baseline"):
        weights = load_file(run.folder / name / "adapter_model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        assert any("classifier" in weight for weight in weights)
    merged = AutoModelForSequenceClassification.from_pretrained(run.folder / "merged")
    assert merged.dtype == torch.bfloat16
    assert metrics["merged"]["validation"] == pytest.approx(metrics["final"]["validation"], abs=0.2)


@pytest.mark.parametrize("labels", [["tech", "sports"], ["TECH", "Sports"], [" tech", "sports "]])
def test_a_head_of_the_same_labels_is_kept_and_gives_their_order(headed, over, make, labels):
    folder = headed("bert", AutoModelForSequenceClassification, labels)
    task = over(folder, make.rows())
    model = task.model()
    assert task.data.labels == ["tech", "sports"]
    assert model.config.id2label == {0: "tech", 1: "sports"}
    torch.testing.assert_close(head(model), head(AutoModelForSequenceClassification.from_pretrained(folder)))


@pytest.mark.parametrize("labels", [["bad", "good"], ["LABEL_0", "LABEL_1"], ["sports", "tech", "food"]])
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_head_of_other_labels_is_drawn_anew_whole_and_with_the_seed(headed, over, make, architecture, labels, capsys):
    folder = headed(architecture, AutoModelForSequenceClassification, labels)
    task = over(folder, make.rows())
    model, again = head(task.model()), head(task.model())
    assert task.data.labels == ["sports", "tech"]
    torch.testing.assert_close(model, again, rtol=0, atol=0)
    given = head(AutoModelForSequenceClassification.from_pretrained(folder))
    drawn = [name for name in model if name.endswith("weight")]
    assert len(drawn) == {"bert": 1, "roberta": 2}[architecture]
    for name in drawn:
        assert model[name].shape != given[name].shape or not torch.allclose(model[name], given[name])
    assert capsys.readouterr().out.count(f"its head has other labels ({', '.join(labels)}, ...)") == 1


def test_what_a_checkpoint_without_a_head_gets_is_drawn_once(tiny, over, make, capsys):
    task = over(tiny("bert"), make.rows())
    model = task.model()
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_pretrained(tiny("bert"), id2label={0: "a", 1: "b"})
    torch.testing.assert_close(head(model), head(plain), rtol=0, atol=0)
    assert "a new head is drawn" not in capsys.readouterr().out


def test_tags_and_images_follow_the_same_contract(headed, over, make, recipe, tmp_path):
    rows = [{"words": [str(n), "x"], "tags": ["O", "B-X"]} for n in range(12)]
    tags = over(
        headed("bert", AutoModelForTokenClassification, ["o", "b-x"]),
        rows,
        "token-classification",
        text_column="words",
        label_column="tags",
    )
    assert tags.data.labels == ["O", "B-X"]
    assert (tags.metric, tags.model().config.label2id) == ("f1", {"O": 0, "B-X": 1})
    folder = headed("vit", AutoModelForImageClassification, ["light", "dark"])
    data = {"source": "imagefolder", "train": make.images(tmp_path / "images", 12)}
    images = make_task(Recipe.model_validate(recipe(folder, data, type="image-classification")))
    assert images.data.labels == ["light", "dark"]


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", "single_label_classification"])
@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("type_", ["text-classification", "text-regression", "multi-label"])
def test_the_task_sets_what_the_head_learns(headed, over, make, problem, size, type_):
    if problem.startswith("single") and size == 1:
        pytest.skip("transformers refuses such a config")
    folder = headed("bert", AutoModelForSequenceClassification, [f"l{n}" for n in range(size)], problem_type=problem)
    values = {"text-regression": [0.5, 1.5], "multi-label": [["a"], ["a", "b"]]}.get(type_, ["a", "b"])
    task = over(folder, [{"text": f"goal {n}", "label": values[n % 2]} for n in range(16)], type_)
    model = task.model()
    assert model.config.problem_type == task.problem_type
    batch = task.collator([task.train[n] for n in range(3)])
    output = model(**batch)
    truth, logits = batch["labels"], output.logits
    expected = {
        "text-classification": lambda: torch.nn.functional.cross_entropy(logits, truth),
        "text-regression": lambda: ((logits[:, 0] - truth) ** 2).mean(),
        "multi-label": lambda: torch.nn.functional.binary_cross_entropy_with_logits(logits, truth),
    }[type_]()
    torch.testing.assert_close(output.loss, expected)
    assert task.tally(logits, truth).shape[0] == 3


def test_a_head_of_one_number_is_kept_for_a_regression(headed, over, make):
    folder = headed("bert", AutoModelForSequenceClassification, ["LABEL_0"], problem_type="regression")
    task = over(
        folder, [{"text": f"goal {n}", "stars": n / 7} for n in range(16)], "text-regression", label_column="stars"
    )
    model = task.model()
    assert model.config.id2label == {0: "stars"}
    torch.testing.assert_close(head(model), head(AutoModelForSequenceClassification.from_pretrained(folder)))
