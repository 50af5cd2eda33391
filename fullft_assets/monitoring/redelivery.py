"""Windows that were delivered again: a damaged delivery and its repair, or one file twice, are one set of
documents; the later one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fullft_assets.documents import RawMetadata
from fullft_assets.documents.erasure import has_made_up_id
from fullft_assets.monitoring.metadata import DriftMetadata
from fullft_assets.store import Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa

#: Share of the larger window's documents that two windows must have in common, by their ids.
_SAME = 0.5


def without_redelivered(store: Store, documents: Manifest, reports: Sequence[Manifest]) -> list[Manifest]:
    """Return those of earlier drift reports whose window was not delivered again as this one.

    A window and its repetition are no two witnesses of a drift: one that was damaged twice confirmed itself,
    and one that was repaired stayed in the pool of the windows after it.

    Args:
        documents: `production_documents` of the window.
        reports: of earlier windows; few, as the documents of each are read.
    """
    current = _documents_of(store, documents)
    return [
        report
        for report in reports
        if not _is_same(current, _documents_of(store, store.load(DriftMetadata.of(report).documents)))
    ]


def is_read_by_another_window(documents: Manifest) -> bool:
    """Return whether all files of a window were rewritten before they were read: what they are now is a
    window of its own, and nothing is wrong.
    """
    metadata = RawMetadata.of(documents)
    return metadata.num_files > 0 and not metadata.files and all(check.passed for check in documents.checks)


def own_ids(table: pa.Table) -> list[str | None]:
    """Return the id of each document, None where it was made up from its file and row; `table` has `id`,
    `source` and `row`.
    """
    return [
        None if made_up else id_
        for id_, made_up in zip(table["id"].to_pylist(), has_made_up_id(table).tolist(), strict=True)
    ]


class _Documents(NamedTuple):
    """What a window's documents are recognised by."""

    ids: frozenset[str]
    texts: list[str]


def _documents_of(store: Store, window: Manifest) -> _Documents:
    import pyarrow.parquet as pq

    table = pq.read_table(store.folder(window) / "documents.parquet", columns=["id", "source", "row", "text"])
    return _Documents(
        frozenset(filter(None, own_ids(table))), sorted(text for text in table["text"].to_pylist() if text)
    )


def _is_same(current: _Documents, other: _Documents) -> bool:
    # Some texts come again in any feed, so without ids only all of them together tell.
    is_equal = bool(current.texts) and current.texts == other.texts
    return is_equal or len(current.ids & other.ids) > _SAME * max(len(current.ids), len(other.ids))
