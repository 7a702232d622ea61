from __future__ import annotations

import os

import pytest
from pydantic import BaseModel, ConfigDict

from glora_search.errors import UserError
from glora_search.files.checked import validate
from glora_search.files.shipped import find_shipped, shipped_folder
from glora_search.files.text import load_yaml, read_json, write_json
from glora_search.recipe.schema import Recipe


@pytest.mark.parametrize("name", ["glora", "glora.yaml", "search_spaces/glora", "search_spaces/glora.yaml"])
def test_a_shipped_file_is_found_by_its_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_shipped("search_spaces", name, key="space") == shipped_folder("search_spaces") / "glora.yaml"


def test_a_file_of_ones_own_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glora.yaml").write_text("{}")
    found = find_shipped("search_spaces", "glora.yaml", key="space")
    assert found.resolve() == (tmp_path / "glora.yaml").resolve()


def test_a_file_in_another_folder_is_not_taken_for_a_shipped_one():
    with pytest.raises(UserError, match=r"^space: got 'elsewhere/glora.yaml'; allowed: .*glora-paper"):
        find_shipped("search_spaces", "elsewhere/glora.yaml", key="space")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not valid YAML"),
        (b"\xff\xfe", "not valid YAML"),
        (b"- 1\n- 2\n", r"got \[1, 2\]; allowed: a mapping"),
        (b"", "got None; allowed: a mapping"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_its_name(content, message, tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_yaml(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.yaml: cannot be read \(No such file or directory\)"):
        load_yaml(tmp_path / "nothing.yaml")


def test_json_comes_back_as_it_was_written(tmp_path):
    file = tmp_path / "new" / "folder" / "data.json"
    write_json(file, {"a": [1, 2.5, None], "b": "ä"})
    assert read_json(file) == {"a": [1, 2.5, None], "b": "ä"}
    assert os.listdir(file.parent) == ["data.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "data.json"
    write_json(file, {"old": True})

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_json(file, {"old": False})
    assert read_json(file) == {"old": True}


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    inner: Inner = Inner()


def test_every_wrong_key_of_a_file_is_named_in_a_line_of_its_own():
    with pytest.raises(UserError) as error:
        validate(Outer, {"inner": {"size": "big", "sise": 2}}, source="my.yaml")
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("my.yaml: ") for line in lines)
    for parts in (["name", "missing"], ["inner.size", "'big'", "integer"], ["inner.sise", "2", "size"]):
        assert any(all(part in line for part in parts) for line in lines)


def test_data_that_fits_is_returned_checked():
    assert validate(Outer, {"name": "x", "inner": {"size": 3}}, source="my.yaml").inner.size == 3


def test_a_value_where_a_section_belongs_is_told_that_and_no_name_of_a_class():
    with pytest.raises(UserError, match=r"^file: inner: got 3; allowed: a mapping of keys to values$"):
        validate(Outer, {"name": "a", "inner": 3}, source="file")


def test_a_value_where_a_list_belongs_is_shown_as_one():
    given = {"name": "a", "task": {"model": "m"}, "data": {"source": "csv", "train": "t"}, "space": "glora"}
    with pytest.raises(UserError, match=r"finals\.methods: got 'lora'; allowed: a list, such as \[lora\]$"):
        validate(Recipe, {**given, "finals": {"methods": "lora"}}, source="file")


def test_in_place_of_a_run_folder_its_recipe_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: a")
    with pytest.raises(UserError, match=r"a YAML file; the run folder's is .*recipe\.yaml$"):
        find_shipped("experiments", tmp_path, key="RECIPE")
