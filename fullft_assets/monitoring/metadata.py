"""Metadata of the monitoring artifacts."""

from __future__ import annotations

from fullft_assets.monitoring.verdict import Status
from fullft_assets.store.metadata import Metadata


class DriftMetadata(Metadata):
    """Metadata of a `drift_report`.

    Attributes:
        num_rows: compared documents of the window, one a group.
        num_related_left_out: documents of groups that another document represents.
        num_reference_rows: None where the window has too few documents to be compared.
        p_values, effects: by test.
    """

    status: Status
    summary: str
    table: str
    num_rows: int
    num_delivered: int
    num_unreadable: int
    num_related_left_out: int
    num_labelled: int
    num_reference_rows: int | None = None
    p_values: dict[str, float]
    effects: dict[str, float]


class ReferenceMetadata(Metadata):
    """Metadata of a `drift_reference`: its held-out rows, and the distinct words of the training texts."""

    num_rows: int
    num_words: int
