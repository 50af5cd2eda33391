"""Likely label errors and the worst errors of a classifier."""

import json
from pathlib import Path

import numpy as np
import pytest

from fullft_assets import report
from fullft_assets.tasks.classification import assessment as label_errors
from tests.test_report import LABELS, evaluation_of, full_report

pytestmark = pytest.mark.quick

NAMES = ["invoice", "letter", "order", "never"]


def test_swapped_labels_are_found() -> None:
    pytest.importorskip("cleanlab")
    truth = np.arange(300) % 3
    probabilities = np.full((300, 4), 0.02)
    probabilities[np.arange(300), truth] = 0.94
    given = truth.copy()
    given[:9] = (truth[:9] + 1) % 3
    found = label_errors.likely_label_errors([f"d{row}" for row in range(300)], given, probabilities, NAMES)
    assert found is not None and {row.id for row in found} == {f"d{row}" for row in range(9)}
    assert (
        found[0].predicted == NAMES[truth[int(found[0].id[1:])]]
        and found[0].label == NAMES[given[int(found[0].id[1:])]]
    )


def test_the_worst_errors_are_the_wrong_rows_of_the_highest_loss() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.05, 0.95], [0.8, 0.2]])
    found = label_errors.worst_errors(["a", "b", "c", "d"], np.array([1, 1, 1, 1]), probabilities, NAMES[:2])
    assert [(row.id, row.label, row.predicted, row.probability) for row in found] == [
        ("a", "letter", "invoice", 0.9), ("d", "letter", "invoice", 0.8), ("b", "letter", "invoice", 0.6),
    ]  # fmt: skip


@pytest.mark.heavy
def test_ids_are_in_the_page_alone_and_all_rows_in_the_file(tmp_path: Path) -> None:
    rows = [report.DoubtfulRow(f"zoon-{n}", "<b>letter", "order", 0.97, 0.01) for n in range(30)]
    report.write(tmp_path, full_report(evaluation_of(LABELS), worst=rows[:2], label_errors=rows))
    report.write_label_errors(tmp_path / "label_errors.jsonl", rows, "kind", "doc")
    page, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert '<tr data-document="zoon-19">' in page
    assert "zoon-20" not in page
    assert "<b>letter" not in page
    assert "zoon" not in markdown and "30 test and validation rows " in markdown
    lines = [json.loads(line) for line in (tmp_path / "label_errors.jsonl").read_text().splitlines()]
    assert len(lines) == 30
    assert lines[0] == {
        "doc": "zoon-0",
        "kind": "<b>letter",
        "suggested": "order",
        "probability": 0.97,
    }
