"""The stages of a run: their order, what each needs, and the command of each."""

from __future__ import annotations

STAGES = ("supernet", "search", "best", "retrained", "merged", "baselines", "test")
"""Result folders in the order of the stages; the last stage writes metrics.json and report.html instead."""

NEEDS = {"search": "supernet", "best": "search", "retrained": "best", "merged": "best", "test": "merged"}
COMMANDS = {
    "supernet": "train-supernet",
    "search": "search",
    "best": "export",
    "retrained": "retrain",
    "merged": "merge",
    "baselines": "baselines",
    "test": "evaluate",
}
