"""What a process of tests starts with; the fixtures for all tests are in tiny_fixtures.py."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("COLUMNS", None)  # a worker of pytest-xdist has the terminal's


def pytest_configure(config: pytest.Config) -> None:
    """The process that only gives tests to workers does not wait for torch."""
    if not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tiny_fixtures")
