"""The batches' artifacts that a snapshot froze: read only while they hold what it froze, found again after an
erasure.

A snapshot keeps where each row is in its batch. An erasure rewrites the batches first and the snapshot last,
under the keys that they had: whoever reads in between must not take the rows that moved up for those that
were there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fullft_assets.errors import StoreError
from fullft_assets.snapshot.metadata import FrozenBatch, SnapshotMetadata
from fullft_assets.store import Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa

Part = Literal["examples", "chunks"]
#: What is drawn for a snapshot beside its batches: an artifact of the stage `<kind>_documents`, under this
#: name in its metadata.
DRAWN = ("general", "replay")


def pin(examples: Manifest, chunks: Manifest) -> FrozenBatch:
    """Return what a snapshot records of a batch."""
    return FrozenBatch(
        examples=examples.ref,
        chunks=chunks.ref,
        examples_digest=examples.content_digest,
        chunks_digest=chunks.content_digest,
    )


def folder_of(store: Store, snapshot: Manifest, batch: str, part: Part) -> Path:
    """Return the folder of a batch's examples or chunks, as the snapshot froze them.

    Raises:
        StoreError: they are gone, or were rewritten since.
    """
    frozen = SnapshotMetadata.of(snapshot).parts[batch]
    ref, pinned = (
        (frozen.examples, frozen.examples_digest)
        if part == "examples"
        else (frozen.chunks, frozen.chunks_digest)
    )
    made = store.load(ref)
    if pinned != made.content_digest:
        raise _rewritten(snapshot, f"batch {batch}")
    try:
        return store.folder(made)
    except StoreError:
        if store.load(made.ref).content_digest != made.content_digest:
            raise _rewritten(snapshot, f"batch {batch}") from None
        raise


def drawn_digest(snapshot: Manifest, kind: str) -> str | None:
    """Return the content digest of what was drawn for a snapshot, as it froze it; None where nothing was
    drawn.
    """
    return None if snapshot.identity is None else snapshot.identity.values.get(kind)


def drawn_folder(store: Store, snapshot: Manifest, kind: str) -> Path | None:
    """Return the folder of what was drawn for a snapshot, as it froze it; None where nothing was.

    Raises:
        StoreError: it is gone, or was rewritten since.
    """
    ref = SnapshotMetadata.of(snapshot).drawn().get(kind)
    if ref is None:
        return None
    made = store.load(ref)
    if drawn_digest(snapshot, kind) != made.content_digest:
        raise _rewritten(snapshot, f"the {kind} set")
    return store.folder(made)


@contextmanager
def steady(snapshot: Manifest) -> Iterator[None]:
    """Report in one line that a batch's files were taken away while they were read."""
    try:
        yield
    except FileNotFoundError as error:
        raise _rewritten(snapshot, "a batch") from error


def _rewritten(snapshot: Manifest, what: str) -> StoreError:
    return StoreError(
        f"{snapshot.ref}: {what} was rewritten after this snapshot froze it: an erasure is under way or was"
        f" cut short; run `fullft erase {snapshot.case}` with its list again, then this once more"
    )


@dataclass(frozen=True)
class Located:
    """Where a snapshot's rows are now.

    Attributes:
        places: the snapshot's places with the positions of today.
        lost: bool [n], rows that are no longer in their batch.
        parts: the snapshot's batches as they are today.
        unreadable: batches whose artifacts are gone: what is there cannot be read, and stays where it was.
    """

    places: pa.Table
    lost: np.ndarray
    parts: dict[str, FrozenBatch]
    unreadable: set[str]


def locate(store: Store, snapshot: Manifest, places: pa.Table) -> Located:
    """Find a snapshot's rows in its batches as they are today, by file and row: rows before them may be gone,
    and they themselves.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    parts, moved, unreadable = _parts_of_today(store, snapshot)
    positions, lost = places["position"].to_numpy().copy(), np.zeros(len(places), bool)
    for batch in sorted(moved):
        mine = np.flatnonzero(pc.equal(places["batch"], batch).to_numpy())
        path = store.folder(store.load(parts[batch].examples)) / "examples.parquet"
        left = _origins(pq.read_table(path, columns=["source", "row"]))
        found = pc.index_in(_origins(places.take(pa.array(mine))), value_set=left)
        positions[mine], lost[mine] = (
            found.fill_null(0).to_numpy(),
            found.is_null().to_numpy(zero_copy_only=False),
        )
    at = places.column_names.index("position")
    field = places.schema.field(at)
    return Located(places.set_column(at, field, pa.array(positions, field.type)), lost, parts, unreadable)


def _origins(table: pa.Table) -> pa.Array:
    """Return where each row came from, `file:row`: in one batch no two rows have the same."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(table["source"], table["row"].cast(pa.string()), ":").combine_chunks()


def _parts_of_today(store: Store, snapshot: Manifest) -> tuple[dict[str, FrozenBatch], set[str], set[str]]:
    """Return what a snapshot would record of its batches today, those that changed since it did, and those
    that are gone.
    """
    parts = dict(SnapshotMetadata.of(snapshot).parts)
    moved: set[str] = set()
    unreadable: set[str] = set()
    for batch, frozen in list(parts.items()):
        try:
            today = pin(store.load(frozen.examples), store.load(frozen.chunks))
        except StoreError:
            unreadable.add(batch)
            continue
        if today != frozen:
            parts[batch] = today
            moved.add(batch)
    return parts, moved, unreadable
