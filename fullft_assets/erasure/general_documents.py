"""General documents that were drawn to be replayed, or to measure forgetting on: their artifacts, and what a
snapshot keeps of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.documents.erasure import erased_digest
from fullft_assets.erasure.erased_documents import GENERAL, ErasedDocuments, whole_artifacts
from fullft_assets.erasure.report import ErasureReport
from fullft_assets.snapshot.frozen_batches import DRAWN, drawn_digest
from fullft_assets.snapshot.ledger import load_if_there
from fullft_assets.snapshot.locations import Lists
from fullft_assets.snapshot.metadata import GeneralMetadata, ReplayMetadata, SnapshotMetadata
from fullft_assets.store import Identity, Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa


def drop_rows(store: Store, case: str, stage: str, erased: ErasedDocuments, report: ErasureReport) -> None:
    """Rewrite drawn documents and their windows without the erased ones."""
    import pyarrow.parquet as pq

    for manifest, folder in whole_artifacts(store, case, stage):
        documents = pq.read_table(folder / "examples.parquet")
        hit = erased.rows(documents)
        if hit.any():
            windows = pq.read_table(folder / "chunks.parquet")
            _rewrite(store, manifest, documents.filter(~hit), windows.filter(~hit), int(hit.sum()))
            report.rewritten[stage] += 1


def _rewrite(store: Store, manifest: Manifest, documents: pa.Table, windows: pa.Table, num_gone: int) -> None:
    import pyarrow.parquet as pq

    before = (ReplayMetadata if GENERAL[manifest.stage] == "replay" else GeneralMetadata).of(manifest)
    num_tokens = int(Lists.of(windows["windows"]).lengths.sum())
    changes: dict[str, int | float] = {
        "num_rows": len(documents),
        "num_tokens": num_tokens,
        "num_erased": (before.num_erased or 0) + num_gone,
        # Which of them were is no longer known.
        "num_with_control_tokens": min(before.num_with_control_tokens, len(documents)),
    }
    if isinstance(before, ReplayMetadata):
        num_all_tokens = num_tokens + manifest.inputs["num_task_tokens"]
        changes["share"] = num_tokens / num_all_tokens if num_tokens else 0.0

    def edit(path: Path) -> Mapping[str, Any]:
        pq.write_table(documents, path / "examples.parquet", compression="zstd")
        pq.write_table(windows, path / "chunks.parquet", compression="zstd")
        return before.model_copy(update=changes).as_dict()

    # The identity names each document by the hash of its text.
    values = manifest.identity.values if manifest.identity else {}
    values = {**values, "num_tokens": num_tokens, "documents": documents["text_hash"].to_pylist()}
    store.rewrite(manifest, edit, identity=Identity(files=[], values=values))


def without_names(snapshot: Manifest, tombstones: Collection[str]) -> dict[str, Any]:
    """Return a snapshot's inputs without the names of the files that were one erased document."""
    inputs = dict(snapshot.inputs)
    for kind in DRAWN:
        if isinstance(inputs.get(kind), Mapping):
            inputs[kind] = {
                name: digest
                for name, digest in inputs[kind].items()
                if erased_digest(snapshot.case, name, "general file") not in tombstones
            }
    return inputs


def changed(store: Store, snapshot: Manifest) -> dict[str, Manifest]:
    """Return the drawn documents of a snapshot that lost some since it was taken, by the snapshot's name for
    them: that their digest has changed shows it, also after an erasure that was cut short.
    """
    drawn = {kind: load_if_there(store, ref) for kind, ref in SnapshotMetadata.of(snapshot).drawn().items()}
    return {
        kind: manifest
        for kind, manifest in drawn.items()
        if manifest is not None and drawn_digest(snapshot, kind) != manifest.content_digest
    }


def counts_of(lost: Mapping[str, Manifest]) -> dict[str, int]:
    """Return the snapshot's counts of the drawn documents that are left."""
    counts = {}
    if "general" in lost:
        counts["num_general_tokens"] = GeneralMetadata.of(lost["general"]).num_tokens
    if "replay" in lost:
        replayed = ReplayMetadata.of(lost["replay"])
        counts |= {"num_replay_rows": replayed.num_rows, "num_replay_tokens": replayed.num_tokens}
    return counts


def identity_of(snapshot: Manifest, lost: Mapping[str, Manifest]) -> Identity | None:
    """Return the identity of a snapshot with the digests of the drawn documents that lost some."""
    if snapshot.identity is None:
        return None
    digests = {kind: manifest.content_digest for kind, manifest in lost.items()}
    return snapshot.identity.model_copy(update={"values": {**snapshot.identity.values, **digests}})
