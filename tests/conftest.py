"""What a process of tests starts with; the fixtures for all tests are in tiny_fixtures.py."""

from __future__ import annotations

import gc
import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("COLUMNS", None)  # a worker of pytest-xdist has the terminal's


def pytest_configure(config: pytest.Config) -> None:
    """The process that only gives tests to workers does not wait for torch."""
    if not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tiny_fixtures")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several workers none is left alone with the longest tests at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.name != "test_launched_run.py")


def pytest_collection_finish() -> None:
    """Each training collects garbage, which takes long while it looks at all that was imported."""
    gc.collect()
    gc.freeze()
