"""The feed of a training: its items in the order of training, planned for the complete run.

A language model is fed the pieces of a packing plan on packed rows, or each piece on a padded row of its own.
The order of the rows is planned from the seed and does not depend on the number of rows a pass: a run that is
resumed, or continues with smaller passes, continues where it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from fullft_assets.models import documents
from fullft_assets.models.token_loss import IGNORED, IS_REPLAYED, IS_TOKEN, PREDICTED, predicted_positions
from fullft_assets.snapshot import Training
from fullft_assets.snapshot.all_rows import expand

#: Tensors, and numbers that are no part of a model's arithmetic.
Batch = dict[str, Any]


@dataclass(frozen=True)
class Feed:
    """Batches in the order of training, and the documents in each forward pass.

    The order does not depend on the size of a pass, so a run that continues with smaller passes finds its
    place.

    Attributes:
        batch: number of a pass -> its batch, `labels` included; the processes take passes in turn.
        num_rows: rows as the batch size counts them, over all epochs.
        lengths: [documents] tokens of each document that attends to itself alone, in the order of training.
        num_predicted: [documents] tokens of it for which the output head computes a loss.
        bounds: [passes + 1] pass i has the documents `bounds[i]` to `bounds[i + 1]`.
        sizes: [passes] tokens of each pass, padding included.
    """

    batch: Callable[[int], Batch]
    num_rows: int
    lengths: np.ndarray
    num_predicted: np.ndarray
    bounds: np.ndarray
    sizes: np.ndarray

    @property
    def num_passes(self) -> int:
        """Forward passes of all processes together."""
        return len(self.bounds) - 1

    def batches(self) -> Iterator[Batch]:
        """Yield the batch of each pass."""
        return map(self.batch, range(self.num_passes))


def first_tokens(batch: Batch, count: int) -> Batch:
    """Return a model's inputs for the first tokens of the batch's first row, to look at its outputs."""
    return {name: batch[name][:1, :count] for name in _READ if name in batch}


def sums_between(values: np.ndarray, bounds: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the sum of the values from each bound to the next; 0 where they are equal."""
    return np.diff(np.concatenate([[0], np.cumsum(values)])[np.asarray(bounds)])


#: What a model reads of a batch, [rows, tokens] each.
_READ = ("input_ids", "position_ids", "attention_mask")

#: Padded rows: pieces are shuffled, then sorted by length within pools of this many batches: random enough,
#: with little padding.
_POOL_BATCHES = 50


def packed(
    pieces: "Pieces",
    rows_a_pass: int,
    epochs: float,
    seed: int,
    pad_id: int,
    *,
    with_replayed: bool = False,
    fills_rows: bool = False,
) -> Feed:
    """Return the feed of packed rows, see `planned_rows` and `collate_packed`; `with_replayed` adds
    `is_replayed` [rows, tokens] to batches.

    Args:
        fills_rows: to the capacity, and not to the longest of a pass: all passes have one shape.
    """
    plan = pieces.plan
    order = planned_rows(plan.num_rows, epochs, seed)
    pieces_of_rows = np.diff(plan.row_offsets)
    numbers = expand(plan.row_offsets[order], pieces_of_rows[order])
    first_pieces = np.concatenate([[0], np.cumsum(pieces_of_rows[order])])
    starts = np.append(np.arange(0, len(order), rows_a_pass), len(order))
    tokens = sums_between(plan.length[numbers], first_pieces)
    least_tokens = plan.capacity if fills_rows else 0

    def batch(number: int) -> Batch:
        return collate_packed(
            [_row(pieces, plan.row(row)) for row in order[starts[number] : starts[number + 1]]],
            pad_id,
            least_tokens,
            with_replayed=with_replayed,
        )

    return Feed(
        batch=batch,
        num_rows=len(order),
        lengths=plan.length[numbers],
        num_predicted=pieces.num_predicted[numbers],
        bounds=first_pieces[starts],
        sizes=np.maximum(np.maximum.reduceat(tokens, starts[:-1]), least_tokens) * np.diff(starts),
    )


