"""The feed of a training: its items in the order of training, planned for the complete run, and a thread that
collates the next batches while a step is computed.

A language model is fed the pieces of a packing plan on packed rows, or each piece on a padded row of its own.
The order of the rows is planned from the seed and does not depend on the number of rows a pass: a run that is
resumed, or continues with smaller passes, continues where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from fullft_assets.models.token_loss import IGNORED
from fullft_assets.snapshot import Training
from fullft_assets.snapshot.near_text.shingles import expand

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Feed:
    """Items in the order of training, and the documents in each forward pass.

    The order does not depend on the size of a pass, so a run that continues with smaller passes finds its
    place.

    Attributes:
        dataset: the items; the processes take passes in turn.
        collate: a list of items -> the batch of a pass, `labels` included.
        num_rows: rows as the batch size counts them, over all epochs.
        lengths: [documents] tokens of each document that attends to itself alone, in the order of training.
        num_predicted: [documents] tokens of it for which the output head computes a loss.
        bounds: [passes + 1] pass i has the documents `bounds[i]` to `bounds[i + 1]`.
        sizes: [passes] tokens of each pass, padding included.
    """

    dataset: Any
    collate: Callable[[list[Any]], Batch]
    items_a_pass: int
    num_rows: int
    lengths: np.ndarray
    num_predicted: np.ndarray
    bounds: np.ndarray
    sizes: np.ndarray

    @property
    def num_passes(self) -> int:
        """Forward passes of all processes together."""
        return len(self.bounds) - 1

    def batch(self, number: int) -> Batch:
        """Return the batch of a pass."""
        start = number * self.items_a_pass
        return self.collate(
            [self.dataset[i] for i in range(start, min(start + self.items_a_pass, len(self.dataset)))]
        )

    def batches(self) -> Iterator[Batch]:
        """Yield the batch of each pass."""
        return map(self.batch, range(self.num_passes))

    def bounds_of_steps(self, passes_a_step: int) -> np.ndarray:
        """Return [steps + 1] the documents of each optimizer step, as `bounds`."""
        return np.append(self.bounds[: self.num_passes : passes_a_step], self.bounds[-1])


def sums_between(values: np.ndarray, bounds: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the sum of the values from each bound to the next; 0 where they are equal."""
    return np.diff(np.concatenate([[0], np.cumsum(values)])[np.asarray(bounds)])


class Prefetcher:
    """The items of a feed as a dataset whose batches are collated already: Trainer gets `already_collated` as
    its collator.

    It uses a thread and not a process: a thread shares the arrays and ends with this process, whatever ends
    it. It draws no random number.

    Args:
        depth: passes collated ahead; Trainer asks for all passes of a step at once.
    """

    def __init__(self, feed: Feed, depth: int):
        self._feed, self._depth = feed, depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._batches: dict[tuple[int, ...], Future[Batch]] = {}
        self._last: int | None = None

    def __len__(self) -> int:
        return len(self._feed.dataset)

    def __getitem__(self, item: int) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[int]) -> Batch:
        """Return the batch of these items, and start to collate those that will be asked for next."""
        asked = tuple(items)
        batch = self._batches.pop(asked, None) or self._thread.submit(self._collate, asked)
        # Several processes take turns: the distance to the next pass is the distance to the last one.
        stride = len(asked) if self._last is None else asked[0] - self._last
        self._last = asked[0]
        expected = [self._after(asked, stride * n) for n in range(1, self._depth + 1)] if stride > 0 else []
        self._batches = {
            items: self._batches.get(items) or self._thread.submit(self._collate, items)
            for items in dict.fromkeys(expected)
            if items
        }
        return batch.result()

    def _after(self, asked: tuple[int, ...], distance: int) -> tuple[int, ...]:
        size = max(len(asked), self._feed.items_a_pass)
        return tuple(range(asked[0] + distance, min(asked[0] + distance + size, len(self))))

    def _collate(self, items: Sequence[int]) -> Batch:
        return self._feed.collate([self._feed.dataset[item] for item in items])


def already_collated(batch: Batch) -> Batch:
    """Return a batch of a `Prefetcher` as it is."""
    return batch


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
        dataset=_Items(len(order), lambda place: _packed_row(pieces, order[place])),
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
        dataset=_Items(len(passes), lambda place: _padded_pass(pieces, passes[place])),
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


@dataclass(frozen=True)
class _Items(Dataset):
    """Items that are made when they are asked for, by their place in the order of training."""

    count: int
    make: Callable[[int], Any]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Any:
        return self.make(place)


def _packed_row(pieces: Pieces, row: int) -> dict[str, np.ndarray]:
    """Return `ids`, `labels`, `positions` and `replayed` of a packed row [t]; `NO_ROW` is empty."""
    if row == NO_ROW:
        return _EMPTY
    chosen = pieces.plan.row(row)
    numbers = range(chosen.start, chosen.stop)
    return {
        "replayed": np.concatenate([pieces.replayed(number) for number in numbers]),
        "ids": np.concatenate([pieces.ids(number) for number in numbers]),
        "labels": np.concatenate([pieces.labels(number) for number in numbers]),
        "positions": np.concatenate([np.arange(length) for length in pieces.plan.length[chosen]]),
    }


def _padded_pass(pieces: Pieces, numbers: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Return `ids`, `labels` and `replayed` of each piece of a complete pass, on a padded row of its own; an
    empty row of a pass without pieces, which only keeps processes in step.
    """
    rows = [
        {"ids": pieces.ids(n), "labels": pieces.labels(n), "replayed": pieces.replayed(n)} for n in numbers
    ]
    return rows or [_EMPTY]


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
        tables = {name: np.concatenate([row[name] for row in rows])[None] for name in fill}
    else:
        tables = {name: _filled(rows, name, value) for name, value in fill.items()}
        for row, positions in zip(rows, tables["positions"], strict=True):
            padding = positions[len(row["ids"]) :]
            padding[:] = np.arange(len(padding))
    names = {"ids": "input_ids", "labels": "labels", "positions": "position_ids"}
    batch = {names[name]: torch.from_numpy(tables[name].astype(np.int64)) for name in names}
    if with_replayed:
        batch[IS_REPLAYED] = torch.from_numpy(tables["replayed"].astype(bool))
    return batch


def _filled(rows: Sequence[Mapping[str, np.ndarray]], name: str, fill: int) -> np.ndarray:
    table = np.full((len(rows), max(len(row["ids"]) for row in rows)), fill, np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row[name])] = row[name]
    return table


def collate_padded(
    passes: Sequence[Sequence[Mapping[str, np.ndarray]]], pad_id: int, *, with_replayed: bool = False
) -> Batch:
    """Return `input_ids`, `labels` and `attention_mask` [rows, tokens] of the one given pass, `is_replayed`
    if asked for.
    """
    (rows,) = passes
    tables = {"input_ids": _filled(rows, "ids", pad_id), "labels": _filled(rows, "labels", IGNORED)}
    lengths = np.array([len(row["ids"]) for row in rows])
    is_token = np.arange(lengths.max()) < lengths[:, None]
    batch = {name: torch.from_numpy(table) for name, table in tables.items()}
    batch["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
    if with_replayed:
        batch[IS_REPLAYED] = torch.from_numpy(_filled(rows, "replayed", 0).astype(bool))
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
