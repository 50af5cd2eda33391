"""Rows whose label and prediction contradict each other: in the page by their ids, and as a file for annotators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: In the folder of an evaluation: rows whose label is probably wrong, without their texts.
LABEL_ERRORS = "label_errors.jsonl"


@dataclass(frozen=True)
class DoubtfulRow:
    """A row whose label the model contradicts.

    Attributes:
        predicted: the likeliest label, with its `probability`.
        given: the probability of the row's own label.
    """

    id: str
    label: str
    predicted: str
    probability: float
    given: float


def write_label_errors(folder: Path, rows: Sequence[DoubtfulRow], label_field: str) -> None:
    """Write them as JSON lines with `id`, the field that the labels came in, and `suggested`; an annotator changes the label."""
    lines = ({"id": row.id, label_field: row.label, "suggested": row.predicted, "probability": round(row.probability, 4)} for row in rows)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / LABEL_ERRORS).write_text(text, encoding="utf-8")
