"""Metadata of the monitoring artifacts."""

from __future__ import annotations

from typing import ClassVar

from fullft_assets.monitoring.verdict import Status
from fullft_assets.store.metadata import Metadata


class DriftMetadata(Metadata):
    """Metadata of a `drift_report`.

    Attributes:
        num_rows: compared documents of the window: the effective number, as each is independent of the
            others.
        num_related_left_out: documents of groups, or clusters of near-duplicates, that another document
            represents.
        reference, recent: `Manifest.ref` of the drift reports of the windows that this one was compared with
        and pooled with. kept_reference, kept_recent: the same for the content of the texts, where it is
        compared with windows of an earlier champion.
        scale: `Manifest.ref` of the `drift_scale` that the content is read on; empty where the window was not
            read and is compared with none.
        documents: `Manifest.ref` of the window's production documents.
        predictions: `Manifest.ref` of the predictions from the log, where only the documents that have one
            were compared.
        measured: each number by its name: p-values, effects, and the means of what the documents are like;
            see `verdict` and `scale.Sums`.
    """

    rest: ClassVar[str | None] = "measured"

    window: str
    status: Status
    summary: str
    table: str
    num_rows: int
    num_delivered: int
    num_unreadable: int
    num_related_left_out: int
    num_labelled: int
    num_reference_windows: int
    reference: list[str]
    recent: list[str]
    kept_reference: list[str] = []
    kept_recent: list[str] = []
    scale: str = ""
    documents: str
    predictions: str | None = None
    measured: dict[str, float]


class ScaleMetadata(Metadata):
    """Metadata of a `drift_scale`.

    Attributes:
        num_rows: held-out rows that it was fitted on.
        num_words: distinct words of the training texts.
        num_held_out: embeddings of single rows that it still has; 0 after an erasure.
    """

    num_rows: int
    num_words: int
    num_held_out: int
