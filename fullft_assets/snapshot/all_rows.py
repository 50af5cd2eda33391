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

from fullft_assets.examples.identity import IdentityRows, codes
from fullft_assets.settings import SnapshotSettings

#: In the order of precedence: a row never moves from one of them to a later one.
SPLITS = ("test", "validation", "train")
TEST, VALIDATION, TRAIN = range(3)
#: Rows of each reason that the data report names.
MOST_NAMED = 5
#: Near-duplicates of test and of validation rows, then texts that contain those or are inside them.
NUM_COMPARISONS = 4
SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class BatchRows:
    """What the split needs of one batch.

    Attributes:
        rows: valid examples with COLUMNS, without their texts.
        files: time of delivery (ns) of each of the batch's files: a newer delivery of a file supersedes the
            rows of older ones.
        sketches: reads a column, one row an example: of the sketch of its text (`near_text.pairs.sketch`);
            its `place` in [0, 1), the keyed hash of its group, or of its text where it has no group; and
            whether it `overlaps` an external evaluation set, so that it does not train.
        texts: reads the texts at positions, in that order.
        untrained: positions of conversations without a trained token.
        roles: the rows' part of `Rows.roles` in the last snapshot, if that can be used.
    """

    rows: pa.Table
    files: Mapping[str, int]
    sketches: Callable[[str], pa.ChunkedArray]
    texts: Callable[[np.ndarray], pa.Array | pa.ChunkedArray]
    untrained: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    roles: np.ndarray | None = None


@dataclass
class Rows(IdentityRows):
    """All rows of all batches as codes, batch by batch in the order of their names.

    Attributes:
        group: int64 [n], code of each row's group, or of its text where it has none.
        batch, position: int64 [n], number of each row's batch and the row's position in it.
        unit_hash: float64 [n], the column `place` of `BatchRows.sketches`.
        tier: int64 [n], number (of SPLITS) of the split of each row's group: what its hash gives, until
            groups are moved.
        split: int64 [n], number (of SPLITS) of the row's split, or -1 for what is excluded.
        roles: int8 [NUM_COMPARISONS, n], what `near_text.pairs` returned of each row in each comparison of
            the last snapshot, then of this one.
        dropped: excluded rows by reason.
        dropped_rows: the first few of them, by reason.
    """

    group: np.ndarray
    batch: np.ndarray
    position: np.ndarray
    unit_hash: np.ndarray
    tier: np.ndarray
    split: np.ndarray
    roles: np.ndarray
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_rows: dict[str, list[int]] = field(default_factory=dict)

    def drop(self, rows: np.ndarray, reason: str) -> int:
        """Exclude those of some rows (a mask, or positions) that are still in, and return their number."""
        mask = np.zeros(len(self), bool)
        mask[rows] = True
        mask &= self.kept
        self.split[mask] = -1
        num_dropped = int(mask.sum())
        self.dropped[reason] += num_dropped
        first_rows = self.dropped_rows.setdefault(reason, [])
        first_rows += np.flatnonzero(mask)[: MOST_NAMED - len(first_rows)].tolist()
        return num_dropped

    def places_left_out(self) -> dict[str, list[str]]:
        """Return where the first rows that were excluded were delivered, as file:row, by reason."""
        return {
            reason: [
                f"{row['source']}:{row['row']}"
                for row in self.table.select(["source", "row"]).take(rows).to_pylist()
            ]
            for reason, rows in self.dropped_rows.items()
            if rows
        }

    @property
    def kept(self) -> np.ndarray:
        """Mask of the rows that are still in."""
        return self.split >= 0


def collect(batches: Mapping[str, BatchRows], settings: SnapshotSettings) -> Rows:
    """Return the rows of all batches, at least one, each with the split that its hash gives it."""

    ordered = [batches[name] for name in sorted(batches)]
    table = pa.concat_tables(
        [batch.rows for batch in ordered if len(batch.rows)], promote_options="permissive"
    ).unify_dictionaries()
    sizes = [len(batch.rows) for batch in ordered]
    unit_hash = np.concatenate([batch.sketches("place").to_numpy() for batch in ordered])
    tier = hashed_split(unit_hash, settings.least_test_share, settings)
    return Rows(
        **vars(IdentityRows.of(table)),
        group=codes(pc.coalesce(table["group"].cast(pa.string()), table["text_hash"]))[0],
        batch=np.repeat(np.arange(len(ordered)), sizes),
        position=np.concatenate([np.arange(size) for size in sizes]),
        unit_hash=unit_hash,
        tier=tier,
        split=tier.copy(),
        roles=np.concatenate(
            [
                np.zeros((NUM_COMPARISONS, size), np.int8) if batch.roles is None else batch.roles
                for batch, size in zip(ordered, sizes, strict=True)
            ],
            axis=1,
        ),
    )


def hashed_split(unit_hash: np.ndarray, test_share: float, settings: SnapshotSettings) -> np.ndarray:
    """Return the number (of SPLITS) of the split that each hash gives: int64 [n]."""
    return np.searchsorted(np.cumsum([test_share, settings.validation_share]), unit_hash, "right")


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
