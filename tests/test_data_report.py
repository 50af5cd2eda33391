"""The data report: what a person should know of the data before training, for every task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.snapshot.data_report import Example, length_metadata, render, target_of

pytestmark = pytest.mark.quick


def metadata(**changes: Any) -> SnapshotMetadata:
    statistics = [
        {"label": "cold", "split": "train", "rows": 30, "groups": 12, "k_eff": 10.5},
        {"label": "cold", "split": "test", "rows": 4, "groups": 4, "k_eff": 4.0},
        {"label": "flu", "split": "train", "rows": 10, "groups": 2, "k_eff": 1.22},
    ]
    found = {"labels": ["cold", "flu"], "label_statistics": statistics, "rare_labels": ["cold"], "left_out": {"duplicate text": 1_200}}
    counts = dict.fromkeys(("num_batches", "num_validation_rows", "num_test_groups", "num_older_rows_kept", "num_rows_over_max_tokens"), 0)
    empty = {"label_counts": {}, "batches_left_out": [], "parts": {}, "text_tokens": {}}
    return SnapshotMetadata.model_validate({**found, **counts, **empty, "num_train_rows": 40, "num_test_rows": 4, **changes})


def lines(found: SnapshotMetadata, num_tokens: list[int], **options: Any) -> list[str]:
    return render(found, num_tokens, **{"max_tokens": 8, "max_windows": None, **options}).splitlines()


def test_sizes_balance_and_what_is_left_out() -> None:
    report = lines(metadata(), [3, 9, 40])
    assert "| rows | 40 | 0 | 4 |" in report
    assert "| cold | 30 (75%); 12 groups; k_eff 10.5 | 0 | 4 (100%); 4 groups; k_eff 4.0 |" in report
    assert "| flu | 10 (25%); 2 groups; k_eff 1.2 | 0 | 0 |" in report
    assert "Too few test groups for a reliable score: cold." in report
    assert "- 1,200 duplicate text" in report
    assert "2 of 3 texts are longer than chunks.max_tokens (8); such a text is read in overlapping windows, nothing is cut." in report


def test_lengths_are_shown_by_powers_of_two() -> None:
    histogram = [line.split() for line in lines(metadata(), [0, 1, 2, 3, 3, 64]) if line.endswith("#")]
    assert [(low, high, count) for low, _, high, count, _ in histogram] == [("1", "1", "2"), ("2", "3", "3"), ("64", "127", "1")]
    assert len(histogram[1][-1]) == 40, "the longest bar is the most frequent length"


def test_a_task_without_labels_shows_how_its_rows_are_packed() -> None:
    found = metadata(labels=[], label_statistics=[], rare_labels=[], left_out={}, num_packed_rows=1_234, packing_fill=0.9987)
    report = lines(found, [5], max_windows=2, example=Example("some text", "the text itself", ["some", "text"]))
    assert "## Labels" not in report
    assert "- nothing" in report
    assert "Packed for training: 1,234 rows, 99.87% full." in report
    assert "what is trained: **the text itself**" in report
    assert "some text" in report
    assert any(line.endswith("such a text is cut after 2 window(s).") for line in report)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"label": "flu"}, "flu"),
        ({"labels": ["a", "b"]}, "a, b"),
        ({"labels": []}, "no label"),
        ({"spans": [{"start": 2, "end": 5, "label": "DRUG"}]}, "DRUG [2:5]"),
        ({"spans": None}, "no span"),
        ({"split": "train"}, "the text itself"),
    ],
)
def test_what_is_trained_is_said_in_words(row: dict[str, Any], said: str) -> None:
    assert target_of(row) == said


def test_quantiles_and_long_texts() -> None:
    found = length_metadata(np.arange(1, 101), 90)
    assert found == {"text_tokens": {"p10": 10, "p50": 50, "p90": 90, "p99": 99, "longest": 100}, "num_rows_over_max_tokens": 10}
