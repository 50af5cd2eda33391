"""A snapshot read again: its splits with texts and chunks, its conversations, its packed training rows.

Training rows are a table of `datasets`, one row a chunk, that all processes of a machine map from one file:
they take no memory of a process, and may be larger than memory.
"""

import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.artifacts import CHUNKS_COLUMN, CHUNKS_FILE
from fullft_assets.snapshot.all_rows import SplitName
from fullft_assets.snapshot.frozen_batches import (
    FrozenRows,
    by_batch,
    drawn_folder,
    find_rows,
    read_index,
    steady,
)
from fullft_assets.snapshot.metadata import SnapshotMetadata
from fullft_assets.snapshot.packing import Packing
from fullft_assets.store import Manifest, Store, sync
from fullft_assets.store.disk import one_at_a_time


@dataclass(frozen=True)
class Split:
    """The rows of one split, aligned by position.

    Attributes:
        ids, texts, groups: one a row.
        labels: what is learned, as positions in the label order: int64 [n] for one label a row; bool [n,
            labels] where a row may have several; all 0 for the tasks without labels.
        chunks: token ids of each row's chunks: lists, and arrays [tokens] in the split `train`.
        marks: aligned with the chunks for the tasks sft and token_classification (see `chunks.schema`), else
            None.
        span_labels: token_classification: the labels of each row's spans, as positions in the label order,
            else None.
        spans: token_classification: each row's spans as (start, end exclusive, position of the label), in
            characters, else None.
    """

    ids: list[str]
    texts: list[str]
    labels: np.ndarray
    groups: list[str]
    chunks: list[list[Any]]
    marks: list[list[Any]] | None = None
    span_labels: list[list[int]] | None = None
    spans: list[list[tuple[int, int, int]]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, positions: Sequence[int] | np.ndarray) -> "Split":
        """Return the rows at the given positions, in that order."""
        pick = [int(p) for p in positions]
        return Split(
            [self.ids[p] for p in pick],
            [self.texts[p] for p in pick],
            self.labels[pick],
            [self.groups[p] for p in pick],
            [self.chunks[p] for p in pick],
            None if self.marks is None else [self.marks[p] for p in pick],
            None if self.span_labels is None else [self.span_labels[p] for p in pick],
            None if self.spans is None else [self.spans[p] for p in pick],
        )


def label_names(snapshot: Manifest) -> list[str]:
    """Return the label order of a snapshot: the order of the model's outputs."""
    return SnapshotMetadata.of(snapshot).labels


def load_split(store: Store, snapshot: Manifest, name: SplitName, *, chunks: bool = True) -> Split:
    """Read one split's texts and chunks from the artifacts that the snapshot froze; without chunks each row
    has none.

    Raises:
        StoreError: one of them is gone, or was rewritten since (see `frozen_batches`).
    """
    with steady(snapshot):
        index = _index_of(store, snapshot, name)
        rows = find_rows(store, snapshot, index, with_chunks=chunks)
        texts = rows.values("text")
        # Training rows may be millions.
        as_arrays = name == "train"
        of_chunks = rows.chunks(as_arrays=as_arrays) if chunks else [[] for _ in texts]
        marks = rows.chunks("marks", as_arrays=as_arrays) if chunks else []
    spans = _spans(index, label_names(snapshot))
    return Split(
        index["id"].to_pylist(),
        texts,
        _label_array(index, label_names(snapshot)),
        index["group"].to_pylist(),
        of_chunks,
        marks if any(marks) else None,
        None if spans is None else [[label for _, _, label in row] for row in spans],
        spans,
    )


def _index_of(store: Store, snapshot: Manifest, name: SplitName) -> pa.Table:

    return read_index(store, snapshot).filter(pc.field("split") == name)


def load_values(store: Store, snapshot: Manifest, name: SplitName, column: str) -> dict[str, Any]:
    """Return a column of `documents.schema` for the rows of one split, by the row's id."""
    index = _index_of(store, snapshot, name)
    return dict(
        zip(
            index["id"].to_pylist(),
            find_rows(store, snapshot, index, with_chunks=False).values(column),
            strict=True,
        )
    )


def _label_array(index: pa.Table, names: list[str]) -> np.ndarray:

    if "label" in index.column_names:
        return pc.index_in(index["label"], value_set=pa.array(names, pa.string())).to_numpy().astype(np.int64)
    if "labels" in index.column_names:
        lists = index["labels"].combine_chunks()
        has_label = np.zeros((len(index), len(names)), bool)
        code = pc.index_in(lists.flatten(), value_set=pa.array(names, pa.string())).to_numpy(
            zero_copy_only=False
        )
        has_label[pc.list_parent_indices(lists).to_numpy(), code.astype(np.int64)] = True
        return has_label
    return np.zeros(len(index), np.int64)


