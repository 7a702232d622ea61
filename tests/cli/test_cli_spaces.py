"""``spaces``: the list, and one space with and without a model."""

from __future__ import annotations

import json

import pytest

from glora_search.files.shipped import shipped_folder
from glora_search.space.schema import SearchSpace


def test_the_list_has_every_shipped_space_with_its_genes_and_choices(call):
    code, out, _ = call("spaces", "list", "--json")
    assert code == 0
    found = {row["name"]: row for row in json.loads(out)}
    assert set(found) == {path.stem for path in shipped_folder("search_spaces").glob("*.yaml")}
    assert found["glora"]["choices_per_layer"] == 36
    assert found["glora-paper"]["choices_per_layer"] == 432
    assert found["lora-ranks"]["genes"] == ["r"]
    code, out, _ = call("spaces", "list")
    for row in found.values():
        assert row["name"] in out
        assert f"{row['choices_per_layer']:,}" in out


def test_a_space_is_shown_as_its_file(call):
    code, out, _ = call("spaces", "show", "glora-ranks")
    assert code == 0
    assert out.strip() == (shipped_folder("search_spaces") / "glora-ranks.yaml").read_text().strip()


@pytest.mark.parametrize("name", ["glora", "glora-ranks"])
def test_with_a_model_its_sizes_are_those_of_the_bound_space(call, tiny_model, name):
    from transformers import AutoModelForSequenceClassification

    code, out, _ = call("spaces", "show", name, "--model", tiny_model, "--json")
    assert code == 0
    found = json.loads(out)["model"]
    space = SearchSpace.load(name).bind(AutoModelForSequenceClassification.from_pretrained(tiny_model))
    assert [layer["name"] for layer in found["layers"]] == [layer.name for layer in space.layers]
    assert found["genes"] == len(space.genes)
    assert 10 ** found["log10_genomes"] == pytest.approx(space.count())
    assert found["params"] == {"smallest": space.params(space.smallest), "largest": space.params(space.largest)}
    methods = {method: space.params(genome) for method, genome in space.uniform_methods().items()}
    assert found["uniform_methods"] == methods
    code, out, _ = call("spaces", "show", name, "--model", tiny_model)
    assert f"{space.params(space.largest):,}" in out
    assert f"{len(space.genes)} genes" in out


def test_a_space_of_ones_own_is_shown_too(call, tmp_path):
    (tmp_path / "mine.yaml").write_text("paths: {B: [lora, none]}\n")
    code, out, _ = call("spaces", "show", tmp_path / "mine.yaml", "--json")
    assert code == 0
    assert json.loads(out)["name"] == "mine"
