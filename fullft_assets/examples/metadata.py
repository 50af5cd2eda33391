"""Metadata of a batch's examples and of its quarantine."""

from __future__ import annotations

from typing import Annotated, Literal

from fullft_assets.store.metadata import Metadata, Private


class ExamplesMetadata(Metadata):
    """Metadata of `labeled_examples`.

    Attributes:
        batch: name of the batch.
        uri: where its documents came from.
        files: time of delivery (ns) of each file that was read.
        taken_away: files of the batch that were gone before they could be read again.
        num_rows: rows in = `num_valid` + `num_quarantined`.
        num_masked: rows in which personal data was masked.
        encodings: files by encoding, the most frequent first; a file without text counts for UTF-8.
        label_counts: valid rows (for spans: the spans) by label, the most frequent first.
        kappa: agreement of the annotators (None where chance alone gives full agreement), by `kappa_method`,
            also of each label.
        num_items_annotated_twice: texts that the agreement is measured on.
        num_erased: rows that erasures removed.
    """

    batch: str
    uri: str
    files: Annotated[dict[str, int], Private.FILES]
    taken_away: Annotated[list[str] | None, Private.FILES] = None
    num_rows: int
    num_valid: int
    num_quarantined: int
    num_masked: int = 0
    encodings: dict[str, int] = {}
    label_counts: Annotated[dict[str, int], Private.LABELS]
    kappa: float | None = None
    kappa_method: Literal["cohen", "fleiss"] | None = None
    kappa_per_label: Annotated[dict[str, float] | None, Private.LABELS] = None
    num_items_annotated_twice: int | None = None
    num_erased: int | None = None


class QuarantineMetadata(Metadata):
    """Metadata of `quarantined_examples`.

    Attributes:
        batch, uri: see `ExamplesMetadata`.
        num_quarantined: quarantined rows.
        reasons: rows by reason, the most frequent first.
        problems: malformed rows by problem, the ten commonest.
        num_erased: see `ExamplesMetadata`.
    """

    batch: str
    uri: str
    num_quarantined: int
    reasons: dict[str, int]
    problems: dict[str, int]
    num_erased: int | None = None
