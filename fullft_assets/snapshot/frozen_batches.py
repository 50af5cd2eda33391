"""The batches' artifacts that a snapshot froze, and where its rows are in them today.

A snapshot names each of its rows by its batch and by the file and row that it was delivered as. Where that is
in the batch's tables is looked up whenever they are read: an erasure takes rows out of them. A table of
places says where rows are: `batch`, and `position` in the tables of that batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.artifacts import CHUNKS_COLUMN, CHUNKS_FILE, EXAMPLES_FILE
from fullft_assets.errors import StoreError
from fullft_assets.snapshot.all_rows import distinct
from fullft_assets.snapshot.metadata import FrozenBatch, SnapshotMetadata
from fullft_assets.store import Manifest, Store

T = TypeVar("T")
#: What is drawn for a snapshot beside its batches: an artifact of the stage `<kind>_documents`, under this
#: name in its metadata.
DRAWN = ("general", "replay")


def pin(examples: Manifest, chunks: Manifest) -> FrozenBatch:
    """Return the record of a batch in a snapshot."""
    return FrozenBatch(
        examples=examples.ref,
        chunks=chunks.ref,
        examples_digest=examples.content_digest,
        chunks_digest=chunks.content_digest,
    )


def content_of(part: Manifest) -> str:
    """Return the id of the rows of a batch's artifact: its digest and, since an erasure does not change the
    digest, the number of rows that erasures removed from it.
    """
    num_erased = part.metadata.get("num_erased")
    return f"{part.content_digest}-{num_erased}" if num_erased else part.content_digest


@dataclass(frozen=True)
class FrozenRows:
    """Rows of a snapshot in the tables of its batches.

    Attributes:
        places: where each row is.
        examples: files with the examples of the batches that have a row, by name.
        chunk_files: files with their chunks, if they were asked for.
    """

    places: pa.Table
    examples: dict[str, Path]
    chunk_files: dict[str, Path]

    def values(self, column: str) -> list[Any]:
        """Return a column of the rows' examples, in their order."""
        return in_order(
            self.places, lambda batch, rows: read_rows(self.examples[batch], column, rows).to_pylist()
        )

    def chunks(self, column: str = CHUNKS_COLUMN, *, as_arrays: bool = False) -> list[list[Any]]:
        """Return the chunks of the rows, or their `marks`, in their order: lists of integers, or arrays
        [tokens], which take a tenth of their memory.
        """
        return in_order(
            self.places,
            lambda batch, rows: to_lists(
                read_rows(self.chunk_files[batch], column, rows), as_arrays=as_arrays
            ),
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
    chunk_files: dict[str, Path] = {}
    for batch, numbers in by_batch(index):
        examples[batch] = store.folder(store.load(parts[batch].examples)) / EXAMPLES_FILE
        row_sources = pq.read_table(examples[batch], columns=["source", "row"])
        if with_chunks:
            chunk_files[batch] = store.folder(store.load(parts[batch].chunks)) / CHUNKS_FILE
            if pq.read_metadata(chunk_files[batch]).num_rows != len(row_sources):
                raise _rewritten(snapshot, f"batch {batch}")
        position[numbers] = positions_in(row_sources, index.take(pa.array(numbers)))
        if (position[numbers] < 0).any():
            raise _rewritten(snapshot, f"batch {batch}")
    return FrozenRows(pa.table({"batch": index["batch"], "position": position}), examples, chunk_files)


def positions_in(table: pa.Table, rows: pa.Table) -> np.ndarray:
    """Return the position of each of some rows in a table, by `source` and `row`, or -1: int64 [n]."""

    def names(table: pa.Table) -> pa.Array:
        return pc.binary_join_element_wise(
            table["source"], table["row"].cast(pa.string()), ":"
        ).combine_chunks()

    return pc.index_in(names(rows), value_set=names(table)).fill_null(-1).to_numpy().astype(np.int64)


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
    documents = store.load(ref)
    if drawn_digest(snapshot, kind) != documents.content_digest:
        raise _rewritten(snapshot, f"the {kind} set")
    return store.folder(documents)


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


def by_batch(rows: pa.Table) -> list[tuple[str, np.ndarray]]:
    """Return the name of each batch in the column `batch`, with the numbers of its rows."""
    encoding = rows["batch"].combine_chunks().dictionary_encode()
    batch = encoding.indices.to_numpy()
    order = np.argsort(batch, kind="stable")
    return list(
        zip(
            encoding.dictionary.to_pylist(),
            np.split(order, np.flatnonzero(np.diff(batch[order])) + 1),
            strict=False,
        )
    )


def in_order(places: pa.Table, read: Callable[[str, np.ndarray], Sequence[T]]) -> list[T]:
    """Return the values that are read for some rows, in their order.

    Args:
        places: where the rows are.
        read: returns the values at some positions of a batch.
    """
    values: list[T | None] = [None] * len(places)
    positions = places["position"].to_numpy()
    for batch, numbers in by_batch(places):
        for number, value in zip(numbers.tolist(), read(batch, positions[numbers]), strict=True):
            values[number] = value
    return cast(list[T], values)


def to_lists(chunks: pa.ChunkedArray, *, as_arrays: bool = False) -> list[list[Any]]:
    """Return the chunks (or their marks) of each row as lists of integers, or as arrays; none for null.
    `to_pylist` takes ten times as long.
    """

    inner = pc.list_flatten(chunks)
    values: Any = pc.list_flatten(inner).to_numpy()
    return _cut(
        _cut(values if as_arrays else values.tolist(), pc.list_value_length(inner)),
        pc.list_value_length(chunks),
    )


def chunk_lengths(chunks: pa.ChunkedArray) -> list[list[int]]:
    """Return the number of tokens in each chunk of each row."""

    return _cut(pc.list_value_length(pc.list_flatten(chunks)).to_pylist(), pc.list_value_length(chunks))


def _cut(values: list[T], lengths: pa.ChunkedArray) -> list[list[T]]:
    ends = np.cumsum(lengths.fill_null(0).to_numpy(), dtype=np.int64).tolist()
    return [values[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def read_index(store: Store, snapshot: Manifest) -> pa.Table:
    """Return a snapshot's index with where each row came from: `source` and `row` as delivered, and `batch`
    (a key of its metadata `parts`).
    """

    folder = store.folder(snapshot)
    index = pq.read_table(folder / "index.parquet")
    places = pq.read_table(folder / "places.parquet", columns=["source", "row", "batch"])
    return pa.Table.from_arrays(
        [*index.columns, *places.columns], [*index.column_names, *places.column_names]
    )


def read_rows(path: Path, column: str, positions: np.ndarray) -> pa.ChunkedArray:
    """Return a column's values at positions, in that order; row groups without one are not read."""

    with pq.ParquetFile(path) as file:
        starts = np.cumsum([0, *(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))])
        group = np.searchsorted(starts, positions, "right") - 1
        order = np.argsort(group, kind="stable")
        parts = []
        for n in distinct(group).tolist():
            of_group = positions[order[group[order] == n]]
            # One column: handing its pages to threads takes longer than decoding them.
            parts += (
                file.read_row_group(n, columns=[column], use_threads=False)[column]
                .take(pa.array(of_group - starts[n]))
                .chunks
            )
        return pa.chunked_array(parts, file.schema_arrow.field(column).type).take(pa.array(np.argsort(order)))
