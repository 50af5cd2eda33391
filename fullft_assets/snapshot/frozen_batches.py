"""The batches' artifacts that a snapshot froze, and where its rows are in them today.

A snapshot names each of its rows by its batch and by the file and row that it was delivered as. Where that is
in the batch's tables is looked up whenever they are read: an erasure takes rows out of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.errors import StoreError
from fullft_assets.snapshot.locations import by_batch, in_order, read_rows, to_lists
from fullft_assets.snapshot.metadata import FrozenBatch, SnapshotMetadata
from fullft_assets.store import Manifest, Store

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


def content_of(part: Manifest) -> str:
    """Return what names the rows of a batch's artifact: its digest, and how many an erasure took from it,
    since the digest stays.
    """
    num_erased = part.metadata.get("num_erased")
    return f"{part.content_digest}-{num_erased}" if num_erased else part.content_digest


@dataclass(frozen=True)
class FrozenRows:
    """Rows of a snapshot in the tables of its batches.

    Attributes:
        places: where each row is.
        examples: files with the examples of the batches that have a row, by name.
        chunks: files with their chunks, if they were asked for.
    """

    places: pa.Table
    examples: dict[str, Path]
    chunks: dict[str, Path]

    def values(self, column: str) -> list[Any]:
        """Return a column of the rows' examples, in their order."""
        return in_order(
            self.places, lambda batch, rows: read_rows(self.examples[batch], column, rows).to_pylist()
        )

    def windows(self, column: str = "windows") -> list[list[list[int]]]:
        """Return the windows of the rows, or their `marks`, in their order."""
        return in_order(
            self.places, lambda batch, rows: to_lists(read_rows(self.chunks[batch], column, rows))
        )


def find_rows(store: Store, snapshot: Manifest, index: pa.Table, *, with_chunks: bool = True) -> FrozenRows:
    """Find rows of a snapshot in its batches.

    Args:
        store, snapshot: where they are.
        index: rows of `read_index`.
        with_chunks: whether their chunks are read as well.

    Raises:
        StoreError: a table is gone, or an erasure took rows out of it that it has not taken out of the
            snapshot yet.
    """

    parts = SnapshotMetadata.of(snapshot).parts
    position = np.full(len(index), -1)
    examples: dict[str, Path] = {}
    chunks: dict[str, Path] = {}
    for batch, numbers in by_batch(index):
        examples[batch] = store.folder(store.load(parts[batch].examples)) / "examples.parquet"
        delivered = pq.read_table(examples[batch], columns=["source", "row"])
        if with_chunks:
            chunks[batch] = store.folder(store.load(parts[batch].chunks)) / "chunks.parquet"
            if pq.read_metadata(chunks[batch]).num_rows != len(delivered):
                raise _rewritten(snapshot, f"batch {batch}")
        position[numbers] = _find(index.take(pa.array(numbers)), delivered)
        if (position[numbers] < 0).any():
            raise _rewritten(snapshot, f"batch {batch}")
    return FrozenRows(pa.table({"batch": index["batch"], "position": position}), examples, chunks)


def _find(rows: pa.Table, delivered: pa.Table) -> np.ndarray:
    """Return the position of each row among delivered ones, by file and row; -1 where it is not there."""

    def names(table: pa.Table) -> pa.Array:
        number = table["row"].cast(pa.string())
        return pc.binary_join_element_wise(table["source"], number, ":").combine_chunks()

    return pc.index_in(names(rows), value_set=names(delivered)).fill_null(-1).to_numpy()


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
    drawn = store.load(ref)
    if drawn_digest(snapshot, kind) != drawn.content_digest:
        raise _rewritten(snapshot, f"the {kind} set")
    return store.folder(drawn)


@contextmanager
def steady(snapshot: Manifest) -> Iterator[None]:
    """Report in one line that a batch's files were taken away while they were read."""
    try:
        yield
    except FileNotFoundError as error:
        raise _rewritten(snapshot, "a batch") from error


def _rewritten(snapshot: Manifest, part: str) -> StoreError:
    return StoreError(
        f"{snapshot.ref}: {part} was rewritten after this snapshot froze it: an erasure is under way or was"
        f" cut short; run `fullft erase {snapshot.case}` with its list again, then this once more"
    )
