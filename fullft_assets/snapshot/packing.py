"""Packing: which texts share a row of fixed length, planned ahead as indices.

Best-fit-decreasing (Johnson et al. 1974, "Worst-case performance bounds for simple one-dimensional packing
algorithms"): the longest piece first, each into the fullest row that still has room. Training reads the plan
in order, so a run that stops resumes at exactly the row that it was at, and no token is lost or read twice.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Packing:
    """Rows of pieces of texts, in the order of training.

    Attributes:
        source: [p] int64, position of the text that each piece is cut from; the pieces of a row are side by
            side.
        start: [p] int64, first token of the piece in its text.
        length: [p] int64, tokens of the piece, at least 1.
        row_offsets: [r + 1] int64; row i holds the pieces `row_offsets[i]` to `row_offsets[i + 1]`.
        capacity: most tokens in a row.
    """

    source: np.ndarray
    start: np.ndarray
    length: np.ndarray
    row_offsets: np.ndarray
    capacity: int

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.row_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """How many tokens the rows hold together."""
        return int(self.length.sum())

    @property
    def fill(self) -> float:
        """Share of the rows' room that holds tokens; 1 where there is no row."""
        return self.num_tokens / (self.num_rows * self.capacity) if self.num_rows else 1.0

    def row(self, number: int) -> slice:
        """Return where the pieces of a row are."""
        return slice(int(self.row_offsets[number]), int(self.row_offsets[number + 1]))

    def first(self, num_rows: int) -> "Packing":
        """Return the first rows alone."""
        offsets = self.row_offsets[: num_rows + 1]
        pieces = slice(0, int(offsets[-1]))
        return Packing(self.source[pieces], self.start[pieces], self.length[pieces], offsets, self.capacity)

    def to_table(self) -> pa.Table:
        """Return one row a piece, in order: `row`, `source`, `start`, `length` (int64, int64, int64,
        int32).
        """

        return pa.table(
            {
                "row": np.repeat(np.arange(self.num_rows), np.diff(self.row_offsets)),
                "source": self.source,
                "start": self.start,
                "length": self.length.astype(np.int32),
            }
        )

    @classmethod
    def from_table(cls, table: pa.Table, capacity: int) -> "Packing":
        """Return the packing that `to_table` wrote."""
        offsets = np.append(0, np.cumsum(np.bincount(table["row"].to_numpy())))
        pieces = (table[name].to_numpy().astype(np.int64) for name in _Pieces._fields)
        return cls(*pieces, row_offsets=offsets, capacity=capacity)


class _Pieces(NamedTuple):
    """The first columns of a `Packing`, in any order of rows."""

    source: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def take(self, picks: np.ndarray) -> "_Pieces":
        return _Pieces(*(values[picks] for values in self))


def plan(lengths: np.ndarray, capacity: int, seed: int, *, cut_to_fill: bool = False) -> Packing:
    """Pack texts into rows: every token in exactly one place, no row over its capacity, equal arguments equal
    plan.

    A text longer than a row is cut into pieces: whole rows, and its rest. The seed decides which of equally
    long pieces share a row, and the order of the rows, so that the order of training is random.

    Where lengths vary, as those of texts do (lognormal), rows are at least 99.5% full over all from a few
    hundred rows on; fewer rows are as few as the tokens need, or one or two more, of which the last is open.
    Best-fit-decreasing takes at most 11/9 of the fewest rows possible, whatever the lengths; pieces of over
    half a row are alone in theirs. With `cut_to_fill` there are as few rows as the tokens need: those that
    best fit left emptiest are cut up to fill the others.

    Args:
        lengths: [n] integers, tokens of each text; a text without tokens is in no row.
        capacity: tokens in a row.
        seed: of the order.
        cut_to_fill: whether more texts than the long ones may be cut.
    """
    assert capacity >= 1 and not (lengths < 0).any(), "a row has room, and a text has a length"
    generator = np.random.default_rng(seed)
    pieces = _cut(lengths.astype(np.int64).reshape(-1), capacity)
    pieces = pieces.take(generator.permutation(len(pieces.length)))
    pieces = pieces.take(np.argsort(-pieces.length, kind="stable"))
    rows, num_rows = _best_fit(pieces.length, capacity)
    if cut_to_fill and num_rows:
        pieces, rows = _fill(pieces, rows, num_rows, capacity)
        num_rows = int(rows.max()) + 1
    # Row numbers are dealt at random, then pieces are brought into the order of their rows.
    rows = generator.permutation(num_rows)[rows]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))]).astype(np.int64)
    return Packing(*pieces.take(np.argsort(rows, kind="stable")), offsets, capacity)


