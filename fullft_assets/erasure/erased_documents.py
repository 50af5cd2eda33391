"""The documents with a tombstone, found in every artifact that holds documents before any of them is gone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fullft_assets.documents.erasure import erased_digest, is_erased, read_tombstones, write_tombstones
from fullft_assets.erasure import general_documents
from fullft_assets.erasure.counts import batch_of, files_of
from fullft_assets.erasure.search import tables
from fullft_assets.store import Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class ErasedDocuments:
    """The documents with a tombstone, and what artifacts have of them.

    Attributes:
        texts: as reports may show them.
        paths: names of files all of whose documents were erased.
        num_quarantined: how many of them are in quarantine, by `batch_of`.
    """

    case: str
    tombstones: Collection[str]
    found: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    num_quarantined: dict[str, int] = field(default_factory=dict)

    def rows(self, table: pa.Table) -> np.ndarray:
        """Return which rows [n] of a table have a tombstone."""
        hit = is_erased(self.case, table, self.tombstones)
        self.found.update(table["id"][int(row)].as_py() for row in np.flatnonzero(hit))
        if "text" in table.column_names:
            self.texts.update(
                text for row in np.flatnonzero(hit) if (text := table["text"][int(row)].as_py())
            )
        return hit


def gather(store: Store, case: str, reason: str) -> ErasedDocuments:
    """Look at all documents with a tombstone before any is gone: their texts, and the files that held nothing
    else.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    erased = ErasedDocuments(case, read_tombstones(store, case))
    hit_in: set[str] = set()
    kept_in: set[str] = set()
    named: set[str] = set()
    general: list[pa.Table] = []
    for manifest, path in tables(store, case):
        table = pq.read_table(path)
        hit = erased.rows(table)
        if manifest.stage == "quarantined_examples":
            erased.num_quarantined[batch_of(manifest)] = int(hit.sum())
        if manifest.stage in general_documents.STAGES:
            # Their files are elsewhere, though under the same names, and not all that these hold was drawn.
            general.append(table.filter(hit))
            continue
        # Of all deliveries: a file's name is needed as long as rows of any delivery of it are there.
        hit_in.update(pc.unique(table["source"].filter(hit)).to_pylist())
        kept_in.update(pc.unique(table["source"].filter(~hit)).to_pylist())
        named.update(files_of(manifest) or ())
    general_documents.record_names(store, case, general, reason)
    write_tombstones(
        store,
        case,
        [erased_digest(case, path, "file") for path in sorted(hit_in - kept_in)],
        by="id",
        reason=reason,
    )
    # The others: an erasure that was cut short, or a file that was read again since then and held nothing but
    # erased documents.
    erased.paths = (hit_in - kept_in) | {
        path for path in named - kept_in if erased_digest(case, path, "file") in erased.tombstones
    }
    return erased


def with_origin(index: pa.Table, places: pa.Table) -> pa.Table:
    """Return a snapshot's index with the columns that identify a row's document: where it came from, and its
    group if it has one.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    # The index has the text's hash for the group of a row without one.
    group = pc.if_else(
        pc.equal(index["group"], index["text_hash"]), pa.scalar(None, pa.string()), index["group"]
    )
    table = index.set_column(index.column_names.index("group"), "group", group)
    return table.append_column("source", places["source"]).append_column("row", places["row"])


def by_content(store: Store, case: str, stage: str) -> dict[str, Manifest]:
    """Return the artifacts of a stage by their content digests: today's and those that they had before they
    were rewritten.
    """
    return {
        content: made
        for made in store.artifacts(case, stage)
        for content in (made.content_digest, *made.replaces)
    }
