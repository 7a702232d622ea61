from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from glora_search.compat import get_pattern_key
from glora_search.errors import UserError
from glora_search.files.shipped import shipped_folder
from glora_search.space.schema import SearchSpace

SHIPPED = sorted(file.stem for file in shipped_folder("search_spaces").glob("*.yaml"))


def test_an_override_of_one_path_of_a_tied_pair_leaves_the_others_kinds(bind):
    space = SearchSpace(
        paths={"A_B": ["lora", "none"], "D_E": ["vector", "none"]},
        overrides={"query": {"paths": {"A": ["vector"], "E": ["none"]}}},
    )
    paths, ranks = space.choices_for("layer.0.query")
    assert paths == {"A": ["vector"], "B": ["lora", "none"], "D": ["vector", "none"], "E": ["none"]}
    assert ranks == [4]
    assert space.choices_for("layer.0.key") == (space.paths, [4])


def test_an_overrides_exact_name_comes_before_its_patterns():
    space = SearchSpace(paths={"B": ["lora"]}, overrides={"query": {"ranks": [1]}, "layer.0.query": {"ranks": [2]}})
    assert space.choices_for("layer.0.query")[1] == [2]
    assert space.choices_for("layer.1.query")[1] == [1]
    assert space.choices_for("layer.1.value")[1] == [4]


@given(
    patterns=st.lists(st.sampled_from(["q", "a.q", r"a\.q", r"\d+\.q", "q|k", ".*k", "layer.0.q"]), unique=True),
    name=st.sampled_from(["q", "a.q", "a_q", "layer.0.q", "layer.10.q", "layer.0.k", "ak", "v"]),
)
def test_an_override_matches_as_pefts_rank_pattern_does(patterns, name):
    space = SearchSpace(paths={"B": ["lora"]}, overrides={p: {"ranks": [n + 1]} for n, p in enumerate(patterns)})
    key = name if name in patterns else get_pattern_key(patterns, name)
    assert space.choices_for(name)[1] == ([patterns.index(key) + 1] if key in patterns else [4])


READ = """
import importlib, pkgutil, sys
sys.orig_argv[1:3] = ["-m", "glora_search"]  # else the package imports its methods, for peft to know of
import glora_search.errors, glora_search.files, glora_search.vocabulary
for module in pkgutil.iter_modules(glora_search.files.__path__, "glora_search.files."):
    importlib.import_module(module.name)
from glora_search.space import BoundSpace
from glora_search.space.schema import SearchSpace
print(SearchSpace.load("glora").layer().genes[0].choices)
space = SearchSpace.load(sys.argv[1])
layers = [space.layer("a.query"), space.layer("a.key")]
print([layer.ranks for layer in layers], BoundSpace(layers).largest)
print("heavy:", sorted({"torch", "transformers", "peft", "datasets", "optuna"} & {*sys.modules}))
"""


def test_a_space_is_read_without_torch(tmp_path):
    space = {"paths": {"B": ["lora", "none"]}, "overrides": {"query": {"ranks": [1]}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(space))
    command = [sys.executable, "-c", READ, str(tmp_path / "mine.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["[[1], [4]] {'a.query.B': 'lora', 'a.key.B': 'lora'}", "heavy: []"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"paths": {"F": ["lora"]}}, ["paths", "'F'", "'A_B', 'D_E', 'A', 'B', 'C', 'D', 'E'"]),
        ({"paths": {"C": ["constant"]}}, ["paths.C", "'constant'", "'lora', 'vector', 'none'"]),
        ({"paths": {"A": []}}, ["paths.A", "[]", "at least one kind"]),
        ({"paths": {}}, ["paths", "{}", "at least one path"]),
        ({"ranks": [4]}, ["paths", "missing"]),
        ({"paths": {"B": ["lora"]}, "ranks": [4, -1]}, ["ranks", "[4, -1]", "ints >= 0"]),
        ({"paths": {"B": ["lora"]}, "ranks": []}, ["ranks", "[]", "ints >= 0"]),
        ({"paths": {"B": ["lora"]}, "ranks": ["many"]}, ["ranks", "'many'", "integer"]),
        ({"paths": {"B": ["lora"]}, "ranks": [2.5]}, ["ranks", "2.5", "integer"]),
        ({"paths": {"A_B": ["lora"], "B": ["none"]}}, ["paths", "'A_B'", "either A_B (tied) or A and B (free)"]),
        ({"paths": {"D": ["vector"], "D_E": ["none"]}}, ["paths", "'D_E'", "either D_E (tied) or D and E (free)"]),
        ({"paths": {"B": ["lora"]}, "rank": [4]}, ["rank", "[4]", "ranks"]),
        (
            {"paths": {"B": ["lora"]}, "overrides": {"query": {"paths": {"D": ["lora"]}}}},
            ["overrides.query.paths.D", "'lora'", "'vector', 'constant', 'none'"],
        ),
        (
            {"paths": {"B": ["lora"]}, "overrides": {"query": {"targets": ["x"]}}},
            ["overrides.query.targets", "['x']", "paths, ranks"],
        ),
        ([1, 2], ["[1, 2]", "a mapping"]),
    ],
)
def test_a_wrong_space_file_is_refused_with_file_key_value_and_what_is_allowed(content, parts, tmp_path):
    file = Path(tmp_path) / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as error:
        SearchSpace.load(file)
    assert str(error.value).startswith(f"{file}: ")
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "search_spaces/nowhere.yaml", "/nowhere/glora.yaml"])
def test_a_missing_space_file_is_refused_with_the_shipped_names(name):
    with pytest.raises(UserError) as error:
        SearchSpace.load(name)
    assert repr(name) in str(error.value)
    assert ", ".join(SHIPPED) in str(error.value)


def test_a_shipped_space_loads_by_its_name_and_by_its_path():
    assert SearchSpace.load("glora") == SearchSpace.load("search_spaces/glora.yaml")
    assert SearchSpace.load("glora").name == "glora"


def test_a_file_of_ones_own_is_called_after_its_file_unless_it_has_a_name(tmp_path):
    for content, name in (({}, "mine"), ({"name": "other"}, "other")):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"paths": {"B": ["LoRA", "none"]}, **content}))
        space = SearchSpace.load(tmp_path / "mine.yaml")
        assert space.name == name
        assert space.paths == {"B": ["lora", "none"]}
