"""The house: files that can be read at once."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_LINES = 400


def test_no_file_is_longer_than_can_be_read_at_once():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in files.stdout.splitlines() if (ROOT / name).is_file()]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert len(lines) > 100
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_the_page_on_versions_says_which_are_tested_and_allowed():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    allowed = dict(re.findall(r'^    "([\w-]+)>=([\d.]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    page = (ROOT / "docs" / "compatibility.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| >= ([\d.]+)", page, re.MULTILINE)
    assert len(rows) > 10
    assert {name: (tested, lowest) for name, tested, lowest in rows} == {
        name: (pinned[name], allowed[name]) for name, *_ in rows
    }
