"""Each chart, from a small made-up run."""

from __future__ import annotations

import pandas as pd
import pytest

from glora_search.report import charts
from glora_search.report.data import read_run


def names(figure):
    return [trace.name for trace in figure.data]


def test_metric_against_parameters_shows_trials_front_models_and_budget(make_run):
    data = read_run(make_run(trials=20).view)
    figure = charts.metric_against_parameters(data)
    assert names(figure) == ["evaluated subnet", "front", "lora r=1 (peft)", "best subnet", "final (retrained)"]
    dots, front, baseline, best, final = figure.data
    assert len(dots.x) == 20
    assert (baseline.x[0], baseline.y[0]) == (320, 0.85)
    assert (final.x[0], final.y[0]) == (300, 0.9)
    assert best.x[0] in dots.x
    assert set(front.x) <= set(dots.x)
    assert len({trace.marker.symbol for trace in figure.data[2:]}) == 3
    assert [shape.x0 for shape in figure.layout.shapes] == [2000]


def test_without_a_budget_there_is_no_line(make_run, change_metrics):
    run = make_run(trials=5)
    change_metrics(run, budget=None)
    assert not charts.metric_against_parameters(read_run(run.view)).layout.shapes


@pytest.mark.parametrize(("lower", "expected"), [(False, [(1, 0.5), (2, 0.7), (4, 0.9)]), (True, [(1, 0.4)])])
def test_the_front_is_what_no_other_beats_in_both(lower, expected):
    points = [(4, 0.9), (1, 0.5), (1, 0.4), (3, 0.6), (2, 0.7), (5, 0.9), (2, 0.7)]
    trials = pd.DataFrame(points, columns=["user_attrs_params", "value"])
    front = charts.pareto_front(trials, lower=lower)
    assert list(front.itertuples(index=False, name=None)) == expected


def test_best_so_far_follows_what_the_search_goes_by(make_run):
    data = read_run(make_run("search", score="loss", trials=30).view)
    trials, line = charts.best_so_far(data, "user_attrs_loss", "loss").data
    assert list(line.y) == pd.Series(trials.y).cummin().tolist()
    dots, line = charts.best_so_far(data, "value", "accuracy").data
    losses = data.trials["user_attrs_loss"]
    assert list(line.y) == [dots.y[losses[: count + 1].idxmin()] for count in range(30)]


def test_importance_is_summed_over_paths_and_layers():
    rows = [(f"model.{layer}.q", path, 0.01 * layer) for layer in range(30) for path in ("A_B", "C", "r")]
    shares = pd.DataFrame(rows, columns=["layer", "path", "share"])
    (bars,) = charts.path_importance(shares).data
    assert list(bars.y) == ["rank", "C", "A and B"]
    assert sum(bars.x) == pytest.approx(shares["share"].sum())
    (bars,) = charts.layer_importance(shares).data
    assert len(bars.y) == charts.TOP_LAYERS
    assert (bars.y[-1], bars.x[-1]) == ("29.q", pytest.approx(0.87))


def test_the_supernets_curves_are_the_training_loss_and_one_for_each_probe(make_run):
    history = read_run(make_run("supernet", probes=[f"p{n}" for n in range(7)]).view).history
    figure = charts.supernet_curves(history)
    assert names(figure)[:2] == ["training, as logged", "training, smoothed"]
    assert names(figure)[2:] == [f"p{n}" for n in range(7)]
    looks = [(trace.line.color, trace.line.dash) for trace in figure.data[2:]]
    assert len(set(looks)) == 7
    assert all(len(trace.x) > 0 and not pd.isna(list(trace.y)).any() for trace in figure.data)


def test_without_probes_the_training_loss_is_alone(make_run):
    assert len(charts.supernet_curves(read_run(make_run("supernet", probes=()).view).history).data) == 2


def test_text_of_the_run_is_no_markup(make_run):
    data = read_run(make_run(trials=5, label="<b>bold</b>").view)
    assert "&lt;b&gt;bold&lt;/b&gt; (peft)" in names(charts.metric_against_parameters(data))
    shares = pd.DataFrame([("<i>x</i>", "C", 1.0)], columns=["layer", "path", "share"])
    assert list(charts.layer_importance(shares).data[0].y) == ["&lt;i&gt;x&lt;/i&gt;"]


def test_names_lose_the_beginning_that_all_share():
    assert charts.short_names(["a.b.0.q", "a.b.1.q"]) == {"a.b.0.q": "0.q", "a.b.1.q": "1.q"}
    assert charts.short_names(["only.one"]) == {"only.one": "only.one"}
