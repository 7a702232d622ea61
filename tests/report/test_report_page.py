"""The page: what is in it at each stage, and that nothing of a run becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from plotly.offline import get_plotlyjs

from glora_search.files.text import write_json
from glora_search.report import result_rows, write_report
from glora_search.report.page import finalist_rows


class Elements(HTMLParser):
    """Counts elements, and notes the text of the page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self._raw = [], [], "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._raw = False

    def handle_data(self, data):
        self.text += "" if self._raw else data


def page_of(run):
    return write_report(run.folder).read_text(encoding="utf-8").replace(get_plotlyjs(), "")


def ids(elements):
    return {value for name, value in elements.attributes if name == "id"}


def test_a_finished_run_has_every_chart_with_a_caption(make_run, chart_ids):
    run = make_run()
    elements = Elements(page_of(run))
    assert ids(elements) >= chart_ids
    assert elements.tags.count("figcaption") == elements.tags.count("figure") == 5
    assert "To fill this in" not in elements.text
    for words in ("0.8400", "0.8800", "24 test", "python", "max_params: 2000", "train-supernet 61 s"):
        assert words in elements.text


@pytest.mark.parametrize(
    ("until", "drawn", "commands"),
    [
        (None, set(), {"train-supernet", "search"}),
        ("supernet", {"supernet"}, {"search"}),
        ("searching", None, set()),
        ("search", None, set()),
        ("retrained", None, set()),
        ("baselines", None, set()),
    ],
)
def test_what_is_not_there_yet_is_left_out_with_the_command_that_makes_it(make_run, chart_ids, until, drawn, commands):
    run = make_run(until)
    elements = Elements(page_of(run))
    assert ids(elements) & chart_ids == (chart_ids if drawn is None else drawn)
    assert set(re.findall(rf"glora-search (\S+) {run.folder}", elements.text)) == commands
    assert "Not done yet: " in elements.text


def test_few_trials_have_no_importance(make_run, chart_ids):
    elements = Elements(page_of(make_run("search", trials=10)))
    assert ids(elements) & chart_ids == chart_ids - {"importance-paths", "importance-layers"}
    assert "Gene importance needs 50 evaluated subnets: there are 10." in elements.text


def test_a_search_by_the_metric_has_one_progress_chart(make_run):
    elements = Elements(page_of(make_run(score="metric", trials=10)))
    assert "best-metric" in ids(elements)
    assert "best-loss" not in ids(elements)


def test_a_metric_where_lower_is_better_is_said_to_be(make_run, change_metrics):
    run = make_run(trials=10)
    change_metrics(run, metric="perplexity", direction="minimize")
    text = Elements(page_of(run)).text
    assert "perplexity, lower is better" in text
    assert "further down is better" in text


def test_the_heat_map_tells_each_layers_kinds_in_words(make_run):
    run = make_run(trials=10, blocks=112)
    page = page_of(run)
    cells = re.findall(r'<td class="(lora|vector|constant|none)">([^<]*)</td>', page)
    assert len(cells) == 224 * 5
    assert {kind for kind, _ in cells} == {"lora", "vector", "constant", "none"}
    for kind, text in cells:
        assert re.fullmatch({"lora": "r [12]", "constant": "const", "none": "·"}.get(kind, kind), text)
    assert page.count('<tr class="begins">') == 112


def test_nothing_of_a_run_becomes_markup(make_run, change_metrics, chart_ids, evil):
    run = make_run(name=evil, label=evil, probes=[evil])
    change_metrics(run, metric=evil, notes=[evil])
    for path in (run.folder / "search" / "trials.csv", run.folder / "recipe.yaml"):
        path.write_text(path.read_text().replace("random", evil) + f"# {evil}\n" * (path.suffix == ".yaml"))
    page = page_of(run)
    elements = Elements(page)
    assert evil not in page
    assert elements.text.count(evil) >= 5
    assert "img" not in elements.tags
    assert elements.tags.count("script") == 1 + len(chart_ids)
    assert not [name for name, _ in elements.attributes if name.startswith("on")]


