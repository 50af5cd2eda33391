"""Fewer rows where there are more than a maximum: drawn by keyed hashes, and so that no label is lost."""

import numpy as np

from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION, Rows, distinct
from fullft_assets.snapshot.labels import Labels
from fullft_assets.store.hashing import unit_hash

#: Rows of each label that are drawn first: so many, and so large a share of the maximum for all labels
#: together.
_FLOOR_ROWS, _FLOOR_SHARE = 50, 0.25
#: A training row of a group of n rows weighs n to the power of minus this: giant groups have less to say that
#: is new.
_GROUP_POWER = 0.25


def cap_held_out(rows: Rows, labels: Labels, settings: SnapshotSettings, seed: int) -> None:
    """Keep at most so many held-out rows of a group, drawn by hash; one row of each label goes first."""
    held_out = np.flatnonzero((rows.split == TEST) | (rows.split == VALIDATION))
    most = settings.max_heldout_rows_per_group
    large = held_out[np.bincount(rows.group[held_out], minlength=1)[rows.group[held_out]] > most]
    if not len(large):
        return
    draw = np.full(len(rows), np.inf)
    draw[large] = _draw(rows, large, seed, "cap")
    # Of each label the row of the lowest draw goes first, so that none loses a split.
    for split in (TEST, VALIDATION):
        draw[_first_of_labels(labels, rows.split == split, draw, floor=1)] -= 1
    order = large[np.lexsort((draw[large], rows.group[large]))]
    over = order[_number_within(rows.group[order]) >= most]
    rows.drop(over, "held-out rows over the cap of their group")


def subsample(rows: Rows, labels: Labels, split: int, most: int | None, seed: int) -> None:
    """Keep at most so many rows of a split: the same number of rows of each label first, then whichever has
    the lowest hash.
    """
    chosen = np.flatnonzero(rows.split == split)
    if most is None or len(chosen) <= most:
        return
    draw = np.full(len(rows), np.inf)
    draw[chosen] = _draw(rows, chosen, seed, "subsample")
    if split == TRAIN:
        draw[chosen] = (
            -np.log(1 - draw[chosen]) * np.bincount(rows.group[chosen])[rows.group[chosen]] ** _GROUP_POWER
        )
    num_labels = max(1, len(distinct(labels.of(rows.split == split).code)))
    floor = max(1, min(_FLOOR_ROWS, int(most * _FLOOR_SHARE / num_labels)))
    is_first = _first_of_labels(labels, rows.split == split, draw, floor)
    over = np.zeros(len(rows), bool)
    over[chosen[np.lexsort((draw[chosen], ~is_first[chosen]))[most:]]] = True
    rows.drop(over, f"{SPLITS[split]} rows over snapshot.max_{SPLITS[split]}_rows")


def _first_of_labels(labels: Labels, chosen: np.ndarray, draw: np.ndarray, floor: int) -> np.ndarray:
    """Return the rows (mask) of the `floor` lowest draws of each label among the chosen ones (mask)."""
    pairs = labels.of(chosen)
    order = np.lexsort((draw[pairs.row], pairs.code))
    is_first = np.zeros(len(draw), bool)
    is_first[pairs.row[order][_number_within(pairs.code[order]) < floor]] = True
    return is_first


def _number_within(sorted_values: np.ndarray) -> np.ndarray:
    """Return the number of each value among its equals, from 0."""
    begin = np.flatnonzero(np.append(True, sorted_values[1:] != sorted_values[:-1])[: len(sorted_values)])
    return np.arange(len(sorted_values)) - np.repeat(begin, np.diff(np.append(begin, len(sorted_values))))


def _draw(rows: Rows, chosen: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    return np.array(
        [unit_hash(seed, purpose, hash_) for hash_ in rows.table["text_hash"].take(chosen).to_pylist()]
    )
