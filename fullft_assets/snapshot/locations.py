"""What is read of a snapshot's rows in the tables of their batches.

A table of places says where rows are: `batch`, and `position` in the tables of that batch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.store import Manifest, Store

T = TypeVar("T")


def by_batch(rows: pa.Table) -> list[tuple[str, np.ndarray]]:
    """Return the name of each batch in the column `batch`, with the numbers of its rows."""
    encoded = rows["batch"].combine_chunks().dictionary_encode()
    batch = encoded.indices.to_numpy()
    order = np.argsort(batch, kind="stable")
    numbers = np.split(order, np.flatnonzero(np.diff(batch[order])) + 1)
    return list(zip(encoded.dictionary.to_pylist(), numbers, strict=False))


def in_order(places: pa.Table, read: Callable[[str, np.ndarray], Sequence[T]]) -> list[T]:
    """Return what is read of some rows, in their order.

    Args:
        places: of the rows.
        read: returns, of a batch and some positions in it, the value at each.
    """
    values: list[T | None] = [None] * len(places)
    positions = places["position"].to_numpy()
    for batch, numbers in by_batch(places):
        for number, value in zip(numbers.tolist(), read(batch, positions[numbers]), strict=True):
            values[number] = value
    return cast(list[T], values)


def to_lists(windows: pa.ChunkedArray) -> list[list[list[int]]]:
    """Return the windows (or their marks) of each row; none for null. `to_pylist` takes ten times as long."""

    inner = pc.list_flatten(windows)
    values = pc.list_flatten(inner).to_numpy().tolist()
    return _cut(_cut(values, pc.list_value_length(inner)), pc.list_value_length(windows))


def window_lengths(windows: pa.ChunkedArray) -> list[list[int]]:
    """Return the number of tokens in each window of each row."""

    lengths = pc.list_value_length(pc.list_flatten(windows)).to_pylist()
    return _cut(lengths, pc.list_value_length(windows))


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
    for name in places.column_names:
        index = index.append_column(name, places[name])
    return index


def read_rows(path: Path, column: str, positions: np.ndarray) -> pa.ChunkedArray:
    """Return a column's values at positions, in that order; row groups without one are not read."""

    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        group = np.searchsorted(starts, positions, "right") - 1
        order = np.argsort(group, kind="stable")
        parts = []
        for n in np.unique(group).tolist():
            of_group = positions[order[group[order] == n]]
            # One column: handing its pages to threads takes longer than decoding them.
            values = file.read_row_group(n, columns=[column], use_threads=False)[column]
            parts += values.take(pa.array(of_group - starts[n])).chunks
        kind = file.schema_arrow.field(column).type
    return pa.chunked_array(parts, kind).take(pa.array(np.argsort(order)))
