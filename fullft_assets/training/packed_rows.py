"""The rows that a language model is trained on: the pieces of a packing plan on packed rows, or each piece on
a padded row of its own.

The order of the rows is planned from the seed and does not depend on the number of rows a pass: a run that is
resumed, or continues with smaller passes, continues where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Dataset

from fullft_assets.models.token_loss import IGNORED
from fullft_assets.snapshot import Training
from fullft_assets.snapshot.all_rows import expand
from fullft_assets.training.feed import Batch, Feed, sums_between

#: In a batch, if asked for: [rows, tokens] bool, whether a token belongs to a replayed document.
IS_REPLAYED = "is_replayed"

#: Padded rows: pieces are shuffled, then sorted by length within pools of this many batches: random enough,
#: with little padding.
_POOL_BATCHES = 50

#: In place of the number of a row. Several processes must get the same number of passes; the last ones are
#: filled with empty rows rather than with the first rows once more.
NO_ROW = -1
_EMPTY = {
    "ids": np.zeros(1, np.int32),
    "labels": np.full(1, IGNORED, np.int32),
    "positions": np.zeros(1, np.int64),
    "replayed": np.zeros(1, bool),
}


def packed(
    pieces: Pieces,
    rows_a_pass: int,
    epochs: float,
    seed: int,
    pad_id: int,
    *,
    num_processes: int = 1,
    is_flat: bool = False,
    with_replayed: bool = False,
) -> Feed:
    """Return the feed of packed rows, see `planned_rows` and `collate_packed`; `with_replayed` adds
    `is_replayed` [rows, tokens] to batches.
    """
    plan = pieces.plan
    order = planned_rows(plan.num_rows, epochs, seed)
    pieces_of_rows = np.diff(plan.row_offsets)
    numbers = expand(plan.row_offsets[order], pieces_of_rows[order])
    count, num_rows = pieces_of_rows[order], len(order)
    if num_processes > 1:
        missing = -num_rows % (rows_a_pass * num_processes)
        order, count = (
            np.append(order, np.full(missing, NO_ROW)),
            np.append(count, np.zeros(missing, np.int64)),
        )
    starts = np.append(np.arange(0, len(order), rows_a_pass), len(order))
    tokens = sums_between(plan.length[numbers], np.concatenate([[0], np.cumsum(count)]))
    longest, rows = np.maximum.reduceat(tokens, starts[:-1]), np.diff(starts)
    return Feed(
        dataset=PackedRows(pieces, order),
        collate=lambda items: collate_packed(items, pad_id, is_flat=is_flat, with_replayed=with_replayed),
        items_a_pass=rows_a_pass,
        num_rows=num_rows,
        lengths=plan.length[numbers],
        num_predicted=pieces.num_predicted[numbers],
        bounds=np.concatenate([[0], np.cumsum(count)])[starts],
        sizes=sums_between(tokens, starts) if is_flat else longest * rows,
    )


def padded(
    pieces: Pieces,
    rows_a_pass: int,
    rows_a_batch: int,
    epochs: float,
    seed: int,
    pad_id: int,
    *,
    num_processes: int = 1,
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
    passes += [np.zeros(0, np.int64)] * (-len(passes) % num_processes)
    numbers = np.concatenate(passes)
    return Feed(
        dataset=PaddedPasses(pieces, passes),
        collate=lambda items: collate_padded(items, pad_id, with_replayed=with_replayed),
        items_a_pass=1,
        num_rows=rows_a_batch * len(batches),
        lengths=length[numbers],
        num_predicted=pieces.num_predicted[numbers],
        bounds=np.concatenate([[0], np.cumsum([len(numbers) for numbers in passes])]),
        sizes=np.array([len(numbers) * int(length[numbers].max(initial=0)) for numbers in passes]),
    )


class Pieces:
    """The pieces of a packing plan, each with its token ids and labels."""

    def __init__(self, training: Training):
        self.plan = training.packing
        lengths = np.fromiter(map(len, training.windows), np.int64, len(training.windows))
        self._ids = _join(training.windows)
        marks = None if training.marks is None else _join(training.marks)
        begin = (np.cumsum(lengths) - lengths)[self.plan.source] + self.plan.start
        self._labels = np.where(marks == 1, self._ids, IGNORED) if marks is not None else self._ids.copy()
        # No token of its row predicts the first token of a piece.
        self._labels[begin] = IGNORED
        self._begin, self._end = begin, begin + self.plan.length

        num_task = training.num_task_windows
        self._is_replayed = (
            np.zeros(len(begin), bool) if num_task is None else np.asarray(self.plan.source) >= num_task
        )

    def __len__(self) -> int:
        return len(self._begin)

    def replayed(self, number: int) -> np.ndarray:
        """Return [t] bool: whether a piece's tokens belong to a replayed document."""
        return np.full(self._end[number] - self._begin[number], self._is_replayed[number])

    def ids(self, number: int) -> np.ndarray:
        """Return a piece's token ids [t], int32."""
        return self._ids[self._begin[number] : self._end[number]]

    def labels(self, number: int) -> np.ndarray:
        """Return its labels [t], int32: the token's id where it is trained, else IGNORED."""
        return self._labels[self._begin[number] : self._end[number]]

    @cached_property
    def num_predicted(self) -> np.ndarray:
        """[pieces] tokens of each that are predicted."""
        total = np.concatenate([[0], np.cumsum(self._labels != IGNORED)])
        return total[self._end] - total[self._begin]

    @property
    def largest_id(self) -> int:
        """Largest token id."""
        return int(self._ids.max())


