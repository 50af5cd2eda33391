"""All valid rows of all batches as columns: numpy arrays of codes and numbers, no object a row, so that a
million rows take seconds.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fullft_assets.examples.identity import COLUMNS, IdentityRows, codes
from fullft_assets.settings import SnapshotSettings

#: In the order of precedence: a row of a lower place never moves behind a later one.
SPLITS = ("test", "validation", "train")
TEST, VALIDATION, TRAIN = range(3)
#: Rows of each reason that the data report names.
MOST_NAMED = 5
SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class BatchRows:
    """What the split needs of one batch.

    Attributes:
        rows: valid examples with COLUMNS, without their texts.
        files: time of delivery (ns) of each of the batch's files: a newer delivery of a file supersedes the
            rows of older ones.
        sketches: of the rows' texts (`near_text.pairs.sketch`), the `place` of each row in [0, 1) (the keyed
            hash of its group, or of its text where it has none), and whether it `overlaps` an external
            evaluation set: then it does not train.
        texts: reads the texts at positions, in that order.
        untrained: positions of conversations without a trained token.
    """

    rows: pa.Table
    files: Mapping[str, int]
    sketches: pa.Table
    texts: Callable[[np.ndarray], pa.Array | pa.ChunkedArray]
    untrained: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass
class Rows(IdentityRows):
    """All rows of all batches as codes, batch by batch in the order of their names.

    Attributes:
        group: int64 [n], code of each row's group, or of its text where it has none.
        batch, position: int64 [n], number of each row's batch and the row's position in it.
        place: float64 [n], see `BatchRows.sketches`.
        tier: int64 [n], number (of SPLITS) of the split of each row's group: what its place gives, until
            groups are moved.
        split: int64 [n], number (of SPLITS) of the row's split, or -1 for what is excluded.
        dropped: excluded rows by reason.
        dropped_rows: the first few of them, by reason.
    """

    group: np.ndarray
    batch: np.ndarray
    position: np.ndarray
    place: np.ndarray
    tier: np.ndarray
    split: np.ndarray
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_rows: dict[str, list[int]] = field(default_factory=dict)

    def drop(self, rows: np.ndarray, reason: str) -> int:
        """Leave out rows (a mask, or positions) that are still in; count them and return how many they
        are.
        """
        chosen = np.zeros(len(self), bool)
        chosen[rows] = True
        chosen &= self.kept
        self.split[chosen] = -1
        num_dropped = int(chosen.sum())
        self.dropped[reason] += num_dropped
        named = self.dropped_rows.setdefault(reason, [])
        named += np.flatnonzero(chosen)[: MOST_NAMED - len(named)].tolist()
        return num_dropped

    def places_left_out(self) -> dict[str, list[str]]:
        """Return where the first rows that were excluded were delivered, as file:row, by reason."""
        source, row = self.table["source"], self.table["row"]
        return {
            reason: [f"{source[number].as_py()}:{row[number].as_py()}" for number in rows]
            for reason, rows in self.dropped_rows.items()
            if rows
        }

    @property
    def kept(self) -> np.ndarray:
        """Mask of the rows that are still in."""
        return self.split >= 0


def collect(batches: Mapping[str, BatchRows], settings: SnapshotSettings) -> Rows:
    """Return the rows of all batches, each with the split that its place gives it."""

    ordered = [batches[name] for name in sorted(batches)]
    none = pa.table(
        {
            name: pa.array([], pa.int64() if name in ("row", "delivered_ns") else pa.string())
            for name in COLUMNS
        }
    )
    tables = [batch.rows for batch in ordered if len(batch.rows)]
    table = pa.concat_tables(tables, promote_options="permissive") if tables else none
    sizes = [len(batch.rows) for batch in ordered]
    place = np.concatenate([np.zeros(0), *(batch.sketches["place"].to_numpy() for batch in ordered)])
    tier = hashed_split(place, settings)
    return Rows(
        **vars(IdentityRows.of(table)),
        group=codes(pc.coalesce(table["group"], table["text_hash"]))[0],
        batch=np.repeat(np.arange(len(ordered)), sizes),
        position=np.concatenate([np.zeros(0, np.int64), *(np.arange(size) for size in sizes)]),
        place=place,
        tier=tier,
        split=tier.copy(),
    )


def hashed_split(place: np.ndarray, settings: SnapshotSettings) -> np.ndarray:
    """Return the number (of SPLITS) of the split that each place gives: int64 [n]."""
    held_out = settings.test_share + settings.validation_share
    return np.where(place < settings.test_share, TEST, np.where(place < held_out, VALIDATION, TRAIN))


def distinct(values: np.ndarray) -> np.ndarray:
    """Return the distinct integers in ascending order, by sorting: `np.unique` hashes, which takes fifty
    times as long for a million.
    """
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def expand(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the concatenation of the ranges [start, start + count)."""
    ends = np.cumsum(count)
    return np.repeat(start - ends + count, count) + np.arange(ends[-1] if len(ends) else 0)
