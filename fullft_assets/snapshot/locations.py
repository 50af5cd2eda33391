"""Where a snapshot's rows are in the artifacts of their batches, and what is read there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fullft_assets.snapshot.all_rows import SPLITS, BatchRows, SplitName, expand
from fullft_assets.store import Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Locations:
    """Where rows are: `names[batch[i]]` and `position[i]`; `split` is SPLITS' number."""

    names: list[str]
    batch: np.ndarray
    position: np.ndarray
    split: np.ndarray

    def at(self, rows: np.ndarray) -> Locations:
        """Return those at positions or of a mask."""
        return Locations(self.names, self.batch[rows], self.position[rows], self.split[rows])

    def of(self, split: SplitName) -> Locations:
        """Return those of a split."""
        return self.at(self.split == SPLITS.index(split))

    def batches(self) -> list[str]:
        """Return the names of the batches that rows are in."""
        return [self.names[n] for n in np.unique(self.batch).tolist()]

    def by_batch(self) -> list[tuple[str, np.ndarray]]:
        """Return each batch's name with the numbers of its rows."""
        order = np.argsort(self.batch, kind="stable")
        cuts = np.flatnonzero(np.diff(self.batch[order])) + 1
        return [
            (self.names[self.batch[numbers[0]]], numbers) for numbers in np.split(order, cuts) if len(numbers)
        ]

    def texts(self, batches: Mapping[str, BatchRows]) -> list[str]:
        """Read the rows' texts."""
        texts: list[str] = [""] * len(self.position)
        for name, numbers in self.by_batch():
            for number, text in zip(
                numbers.tolist(), batches[name].texts(self.position[numbers]).to_pylist(), strict=True
            ):
                texts[number] = text
        return texts


def locations_of(index: pa.Table, places: pa.Table) -> Locations:
    """Return where the rows of a snapshot's index are, by its table of places."""
    import pyarrow as pa

    encoded = places["batch"].combine_chunks().dictionary_encode()
    split = index["split"].combine_chunks().dictionary_encode()
    numbers = np.array([SPLITS.index(name) for name in split.dictionary.to_pylist()], np.int64)
    return Locations(
        encoded.dictionary.to_pylist(),
        encoded.indices.to_numpy(),
        places["position"].cast(pa.int64()).to_numpy(),
        numbers[split.indices.to_numpy()] if len(numbers) else np.zeros(0, np.int64),
    )


@dataclass(frozen=True)
class Lists:
    """Windows (or their marks) of n rows, flat: row i has the windows `rows[i]` to `rows[i + 1]`, window k
    the `values` from `starts[k]` to `starts[k + 1]`.
    """

    values: np.ndarray
    starts: np.ndarray
    rows: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each window."""
        return np.diff(self.starts)

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Lists:
        """Flatten a column of lists of lists of int32."""
        import pyarrow.compute as pc

        rows = [np.zeros(1, np.int64)]
        starts = [np.zeros(1, np.int64)]
        values = []
        windows = tokens = 0
        for chunk in column.chunks:
            inner = chunk.flatten()
            rows.append(
                np.cumsum(pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(), dtype=np.int64) + windows
            )
            starts.append(np.cumsum(pc.list_value_length(inner).to_numpy(), dtype=np.int64) + tokens)
            values.append(inner.flatten().to_numpy())
            windows, tokens = windows + len(inner), tokens + len(values[-1])
        return cls(
            np.concatenate([np.zeros(0, np.int32), *values]), np.concatenate(starts), np.concatenate(rows)
        )

    @classmethod
    def read(cls, path: Path, column: str) -> Lists:
        """Read a whole column of a chunks file."""
        import pyarrow.parquet as pq

        return cls.of(pq.read_table(path, columns=[column])[column])

    @classmethod
    def gather(cls, rows: Locations, folders: Mapping[str, Path], column: str) -> Lists:
        """Read a column of the chunks of some rows, in their order."""
        parts, order = [cls.of(_no_lists())], [np.zeros(0, np.int64)]
        for name, numbers in rows.by_batch():
            parts.append(cls.of(read_rows(folders[name] / "chunks.parquet", column, rows.position[numbers])))
            order.append(numbers)
        back = np.empty(len(rows.position), np.int64)
        back[np.concatenate(order)] = np.arange(len(back))
        return cls.join(parts).take(back)

    @classmethod
    def join(cls, parts: Sequence[Lists]) -> Lists:
        """Return the rows of several, one after the other."""
        starts = [np.zeros(1, np.int64)]
        rows = [np.zeros(1, np.int64)]
        windows = tokens = 0
        for part in parts:
            starts.append(part.starts[1:] + tokens)
            rows.append(part.rows[1:] + windows)
            tokens, windows = tokens + len(part.values), windows + len(part.starts) - 1
        return cls(
            np.concatenate([part.values for part in parts]), np.concatenate(starts), np.concatenate(rows)
        )

    def take(self, rows: np.ndarray) -> Lists:
        """Return the given rows, in that order."""
        counts = np.diff(self.rows)[rows]
        windows = expand(self.rows[:-1][rows], counts)
        lengths = self.lengths[windows]
        values = self.values[expand(self.starts[:-1][windows], lengths)]
        return Lists(
            values, np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([[0], np.cumsum(counts)])
        )

    def to_lists(self) -> list[list[list[int]]]:
        """Return one list of windows a row."""
        values = self.values.tolist()
        starts = self.starts.tolist()
        rows = self.rows.tolist()
        windows = [values[begin:end] for begin, end in zip(starts, starts[1:], strict=False)]
        return [windows[begin:end] for begin, end in zip(rows, rows[1:], strict=False)]


def _no_lists() -> pa.ChunkedArray:
    import pyarrow as pa

    return pa.chunked_array([], pa.list_(pa.list_(pa.int32())))


def read_index(store: Store, snapshot: Manifest) -> pa.Table:
    """Return a snapshot's index with where each row came from: `source` and `row` as delivered, and `batch`
    (a key of its metadata `parts`).
    """
    import pyarrow.parquet as pq

    folder = store.folder(snapshot)
    index = pq.read_table(folder / "index.parquet")
    places = pq.read_table(folder / "places.parquet", columns=["source", "row", "batch"])
    for name in places.column_names:
        index = index.append_column(name, places[name])
    return index


def read_rows(path: Path, column: str, positions: np.ndarray) -> pa.ChunkedArray:
    """Return a column's values at positions, in that order; row groups without one are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        group = np.searchsorted(starts, positions, "right") - 1
        order = np.argsort(group, kind="stable")
        parts = []
        for n in np.unique(group).tolist():
            of_group = positions[order[group[order] == n]]
            # One column: handing its pages to threads takes longer than decoding them.
            parts += (
                file.read_row_group(n, columns=[column], use_threads=False)[column]
                .take(pa.array(of_group - starts[n]))
                .chunks
            )
        kind = file.schema_arrow.field(column).type
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pa.chunked_array(parts, kind).take(pa.array(back))