def test_every_count_of_rows_that_are_cut_is_on_the_page_once(make_run, change_metrics):
    run = make_run()
    few, many = (f"{count} of 300 rows of data.train are cut at task.max_length" for count in (2, 50))
    change_metrics(run, fit=[few, many], notes=[many])
    text = Elements(page_of(run)).text
    assert (text.count(few), text.count(many), text.count(f"Note: {many}.")) == (1, 1, 1)


def test_the_page_asks_for_nothing_from_outside(make_run):
    page = page_of(make_run())
    assert not re.search(r"(src|href)\s*=|@import|url\(", page)
    assert "default-src 'none'" in page


def test_the_final_table_of_an_unfinished_run_has_what_there_is():
    rows = result_rows({"baselines": [], "search": {"best": {"params": 1234, "validation": 0.5}}})
    assert rows == [("best subnet, inherited weights", "1,234", "0.5000", "-")]


def test_only_a_lora_is_called_pefts():
    names = {"lora": "lora r=1", "LoRA r=1": "LoRA r=1, tuned", "LoRA r=1 and vectors": "LoRA r=1 and vectors, tuned"}
    rows = result_rows({"baselines": [{"method": method, "name": name} for method, name in names.items()]})
    assert [row[0] for row in rows] == [
        *("baseline: lora r=1 (peft)", "baseline: LoRA r=1, tuned (peft)", "baseline: LoRA r=1 and vectors, tuned")
    ]


def test_of_finalists_the_winner_and_the_baseline_have_the_metric_of_answers():
    row = {"params": 9, "steps": 4, "best_step": 2, "validation": 5.5, "validation_loss": 1.7}
    named = {"metrics": [{"name": "exact_match", "direction": "maximize", "rows": {"validation": 4, "test": 4}}]}
    own = {"validation": 5.5, "test": 5.0}
    metrics = {
        **named,
        "final": {"source": "LoRA r=1 + teacher", **own, "metrics": {"exact_match": {"validation": 0.75, "test": 0.5}}},
        "baselines": [
            {"name": "LoRA r=1, tuned", **own, "metrics": {"exact_match": {"validation": 0.5, "test": 0.25}}}
        ],
    }
    finalists = [{"name": name, **row} for name in ("LoRA r=1 + teacher", "LoRA r=1", "(IA)3")]
    teacher = {"by": "supernet", "members": 4, "validation": 6.5, "validation_loss": 1.9}
    data = SimpleNamespace(metrics=metrics, finals={"finalists": finalists, "teacher": teacher})
    assert [shown[-1] for shown in finalist_rows(data)] == ["0.7500", "0.5000", "-", "-"]
    data.metrics = {"baselines": []}
    assert {len(shown) for shown in finalist_rows(data)} == {6}


def test_a_race_has_its_curves_and_a_row_for_each_finalist_and_the_teacher(make_run):
    run = make_run()
    row = {"params": 1000, "steps": 16, "best_step": 8, "validation": 0.9123, "validation_loss": 0.3456}
    finalists = [{"name": name, **row} for name in ("LoRA r=1 + teacher", "LoRA r=1", "<b>BitFit</b>")]
    curves = {"LoRA r=1 + teacher": {"8": 0.3456, "16": 0.4}, "LoRA r=1": {"8": 0.5}}
    write_json(
        run.folder / "finals" / "stage.json",
        {
            **{"winner": "LoRA r=1 + teacher", "params": 1000, "validation": 0.9123, "validation_loss": 0.3456},
            **{"seconds": 3.0, "finalists": finalists, "curves": curves},
            "teacher": {"members": 8, "validation": 0.8111, "validation_loss": 0.4222},
        },
    )
    page = page_of(run)
    elements = Elements(page)
    assert "race" in ids(elements)
    for words in ("LoRA r=1 + teacher", "0.9123", "0.3456", "the teacher: 8 subnets of the supernet", "0.4222"):
        assert words in elements.text
    assert "<b>BitFit" not in page


def test_without_a_race_there_is_no_section_of_it(make_run):
    assert "race" not in ids(Elements(page_of(make_run())))
