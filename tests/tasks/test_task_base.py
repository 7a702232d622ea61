"""What every task is."""

from __future__ import annotations

import pytest

from glora_search.errors import UserError
from glora_search.recipe.schema import Recipe
from glora_search.tasks import MODULES, Task, task_class
from glora_search.tasks.text_classification import TextClassification


def test_every_task_of_a_recipe_has_a_class_that_says_what_is_better():
    directions = {name: task_class(name).direction for name in MODULES}
    assert directions == {
        "text-classification": "maximize",
        "text-regression": "maximize",
        "multi-label": "maximize",
        "token-classification": "maximize",
        "causal-lm": "minimize",
        "seq2seq-lm": "minimize",
        "image-classification": "maximize",
    }


@pytest.mark.parametrize("name", MODULES)
def test_the_line_that_uses_a_merged_model_is_python_without_double_quotes(name):
    line = task_class(name).usage("runs/x/merged")
    compile(line, "usage", "exec")
    assert '"' not in line
    assert "runs/x/merged" in line


@pytest.mark.parametrize("name", ["text-classification", "seq2seq-lm"])
def test_the_line_has_any_folder_and_what_loading_needs(name):
    line = task_class(name).usage("it's/merged", trust_remote_code=True)
    compile(line, "usage", "exec")
    assert "it\\x27s/merged', trust_remote_code=True)" in line


class Backwards(TextClassification):
    """A task of one's own: the words in reverse."""

    def encode(self, rows):
        """Turn the texts round before they are tokens."""
        column = self.column("text_column")
        return super().encode(rows.map(lambda row: {column: " ".join(row[column].split()[::-1])}))


def test_a_task_of_ones_own_is_found_by_its_import_path(task, make, monkeypatch):
    import sys
    import types

    module = types.ModuleType("my_tasks")
    module.Backwards = Backwards
    module.NoTask = dict
    monkeypatch.setitem(sys.modules, "my_tasks", module)
    mine = task("bert", "my_tasks.Backwards", make.rows())
    plain = task("bert", "text-classification", make.rows())
    assert mine.train["input_ids"][0][1:-1] == plain.train["input_ids"][0][1:-1][::-1]
    for wrong in ("my_tasks.NoTask", "my_tasks.Missing"):
        with pytest.raises(UserError, match=r"task\.type.*text-classification.*import path"):
            task("bert", wrong, make.rows())


@pytest.mark.parametrize(
    ("type_", "data", "options", "words"),
    [
        (
            "text-classification",
            {"image_column": "x"},
            {},
            ["data.image_column", "'x'", "nothing", "data.label_column"],
        ),
        ("text-classification", {}, {"prompt": "{text}"}, ["task.prompt", "nothing"]),
        ("causal-lm", {"text_pair_column": "x"}, {}, ["data.text_pair_column", "nothing"]),
        ("causal-lm", {}, {"prompt": "{text}:"}, ["data.response_column", "None"]),
        ("causal-lm", {"response_column": "label"}, {"prompt": "{label}"}, ["data.response_column", "another column"]),
        ("seq2seq-lm", {}, {}, ["data.response_column", "None"]),
        (
            "causal-lm",
            {"response_column": "label"},
            {"prompt": "{nothing}"},
            ["task.prompt", "'nothing'", "text, label"],
        ),
    ],
)
def test_a_key_that_a_task_does_not_read_and_one_that_it_lacks_are_named(task, make, type_, data, options, words):
    with pytest.raises(UserError) as error:
        task("bert" if "lm" not in type_ else "llama", type_, make.rows(), data, **options)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("prompt", ["no column", "{}", "{a.b}", "{a!r}", "{a:>9}", "{a", []])
def test_a_prompt_that_names_no_columns_is_refused(recipe, prompt):
    data = recipe("x", {"source": "csv", "train": "x.csv"}, type="causal-lm", prompt=[prompt] if prompt else prompt)
    if prompt:
        with pytest.raises(ValueError, match=r"prompt.*names of columns in braces"):
            Recipe.model_validate(data)
    else:
        assert Recipe.model_validate(data).task.prompts == []


def test_tasks_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Task(None)  # type: ignore[abstract]
