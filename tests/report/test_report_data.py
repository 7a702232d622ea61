"""What is read from a run folder."""

from __future__ import annotations

import pytest

from glora_search.report.data import is_lower_better, read_run
from glora_search.run.folder import RunFolder
from glora_search.vocabulary import LayerPaths


def test_a_new_run_has_its_recipe_and_nothing_else(make_run):
    data = read_run(make_run(None).view)
    assert data.trials.empty
    assert data.history.empty
    assert data.layers == {}
    assert data.seconds == {}
    assert data.metrics["name"] == "made-up"
    assert not {"search", "final", "merged"} & set(data.metrics)
    assert set(data.files) == {"recipe.yaml", "space.yaml", "environment.json"}


def test_a_search_that_goes_on_is_read_from_its_journal(make_run):
    data = read_run(make_run("searching", trials=20).view)
    assert len(data.trials) == 20
    assert data.metrics["metric"] == "accuracy"
    assert data.genes.shape == (20, 24)
    best = data.trials.loc[data.trials["user_attrs_loss"].idxmin()]
    assert best["rank"] == 0
    first = next(iter(data.layers.values()))
    assert isinstance(first, LayerPaths)
    assert best["params_model.layers.0.attn.q_proj.A_B"] == first.A


def test_a_report_changes_nothing_of_a_search_that_goes_on(make_run):
    folder = make_run("searching", trials=5).folder / "search"
    with (folder / "journal.log").open("ab") as journal:
        journal.write(b'{"op_code": 4')  # a line that its writer has not ended yet
    (folder / "journal.log.lock").unlink(missing_ok=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(read_run(RunFolder(folder.parent)).trials) == 5
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_finished_search_is_the_same_from_its_table_as_from_its_journal(make_run):
    run = make_run("search", trials=20)
    finished = read_run(run.view)
    (run.folder / "search" / "stage.json").unlink()
    going_on = read_run(run.view)
    assert finished.trials["rank"].tolist() == going_on.trials["rank"].tolist()
    assert finished.genes.equals(going_on.genes)
    assert finished.layers == going_on.layers


@pytest.mark.parametrize(
    ("score", "column", "ascending"), [("loss", "user_attrs_loss", True), ("metric", "value", False)]
)
def test_trials_are_ranked_by_what_the_search_goes_by(make_run, score, column, ascending):
    data = read_run(make_run("search", score=score, trials=20).view)
    ranked = data.trials.sort_values("rank")[column].tolist()
    assert ranked == sorted(ranked, reverse=not ascending)
    best = data.trials[data.trials["rank"] == 0].iloc[0]
    assert best["value"] == data.metrics["search"]["best"]["validation"]


def test_failed_and_partial_trials_are_left_out(make_run):
    run = make_run("search", trials=20)
    table = run.folder / "search" / "trials.csv"
    lines = table.read_text().splitlines()
    lines[3], lines[5] = (lines[n].replace("COMPLETE", state) for n, state in ((3, "FAIL"), (5, "PRUNED")))
    table.write_text("\n".join(lines) + "\n")
    data = read_run(run.view)
    assert len(data.trials) == 18
    assert sorted(data.trials["rank"]) == list(range(18))


def test_before_the_test_the_stages_tell_the_figures(make_run):
    data = read_run(make_run("retrained", trials=5).view)
    assert data.metrics["final"]["source"] == "retrained"
    assert data.metrics["final"]["validation"] == 0.9
    assert "merged" not in data.metrics
    assert list(data.seconds) == ["train-supernet", "search", "export", "retrain"]


def test_the_direction_is_that_of_metrics_json(make_run, change_metrics):
    run = make_run("test", trials=20, score="metric")
    assert not is_lower_better(read_run(run.view).metrics)
    change_metrics(run, direction="minimize")
    data = read_run(run.view)
    assert is_lower_better(data.metrics)
    assert data.trials.loc[data.trials["rank"].idxmin(), "value"] == data.trials["value"].min()
