"""Classes of the user's own, by their import path."""

from __future__ import annotations

import sys
from collections import OrderedDict

import pytest

from glora_search.errors import UserError
from glora_search.files.plugins import import_class, options_of


@pytest.mark.parametrize("path", ["collections.OrderedDict", "collections:OrderedDict"])
def test_a_class_is_imported_by_its_path(path):
    assert import_class(path, dict, key="task.type", allowed="a dict") is OrderedDict


def test_modules_of_the_current_folder_are_found_and_the_search_path_stays_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "a_plugin_of_mine.py").write_text("class Mine(dict):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert import_class("a_plugin_of_mine.Mine", dict, key="task.type", allowed="a dict").__name__ == "Mine"
    assert sys.path == before


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("OrderedDict", "No module named 'OrderedDict'"),
        ("collections", ""),
        ("no_such_module.Class", "No module named 'no_such_module'"),
        ("collections.NoSuchClass", "NoSuchClass"),
        ("collections.namedtuple", ""),
        ("collections.Counter.most_common", "most_common"),
        ("json.JSONDecoder", ""),
        (".Class", "relative import"),
        ("json.", ""),
        ("", ""),
    ],
)
def test_what_is_no_such_class_is_refused_with_what_is_allowed_and_why(path, reason):
    with pytest.raises(UserError) as error:
        import_class(path, dict, key="task.type", allowed="the import path of a dict")
    assert str(error.value).startswith(f"task.type: got {path!r}; allowed: the import path of a dict")
    assert reason in str(error.value)


def test_a_module_that_misses_another_says_which(tmp_path, monkeypatch):
    (tmp_path / "a_plugin_without_its_package.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"task\.type: got .*No module named 'a_package_that_is_not_there'"):
        import_class("a_plugin_without_its_package.Mine", dict, key="task.type", allowed="a dict")


def test_the_options_of_a_class_are_its_arguments():
    class Three:
        def __init__(self, space, *, one=1, two=2, **more):
            pass

    assert options_of(Three, without=["space"]) == "one, two, more"
    assert options_of(Three, without=["space", "one", "two", "more"]) == "no options"
