"""Text classification: one label for each text, or for each pair of texts, scored by accuracy."""

from __future__ import annotations

from datasets import Dataset

from glora_search.tasks.base import Labelled
from glora_search.tasks.whole_texts import WholeTexts


class TextClassification(Labelled, WholeTexts):
    """One label for each text; see `WholeTexts` for what it reads."""

    one_label = True

    def answers(self, rows: Dataset) -> list[int]:
        """The class of each row."""
        return self.classes(rows)