def padded(
    pieces: "Pieces",
    rows_a_pass: int,
    rows_a_batch: int,
    epochs: float,
    seed: int,
    pad_id: int,
    *,
    with_replayed: bool = False,
) -> Feed:
    """Return the feed of padded rows of similar length, see `planned_batches` and `collate_padded`;
    `with_replayed` as for `packed`.

    A pass has at most as many tokens, padding included, as `rows_a_pass` packed rows have room for.
    """
    length = pieces.plan.length
    batches = planned_batches(length, pieces.plan.capacity, rows_a_batch, epochs, seed)
    passes = []
    for batch in batches:
        size = rows_a_pass * (pieces.plan.capacity // int(length[batch].max()))
        passes += [batch[start : start + size] for start in range(0, len(batch), size)]
    numbers = np.concatenate(passes)
    return Feed(
        batch=lambda number: collate_padded(
            [_row(pieces, slice(piece, piece + 1)) for piece in passes[number]],
            pad_id,
            with_replayed=with_replayed,
        ),
        num_rows=rows_a_batch * len(batches),
        lengths=length[numbers],
        num_predicted=pieces.num_predicted[numbers],
        bounds=np.concatenate([[0], np.cumsum([len(numbers) for numbers in passes])]),
        sizes=np.array([len(numbers) * int(length[numbers].max()) for numbers in passes]),
    )


class Pieces:
    """The pieces of a packing plan, each with its token ids and labels, read where they are asked for."""

    def __init__(self, training: Training):
        self.plan = training.packing
        self._chunks = _column(training.chunks)
        self._marks = None if training.marks is None else _column(training.marks)
        self._num_task_chunks = training.num_task_chunks

    def __len__(self) -> int:
        return len(self.plan.source)

    def replayed(self, number: int) -> np.ndarray:
        """Return [t] bool: whether a piece's tokens belong to a replayed document."""
        return np.full(self.plan.length[number], self.plan.source[number] >= self._num_task_chunks)

    def _read(self, column: pa.ChunkedArray, number: int) -> np.ndarray:
        start = self.plan.start[number]
        # A list of an Arrow file is read in place, its bits are unpacked.
        return column[int(self.plan.source[number])].values.to_numpy(zero_copy_only=False)[
            start : start + self.plan.length[number]
        ]

    def ids(self, number: int) -> np.ndarray:
        """Return a piece's token ids [t]."""
        return self._read(self._chunks, number)

    def labels(self, number: int) -> np.ndarray:
        """Return its labels [t], int32: the token's id where it is trained, else IGNORED."""
        labels = self.ids(number).astype(np.int32)
        if self._marks is not None:
            labels[self._read(self._marks, number) != 1] = IGNORED
        # No token of its row predicts the first token of a piece.
        labels[0] = IGNORED
        return labels

    @cached_property
    def num_predicted(self) -> np.ndarray:
        """[pieces] tokens of each that are predicted."""
        counts = self.plan.length - 1
        if self._marks is not None:
            # In the order of the file, which may be larger than memory.
            for number in np.argsort(self.plan.source, kind="stable"):
                counts[number] = np.count_nonzero(self._read(self._marks, number)[1:] == 1)
        return counts

    @property
    def largest_id(self) -> int:
        """Largest token id."""
        return pc.max(pc.list_flatten(self._chunks)).as_py()


def _column(lists: pa.ChunkedArray | list[list[int]]) -> pa.ChunkedArray:
    return pa.chunked_array([lists], pa.list_(pa.int32())) if isinstance(lists, list) else lists


def _row(pieces: Pieces, part: slice) -> dict[str, np.ndarray]:
    """Return `ids`, `labels`, `positions` and `replayed` [t] of a row with these pieces of the plan."""
    numbers = range(part.start, part.stop)
    return {
        "ids": np.concatenate([pieces.ids(number) for number in numbers]),
        "labels": np.concatenate([pieces.labels(number) for number in numbers]),
        "positions": np.concatenate([np.arange(length) for length in pieces.plan.length[part]]),
        "replayed": np.concatenate([pieces.replayed(number) for number in numbers]),
    }


def collate_packed(
    rows: Sequence[Mapping[str, np.ndarray]],
    pad_id: int,
    least_tokens: int = 0,
    *,
    with_replayed: bool = False,
) -> Batch:
    """Return `input_ids`, `labels` and `position_ids` of a batch of rows [rows, tokens], `is_replayed` if
    asked for, their `predicted_positions` and the `documents.bounds`: no attention mask, but `is_token` where
    there is padding.

    Rows shorter than the longest one, or than `least_tokens`, are filled up with a document of padding, which
    is not trained on.
    """
    fill = {"ids": pad_id, "labels": IGNORED, "positions": 0, "replayed": 0}
    tables = {name: _filled(rows, name, value, least_tokens) for name, value in fill.items()}
    for row, positions in zip(rows, tables["positions"], strict=True):
        padding = positions[len(row["ids"]) :]
        padding[:] = np.arange(len(padding))
    names = {"ids": "input_ids", "labels": "labels", "positions": "position_ids"}
    batch = {names[name]: torch.from_numpy(tables[name].astype(np.int64)) for name in names}
    batch |= documents.bounds(tables["positions"])
    batch[PREDICTED] = predicted_positions(tables["labels"])
    lengths = np.array([len(row["ids"]) for row in rows])[:, None]
    if lengths.min() < tables["ids"].shape[1]:
        batch[IS_TOKEN] = torch.from_numpy(np.arange(tables["ids"].shape[1]) < lengths)
    if with_replayed:
        batch[IS_REPLAYED] = torch.from_numpy(tables["replayed"].astype(bool))
    return batch


def _filled(
    rows: Sequence[Mapping[str, np.ndarray]], name: str, fill: int, least_tokens: int = 0
) -> np.ndarray:
    table = np.full((len(rows), max(least_tokens, *(len(row["ids"]) for row in rows))), fill, np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row[name])] = row[name]
    return table