def _join(lists: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *(np.asarray(values, np.int32) for values in lists)])


class PackedRows(Dataset):
    """Packed rows in the order of training; an item is `ids`, `labels`, `positions` and `replayed` of one row
    [t]. `NO_ROW` is empty.
    """

    def __init__(self, pieces: Pieces, order: np.ndarray):
        self._pieces, self._order = pieces, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> dict[str, np.ndarray]:
        if self._order[place] == NO_ROW:
            return _EMPTY
        plan = self._pieces.plan
        chosen = plan.row(self._order[place])
        numbers = range(chosen.start, chosen.stop)
        return {
            "replayed": np.concatenate([self._pieces.replayed(number) for number in numbers]),
            "ids": np.concatenate([self._pieces.ids(number) for number in numbers]),
            "labels": np.concatenate([self._pieces.labels(number) for number in numbers]),
            "positions": np.concatenate([np.arange(length) for length in plan.length[chosen]]),
        }


def collate_packed(
    rows: Sequence[Mapping[str, np.ndarray]],
    pad_id: int,
    *,
    is_flat: bool = False,
    with_replayed: bool = False,
) -> Batch:
    """Return `input_ids`, `labels` and `position_ids` of a batch of rows [rows, tokens], `is_replayed` if
    asked for: no attention mask.

    Shorter rows are filled up with a document of padding, which is not trained on.

    Args:
        is_flat: join the rows to a single one [1, tokens] instead.
    """
    fill = {"ids": pad_id, "labels": IGNORED, "positions": 0, "replayed": 0}
    if is_flat:
        joined = {name: np.concatenate([row[name] for row in rows])[None] for name in fill}
    else:
        longest = max(len(row["ids"]) for row in rows)
        shape = (len(rows), longest)
        joined = {name: np.full(shape, value, np.int64) for name, value in fill.items()}
        for number, row in enumerate(rows):
            length = len(row["ids"])
            for name, values in joined.items():
                values[number, :length] = row[name]
            joined["positions"][number, length:] = np.arange(longest - length)
    replayed = torch.from_numpy(joined.pop("replayed").astype(bool))
    extra = {IS_REPLAYED: replayed} if with_replayed else {}
    names = {"ids": "input_ids", "labels": "labels", "positions": "position_ids"}
    return extra | {names[name]: torch.from_numpy(values.astype(np.int64)) for name, values in joined.items()}


class PaddedPasses(Dataset):
    """Pieces of similar length, each on a padded row of its own; an item is a complete pass: `ids`, `labels`
    and `replayed` of each piece.

    Args:
        passes: numbers of the pieces of each pass; none of a pass that only keeps processes in step.
    """

    def __init__(self, pieces: Pieces, passes: Sequence[np.ndarray]):
        self._pieces, self._passes = pieces, passes

    def __len__(self) -> int:
        return len(self._passes)

    def __getitem__(self, place: int) -> list[dict[str, np.ndarray]]:
        pieces = self._pieces
        items = [
            {"ids": pieces.ids(n), "labels": pieces.labels(n), "replayed": pieces.replayed(n)}
            for n in self._passes[place]
        ]
        return items or [_EMPTY]


def collate_padded(
    passes: Sequence[Sequence[Mapping[str, np.ndarray]]], pad_id: int, *, with_replayed: bool = False
) -> Batch:
    """Return `input_ids`, `labels` and `attention_mask` [rows, tokens] of the one given pass, `is_replayed`
    if asked for.
    """
    (rows,) = passes
    shape = (len(rows), max(len(row["ids"]) for row in rows))
    batch = {
        "input_ids": torch.full(shape, pad_id, dtype=torch.long),
        "labels": torch.full(shape, IGNORED, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    if with_replayed:
        batch[IS_REPLAYED] = torch.zeros(shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        length = len(row["ids"])
        if with_replayed:
            batch[IS_REPLAYED][number, :length] = torch.from_numpy(row["replayed"])
        batch["input_ids"][number, :length] = torch.from_numpy(row["ids"])
        batch["labels"][number, :length] = torch.from_numpy(row["labels"])
        batch["attention_mask"][number, :length] = 1
    return batch


def planned_rows(num_rows: int, epochs: float, seed: int) -> np.ndarray:
    """Return the rows to train on, in order, for all epochs together: first in the plan's order, then
    shuffled anew each time.
    """
    total = max(1, round(epochs * num_rows))
    generator = np.random.default_rng(seed)
    later = [generator.permutation(num_rows) for _ in range((total - 1) // num_rows)]
    return np.concatenate([np.arange(num_rows), *later])[:total]


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
    drawn = np.concatenate([generator.permutation(len(lengths)) for _ in range(-(-total // len(lengths)))])[
        :total
    ]
    pool_size = _POOL_BATCHES * rows_a_batch * max(1, capacity // int(lengths.mean()))
    planned: list[np.ndarray] = []
    carried = drawn[:0]
    for start in range(0, total, pool_size):
        pool = np.concatenate([carried, drawn[start : start + pool_size]])
        pool = pool[np.argsort(-lengths[pool], kind="stable")]
        batches = []
        while len(pool):
            size = rows_a_batch * (capacity // int(lengths[pool[0]]))
            if len(pool) < size:
                break
            batches.append(pool[:size])
            pool = pool[size:]
        carried = pool
        planned += [batches[number] for number in generator.permutation(len(batches))]
    return [*planned, carried] if len(carried) else planned