def _spans(index: pa.Table, names: list[str]) -> list[list[tuple[int, int, int]]] | None:
    if "spans" not in index.column_names:
        return None
    position = {name: n for n, name in enumerate(names)}
    return [
        [(span["start"], span["end"], position[span["label"]]) for span in spans or []]
        for spans in index["spans"].to_pylist()
    ]


@dataclass(frozen=True)
class Training:
    """The packed training rows of the tasks sft and language_modeling.

    Attributes:
        chunks: token ids of each chunk: those of the training rows, batch by batch, then the replayed
            documents'; a column that is mapped from a file, or lists.
        marks: aligned with the chunks, 1 (or true) where a token is trained; None: all are.
        packing: the plan; its `source` is a position in `chunks`.
        num_task_chunks: the first ones, that are no replayed documents'; by default all.
    """

    chunks: pa.ChunkedArray | list[list[int]]
    marks: pa.ChunkedArray | list[list[int]] | None
    packing: Packing
    num_task_chunks: int = sys.maxsize


def load_training(store: Store, snapshot: Manifest) -> Training:
    """Read the packed training rows that the snapshot froze.

    Raises:
        StoreError: an artifact of them is gone, or was rewritten since (see `frozen_batches`).
    """

    capacity = SnapshotMetadata.of(snapshot).packing_capacity
    assert capacity is not None, "its training rows are packed"
    with steady(snapshot):
        rows = find_rows(store, snapshot, _index_of(store, snapshot, "train"))
        table = _map(store, snapshot, rows, drawn_folder(store, snapshot, "replay"))
        plan = Packing.from_table(pq.read_table(store.folder(snapshot) / "packing.parquet"), capacity)
    # The plan knows chunks in the order of their rows in the index.
    index_row = table["row"].to_numpy()
    return Training(
        table["ids"],
        table["marks"] if table["marks"].null_count < len(table) else None,
        replace(plan, source=np.argsort(index_row, kind="stable")[plan.source]),
        int((index_row < len(rows.places)).sum()),
    )


def table_folder(store: Store, case: str) -> Path:
    """Return the folder on this machine with the table of a use case's training rows."""
    return store.cache_folder / "training_rows" / case


def _map(store: Store, snapshot: Manifest, rows: FrozenRows, replayed: Path | None) -> pa.Table:
    """Return `ids`, `marks` (null: all are trained) and `row` (in the index) of each chunk, mapped from a
    file that the first process of this machine to ask for it writes.
    """
    # It takes a second.
    from datasets import Dataset

    folder = store.make_folder(table_folder(store, snapshot.case))
    path = folder / f"{snapshot.content_digest}.arrow"
    with one_at_a_time(folder / ".lock", store.file_mode):
        with suppress(OSError, pa.ArrowInvalid):  # not written yet, or cut short
            return Dataset.from_file(str(path)).data.table
        for file in folder.glob("*.arrow*"):
            # Who reads the table of another snapshot has it open.
            if not file.name.startswith(path.name):
                file.unlink()
        # Where the file system has no locks, two processes may write it.
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            try:
                _write(partial, rows, replayed, pa.uint16())
            except pa.ArrowInvalid:  # an id is larger
                _write(partial, rows, replayed, pa.int32())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return Dataset.from_file(str(path)).data.table


def _write(path: Path, rows: FrozenRows, replayed: Path | None, kind: pa.DataType) -> None:
    """Write the chunks of the rows as they are stored, some at a time, with each row's number in the index;
    replayed documents count on.
    """
    positions = rows.places["position"].to_numpy()
    files = [
        (rows.chunk_files[batch], positions[numbers], numbers) for batch, numbers in by_batch(rows.places)
    ]
    if replayed is not None:
        all_rows = np.arange(pq.read_metadata(replayed / CHUNKS_FILE).num_rows)
        files.append((replayed / CHUNKS_FILE, all_rows, len(positions) + all_rows))
    schema = pa.schema([("ids", pa.list_(kind)), ("marks", pa.list_(pa.bool_())), ("row", pa.int32())])
    with pa.OSFile(str(path), "wb") as output, pa.ipc.new_stream(output, schema) as writer:
        for file, file_rows, index_rows in files:
            table = pq.ParquetFile(file, memory_map=True)
            index_row = np.full(table.metadata.num_rows, -1)
            index_row[file_rows] = index_rows
            for part in table.iter_batches(512, columns=[CHUNKS_COLUMN, "marks"]):
                row = index_row[: len(part)]
                index_row = index_row[len(part) :]
                part = part.filter(pa.array(row >= 0))
                ids = part[CHUNKS_COLUMN].flatten()
                marks = part["marks"].flatten() if part["marks"].null_count == 0 else pa.nulls(len(ids))
                row = np.repeat(row[row >= 0], pc.list_value_length(part[CHUNKS_COLUMN]))
                writer.write_table(pa.table([ids, marks, row], schema.names).cast(schema))
    sync(path)