def collate_padded(
    rows: Sequence[Mapping[str, np.ndarray]], pad_id: int, *, with_replayed: bool = False
) -> Batch:
    """Return `input_ids`, `labels` and `attention_mask` [rows, tokens] of a batch of rows, `is_replayed` if
    asked for, and their `predicted_positions`.
    """
    tables = {"input_ids": _filled(rows, "ids", pad_id), "labels": _filled(rows, "labels", IGNORED)}
    lengths = np.array([len(row["ids"]) for row in rows])
    is_token = np.arange(lengths.max()) < lengths[:, None]
    batch = {name: torch.from_numpy(table) for name, table in tables.items()}
    batch["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
    batch[PREDICTED] = predicted_positions(tables["labels"])
    if with_replayed:
        batch[IS_REPLAYED] = torch.from_numpy(_filled(rows, "replayed", 0).astype(bool))
    return batch


def planned_rows(num_rows: int, epochs: float, seed: int) -> np.ndarray:
    """Return the rows to train on, in order, for all epochs together: first in the plan's order, then
    shuffled anew each time.
    """
    total = max(1, round(epochs * num_rows))
    generator = np.random.default_rng(seed)
    return np.concatenate(
        [np.arange(num_rows), *[generator.permutation(num_rows) for _ in range((total - 1) // num_rows)]]
    )[:total]


def planned_batches(
    lengths: np.ndarray, capacity: int, rows_a_batch: int, epochs: float, seed: int
) -> list[np.ndarray]:
    """Return the pieces of each batch of similar length, longest first, for all epochs together in random
    order.

    If a packed row has room for n pieces as long as the batch's longest, a batch has n pieces for each row.
    Pieces that do not fill a batch move to the next pool, and at the end to a last, smaller batch. The last
    part of an epoch is a draw of pieces.
    """
    generator = np.random.default_rng(seed)
    total = max(1, round(epochs * len(lengths)))
    order = np.concatenate([generator.permutation(len(lengths)) for _ in range(-(-total // len(lengths)))])[
        :total
    ]
    pool_size = _POOL_BATCHES * rows_a_batch * max(1, capacity // int(lengths.mean()))
    batches_in_order: list[np.ndarray] = []
    remainder = order[:0]
    for start in range(0, total, pool_size):
        pool = np.concatenate([remainder, order[start : start + pool_size]])
        pool = pool[np.argsort(-lengths[pool], kind="stable")]
        batches = []
        while len(pool):
            size = rows_a_batch * (capacity // int(lengths[pool[0]]))
            if len(pool) < size:
                break
            batches.append(pool[:size])
            pool = pool[size:]
        remainder = pool
        batches_in_order += [batches[number] for number in generator.permutation(len(batches))]
    return [*batches_in_order, remainder] if len(remainder) else batches_in_order
