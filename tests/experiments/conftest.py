"""The experiments' modules can be imported; a study whose trainings take a moment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_models import Make

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "experiments"))

TRAINING = {"learning_rate": 5e-3}
SETTINGS = {
    "epochs": {32: 2},
    "supernet_epochs": {32: 1},
    "max_length": 16,
    "validation_rows": 12,
    "test_rows": 20,
    "rates": {"default": [2e-3, 4e-3]},
    "extensions": 0,
    "primary_budget": {"tiny": 500},
    "members": 2,
    "recipe": {
        "space": "glora-ranks",
        "supernet": {"lr_factors": {"head": 3}, "training": TRAINING},
        "search": {"trials": 2},
        "finals": {"subnets": 1, "methods": ["lora"], "rates": [1], "teacher": 2},
    },
    "runs": {
        "ours": {},
        "random": {"search": {"sampler": "study_random.Drawn"}},
        "untaught": {"finals": {"teacher": 0}},
        "paper": {"space": "glora-paper", "supernet": {"max_params": None}, "finals": None},
    },
}


@pytest.fixture
def desk(tiny_model, tmp_path):
    """``desk(methods, **settings)``: a study of one tiny data set with these methods, and where it reads and writes."""
    from study_cells import Desk
    from study_plan import Study

    def build(methods, name="study", seeds=(0,), **settings):
        folder = tmp_path / "data" / "mpqa"
        folder.mkdir(parents=True, exist_ok=True)
        for number, (split, rows) in enumerate({"train": 120, "test": 16}.items()):
            lines = [f"{text},{label}" for text, label in Make.sentences(rows, seed=number)]
            (folder / f"{split}.csv").write_text("\n".join(["text,label", *lines]))
        block = {"encoder": "tiny", "datasets": ["mpqa"], "rows": [32], "seeds": list(seeds), "methods": methods}
        encoders = {"tiny": {"model": str(tiny_model), "budgets": [500]}}
        study = Study.model_validate({**SETTINGS, "encoders": encoders, "blocks": [block], **settings})
        return Desk(study, tmp_path / "data", tmp_path / name, tmp_path / name / "cache")

    return build