def _cut(lengths: np.ndarray, capacity: int) -> _Pieces:
    counts = -(-lengths // capacity)
    source = np.repeat(np.arange(len(lengths)), counts)
    start = (np.arange(len(source)) - (np.cumsum(counts) - counts)[source]) * capacity
    return _Pieces(source, start, np.minimum(lengths[source] - start, capacity))


def _best_fit(length: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Return the row of each piece (given longest first) and the number of rows.

    All pieces of one length are placed together. Rows with equal room are alike, so they are kept as arrays
    by their room. The fullest row for a piece is also the fullest row for the next piece of that length as
    long as it has room, so each row takes as many pieces as fit. The result is that of placing one piece
    after the other, but the number of steps depends on the distinct lengths, not on the pieces (a row's room
    more than halves at each step).
    """
    rows = np.empty(len(length), np.int64)
    rooms: list[int] = []  # the distinct free rooms, ascending
    by_room: dict[int, list[np.ndarray]] = {}
    num_rows = num_placed = 0

    def put_back(room: int, open_rows: np.ndarray) -> None:
        if room > 0 and len(open_rows):
            if room not in by_room:
                insort(rooms, room)
                by_room[room] = []
            by_room[room].append(open_rows)

    for size, end in _runs(length):
        while num_placed < end:
            index = bisect_left(rooms, size)
            room = rooms[index] if index < len(rooms) else capacity
            num_per_row = room // size
            num_needed = -(-(end - num_placed) // num_per_row)
            if index == len(rooms):
                row_numbers = np.arange(num_rows, num_rows + num_needed)
                num_rows += num_needed
            else:
                stack = by_room[room]
                row_numbers = stack.pop()
                if len(row_numbers) > num_needed:
                    stack.append(row_numbers[num_needed:])
                    row_numbers = row_numbers[:num_needed]
                if not stack:
                    del by_room[room], rooms[index]
            count = min(end - num_placed, num_per_row * len(row_numbers))
            rows[num_placed : num_placed + count] = np.repeat(row_numbers, num_per_row)[:count]
            num_placed += count
            num_full, remainder = divmod(count, num_per_row)
            put_back(room - num_per_row * size, row_numbers[:num_full])
            put_back(room - remainder * size, row_numbers[num_full:])
    return rows, num_rows


def _fill(pieces: _Pieces, rows: np.ndarray, num_rows: int, capacity: int) -> tuple[_Pieces, np.ndarray]:
    """Return pieces and their rows after the emptiest rows have filled up the others, the roomiest first."""
    length = pieces.length
    num_used = np.bincount(rows, length, num_rows).astype(np.int64)
    num_kept = -(-int(num_used.sum()) // capacity)
    fullest = np.argsort(-num_used, kind="stable")[:num_kept]
    new_row = np.full(num_rows, -1)
    new_row[fullest] = np.arange(num_kept)
    stays = new_row[rows] >= 0
    # The tokens of the other rows in a line, beside the holes of the others in a line: each is cut where the
    # other ends.
    moved_pieces = np.flatnonzero(~stays)
    ends = np.cumsum(length[moved_pieces])
    hole_ends = np.cumsum((capacity - num_used[fullest])[::-1])
    total = int(ends[-1]) if len(moved_pieces) else 0
    cuts = np.unique(np.concatenate([ends, hole_ends[hole_ends < total]]))
    cuts = cuts[cuts > 0]
    begins = np.concatenate([[0], cuts[:-1]]) if len(cuts) else cuts
    piece = moved_pieces[np.searchsorted(ends, begins, "right")]
    offset = begins - (ends - length[moved_pieces])[np.searchsorted(ends, begins, "right")]
    hole = num_kept - 1 - np.searchsorted(hole_ends, begins, "right")
    return _Pieces(
        np.concatenate([pieces.source[stays], pieces.source[piece]]),
        np.concatenate([pieces.start[stays], pieces.start[piece] + offset]),
        np.concatenate([length[stays], cuts - begins]),
    ), np.concatenate([new_row[rows[stays]], hole])


def _runs(length: np.ndarray) -> list[tuple[int, int]]:
    if not len(length):
        return []
    ends = np.concatenate([np.flatnonzero(np.diff(length)) + 1, [len(length)]])
    return list(zip(length[ends - 1].tolist(), ends.tolist(), strict=True))
