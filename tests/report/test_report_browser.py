"""The page in a browser: it draws without an error, fits a phone, and can be read in both themes.

A frame of the wanted width stands for the screen, since a browser's own window has a smallest width.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from glora_search.report import write_report

pytestmark = pytest.mark.slow


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--allow-file-access-from-files", "--enable-logging=stderr",
    "--virtual-time-budget=5000", "--dump-dom",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"

WATCH = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<body>FRAMES<script>
const sized = (element) => { const box = element.getBoundingClientRect(); return box.width + box.height > 1; };
const colour = (element, of) => element && element.ownerDocument.defaultView.getComputedStyle(element)[of];
const look = (frame) => {
  const page = frame.contentDocument, view = frame.contentWindow, charts = {}, texts = {};
  for (const chart of page.querySelectorAll(".js-plotly-plot, .plotly-graph-div")) {
    const marks = chart.querySelectorAll(".points path, path.js-line");
    charts[chart.id] = [...marks].filter(sized).length;
    for (const part of [".xtick", ".ytick", ".g-xtitle", ".g-ytitle", ".legend", ".annotation"])
      for (const text of chart.querySelectorAll(part + " text")) texts[part] = colour(text, "fill");
  }
  for (const part of ["body", "figcaption", "td", "summary", "li"])
    texts[part] = colour(page.querySelector(part), "color");
  return {
    width: view.innerWidth, content: page.documentElement.scrollWidth, charts, texts,
    background: colour(page.body, "backgroundColor"), dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    cells: [...page.querySelectorAll(".heat td")].filter(sized).length,
    injected: view.injected ?? 0, strange: page.querySelectorAll("a, img, iframe, object").length,
  };
};
onload = () => setTimeout(() => {
  const facts = [...document.querySelectorAll("iframe")].map(look);
  document.body.replaceChildren();
  document.body.dataset.facts = JSON.stringify(facts);
}, 2000);
</script>"""


@pytest.fixture(scope="session")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser to open the report in; install one of: {', '.join(BROWSERS)}")
    return found


@pytest.fixture
def look_at(browser, tmp_path):
    """``look_at(page, *widths, dark=False)``: what is seen at each width, and what the console says."""

    def look(page, *widths, dark=False):
        frames = "".join(
            f'<iframe src="{page.as_uri()}" style="border:0;width:{width}px;height:900px"></iframe>' for width in widths
        )
        watch = tmp_path / "watch.html"
        watch.write_text(WATCH.replace("FRAMES", frames))
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [browser, *FLAGS, profile, "--window-size=1400,1000", *([DARK] if dark else []), watch.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        facts = re.search(r'data-facts="([^"]*)"', done.stdout)
        assert facts is not None, done.stderr
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return json.loads(html.unescape(facts[1])), console

    return look


def luminance(colour):
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    """The contrast of two colours as the web's accessibility guidelines define it; text wants 4.5."""
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_draws_every_chart_on_a_desk_and_on_a_phone(look_at, make_run, chart_ids, dark):
    seen, console = look_at(write_report(make_run().folder), 1280, 390, dark=dark)
    assert console == []
    assert [facts["width"] for facts in seen] == [1280, 390]
    for facts in seen:
        assert facts["dark"] is dark
        assert facts["content"] <= facts["width"]
        assert set(facts["charts"]) == chart_ids
        assert min(facts["charts"].values()) > 0
        assert facts["charts"]["front"] > 60
        assert facts["cells"] == 6 * 5
        assert (luminance(facts["background"]) < 0.05) is dark
        assert {".xtick", ".ytick", ".g-xtitle", ".legend", ".annotation", "figcaption"} <= set(facts["texts"])
        for part in set(facts["texts"]) - {"td"}:
            assert contrast(facts["texts"][part], facts["background"]) >= 4.5, part


def test_a_long_name_makes_a_phone_scroll_nothing_but_its_table(look_at, make_run, change_metrics):
    run = make_run(trials=10, name="n" * 200, label="lora-" * 30)
    change_metrics(run, notes=["x" * 300], metric="m" * 60)
    (facts,), console = look_at(write_report(run.folder), 390)
    assert console == []
    assert facts["width"] == 390
    assert facts["content"] <= 390


def test_text_of_the_run_is_not_run(look_at, make_run, change_metrics, evil):
    run = make_run(name=evil, label=evil, probes=[evil, '<a href="javascript:injected=1">x</a>'])
    change_metrics(run, metric=evil, notes=[evil])
    (facts,), console = look_at(write_report(run.folder), 1280)
    assert console == []
    assert (facts["injected"], facts["strange"]) == (0, 0)
    assert min(facts["charts"].values()) > 0


def test_an_error_and_an_empty_chart_would_be_seen(look_at, make_run, tmp_path):
    page = tmp_path / "broken.html"
    text = write_report(make_run(trials=10).folder).read_text()
    page.write_text(text.replace("</body>", '<script>Plotly.react("front", []); nothing.there()</script></body>'))
    (facts,), console = look_at(page, 1280)
    assert any("nothing is not defined" in line for line in console)
    assert facts["charts"]["front"] == 0
    assert facts["charts"]["supernet"] > 0
