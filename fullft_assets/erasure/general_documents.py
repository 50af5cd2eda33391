"""General documents that were drawn to be replayed, or to measure forgetting on: their artifacts, and what a
snapshot keeps of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.documents.erasure import erased_digest, write_tombstones
from fullft_assets.documents.formats import is_whole_file
from fullft_assets.snapshot.frozen_batches import DRAWN, drawn_digest
from fullft_assets.snapshot.ledger import load_if_there
from fullft_assets.snapshot.locations import Lists
from fullft_assets.snapshot.metadata import GeneralMetadata, ReplayMetadata, SnapshotMetadata
from fullft_assets.store import Identity, Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa

#: What a snapshot calls what was drawn for it, by stage.
STAGES = {f"{kind}_documents": kind for kind in DRAWN}


def drop_rows(store: Store, manifest: Manifest, erased: Callable[[pa.Table], np.ndarray]) -> bool:
    """Rewrite drawn documents and their windows without the erased ones; return whether there were any."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = store.folder(manifest)
    documents, windows = (pq.read_table(folder / f"{name}.parquet") for name in ("examples", "chunks"))
    hit = erased(documents)
    if not hit.any():
        return False
    documents, windows = documents.filter(pa.array(~hit)), windows.filter(pa.array(~hit))
    before = (ReplayMetadata if STAGES[manifest.stage] == "replay" else GeneralMetadata).of(manifest)
    num_tokens = int(Lists.of(windows["windows"]).lengths.sum())
    changes: dict[str, int | float] = {
        "num_rows": len(documents),
        "num_tokens": num_tokens,
        "num_erased": (before.num_erased or 0) + int(hit.sum()),
        # Which of them were is no longer known.
        "num_with_control_tokens": min(before.num_with_control_tokens, len(documents)),
    }
    if isinstance(before, ReplayMetadata):
        changes["share"] = (
            num_tokens / (num_tokens + manifest.inputs["num_task_tokens"]) if num_tokens else 0.0
        )
    values = {**(manifest.identity.values if manifest.identity else {}), "num_tokens": num_tokens}

    def edit(path: Any) -> Mapping[str, Any]:
        for name, table in (("examples", documents), ("chunks", windows)):
            pq.write_table(table, path / f"{name}.parquet", compression="zstd")
        return before.model_copy(update=changes).as_dict()

    # The identity names each document by the hash of its text.
    identity = Identity(files=[], values={**values, "documents": documents["text_hash"].to_pylist()})
    store.rewrite(manifest, edit, identity=identity)
    return True


def record_names(store: Store, case: str, documents: Iterable[pa.Table], reason: str) -> None:
    """Write tombstones of the names of files that were one document, given the erased ones: a snapshot's
    inputs contain these names.
    """
    sources = {
        source for table in documents for source in table["source"].to_pylist() if is_whole_file(source)
    }
    write_tombstones(
        store,
        case,
        [erased_digest(case, source, "general file") for source in sorted(sources)],
        by="id",
        reason=reason,
    )


def without_names(snapshot: Manifest, tombstones: Collection[str]) -> dict[str, Any]:
    """Return a snapshot's inputs without the names of the files that were one erased document."""
    inputs = dict(snapshot.inputs)
    for kind in DRAWN:
        if isinstance(inputs.get(kind), Mapping):
            files = inputs[kind].items()
            inputs[kind] = {
                name: pin
                for name, pin in files
                if erased_digest(snapshot.case, name, "general file") not in tombstones
            }
    return inputs


def changed(store: Store, snapshot: Manifest) -> dict[str, Manifest]:
    """Return the drawn documents of a snapshot that lost some since it was taken, by the snapshot's name for
    them.
    """
    found = {}
    for kind, ref in SnapshotMetadata.of(snapshot).drawn().items():
        made = load_if_there(store, ref)
        if made is not None and drawn_digest(snapshot, kind) != made.content_digest:
            found[kind] = made
    return found


def is_whole(store: Store, snapshot: Manifest) -> bool:
    """Return whether all documents that were drawn for a snapshot are in the store."""
    return all(load_if_there(store, ref) for ref in SnapshotMetadata.of(snapshot).drawn().values())


def counts_of(lost: Mapping[str, Manifest]) -> dict[str, int]:
    """Return the snapshot's counts of the drawn documents that are left."""
    counts = {}
    if "general" in lost:
        counts["num_general_tokens"] = GeneralMetadata.of(lost["general"]).num_tokens
    if "replay" in lost:
        left = ReplayMetadata.of(lost["replay"])
        counts |= {"num_replay_rows": left.num_rows, "num_replay_tokens": left.num_tokens}
    return counts


def identity_of(snapshot: Manifest, lost: Mapping[str, Manifest]) -> Identity | None:
    """Return the identity of a snapshot with the digests of the drawn documents that lost some."""
    if snapshot.identity is None or not lost:
        return snapshot.identity
    values = {**snapshot.identity.values, **{kind: made.content_digest for kind, made in lost.items()}}
    return snapshot.identity.model_copy(update={"values": values})
