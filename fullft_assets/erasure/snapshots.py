"""Takes erased documents out of training snapshots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.documents.erasure import read_tombstones
from fullft_assets.erasure import general_documents
from fullft_assets.erasure.erased_documents import ErasedDocuments, whole_artifacts
from fullft_assets.erasure.report import ErasureReport
from fullft_assets.errors import StoreError
from fullft_assets.snapshot import data_report, pack_again, read_index
from fullft_assets.snapshot.metadata import Erasure, SnapshotMetadata
from fullft_assets.store import Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa

#: Files that a snapshot of an earlier store may have: hashes of texts, which nobody reads.
_HASHES = "near_duplicates.npz"


def drop_from_snapshots(store: Store, case: str, erased: ErasedDocuments, report: ErasureReport) -> None:
    """Rewrite the snapshots that have rows of erased documents, or general documents that are gone."""
    # With the names of files that this erasure recorded.
    tombstones = read_tombstones(store, case)
    for manifest, _ in whole_artifacts(store, case, "training_snapshot"):
        index = read_index(store, manifest)
        hit = erased.rows(_with_groups(index))
        lost = general_documents.changed(store, manifest)
        inputs = general_documents.without_names(manifest, tombstones)
        if hit.any() or lost or inputs != manifest.inputs:
            _rewrite(store, manifest, index, hit, lost, inputs)
            report.rewritten[manifest.stage] += 1


def _with_groups(index: pa.Table) -> pa.Table:
    """Return a snapshot's index with the groups that documents were delivered with: it has the text's hash
    for that of a row without one.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    has_none = pc.equal(index["group"], index["text_hash"])
    group = pc.if_else(has_none, pa.scalar(None, pa.string()), index["group"])
    return index.set_column(index.column_names.index("group"), "group", group)


def _rewrite(
    store: Store,
    manifest: Manifest,
    index: pa.Table,
    hit: np.ndarray,
    lost: Mapping[str, Manifest],
    inputs: Mapping[str, Any],
) -> None:
    """Rewrite one snapshot.

    Args:
        store, manifest, index: the snapshot.
        hit: bool [rows of the index], those that go.
        lost: what was drawn for it and lost documents.
        inputs: what its manifest is to name as its inputs.
    """
    import pyarrow.parquet as pq

    before = SnapshotMetadata.of(manifest)
    index_left = index.filter(~hit)
    lost_from = sorted({*index.filter(hit)["split"].to_pylist(), *lost})
    # By the recorded digest it is known which version of the snapshot a training read.
    loss = Erasure(snapshot_digest=manifest.content_digest, lost_from=lost_from)
    counts = Counter(index_left["split"].to_pylist())
    changes: dict[str, Any] = {
        **{f"num_{split}_rows": counts[split] for split in ("train", "validation", "test")},
        **general_documents.counts_of(lost),
        "erasures": [*(before.erasures or []), loss],
        **({"erased_up_to": manifest.attempt} if lost_from else {}),
    }

    def edit(path: Path) -> Mapping[str, Any]:
        for name in ("index.parquet", "places.parquet"):
            pq.write_table(pq.read_table(path / name).filter(~hit), path / name)
        (path / _HASHES).unlink(missing_ok=True)
        if (path / "packing.parquet").is_file() and lost_from:
            # Its positions are those of all training windows, so it is planned anew. Where a table of the
            # windows is gone, nobody can read them.
            with suppress(StoreError):
                plan = pack_again(store, manifest, index_left)
                pq.write_table(plan.to_table(), path / "packing.parquet")
                changes.update(num_packed_rows=plan.num_rows, packing_fill=plan.fill)
        # It names places of rows that are in no split, too.
        withdrawn = (
            f"# Data report of {manifest.case}\n\nWithdrawn: documents that it was made of were erased.\n"
        )
        (path / "report.md").write_text(withdrawn, encoding="utf-8")
        (path / "report.html").write_text(data_report.to_page(withdrawn), encoding="utf-8")
        return before.model_copy(update=changes).as_dict()

    identity = general_documents.identity_of(manifest, lost)
    store.rewrite(manifest, edit, inputs, identity=identity)
