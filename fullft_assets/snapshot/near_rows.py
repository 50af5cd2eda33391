"""Which rows of the training and validation splits are near to a row of a split that goes before theirs,
contain its text, or are inside it.
"""

from collections.abc import Callable, Mapping

import numpy as np

from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION, BatchRows, Rows
from fullft_assets.snapshot.near_text.containment import Texts, common, find_contained
from fullft_assets.snapshot.near_text.minhash import concatenate
from fullft_assets.snapshot.near_text.near_duplicates import find_near
from fullft_assets.snapshot.near_text.shingles import ShingleSets, join, shingle_sets

#: A split, and those whose rows must not be near to it: first the one that goes before all.
_SIDES = ((TEST, (VALIDATION, TRAIN)), (VALIDATION, (TRAIN,)))
#: Texts of a batch that are read at once.
_READ_AT_ONCE = 1 << 15


def drop_near_and_contained(
    rows: Rows, batches: Mapping[str, BatchRows], settings: SnapshotSettings, seed: int
) -> None:
    """Leave out rows that are near to a row of a split that goes before theirs, contain its text, or are
    inside it.

    Args:
        rows: the rows of all batches.
        batches: where their sketches and texts are.
        settings: from which share on one text is inside another.
        seed: of the shingles.
    """
    sketches = concatenate(batches[name].index().sketches for name in sorted(batches))

    def read(chosen: np.ndarray) -> ShingleSets:
        return _read_sets(rows, batches, chosen, sketches.sizes, seed)

    _drop(
        rows,
        lambda reference, candidates: find_near(sketches, reference, candidates, read)[0],
        "{} rows near a {} row",
    )
    share = settings.contained_share
    minimizers = join((batches[name].index().minimizers for name in sorted(batches)), np.uint32)
    # Of equal texts one counts.
    in_many = common(minimizers, np.unique(sketches.sets, return_index=True)[1])
    _drop(
        rows,
        lambda reference, candidates: find_contained(
            Texts(minimizers, sketches, in_many), reference, candidates, share, read
        ),
        "{} rows that contain a {} row or are inside one",
    )


def _drop(rows: Rows, search: Callable[[np.ndarray, np.ndarray], np.ndarray], reason: str) -> None:
    """Leave out what a search finds.

    Args:
        rows: all rows.
        search: returns, of reference rows and candidates, the candidates that must not stay.
        reason: why, given the row's split and the one that goes before it.
    """
    for guarded, others in _SIDES:
        reference = np.flatnonzero(rows.split == guarded)
        candidates = np.flatnonzero(np.isin(rows.split, others))
        is_out = np.zeros(len(rows), bool)
        is_out[search(reference, candidates)] = True
        for other in others:
            rows.drop(is_out & (rows.split == other), reason.format(SPLITS[other], SPLITS[guarded]))


def _read_sets(
    rows: Rows, batches: Mapping[str, BatchRows], chosen: np.ndarray, sizes: np.ndarray, seed: int
) -> ShingleSets:
    """Return the shingle sets of some rows (ascending). Texts are let go as soon as their shingles are there.

    Args:
        rows, batches: all rows, and where their texts are.
        chosen: the rows.
        sizes: int64 [n rows], distinct shingles of each row.
        seed: of the shingles.
    """
    names = sorted(batches)
    values = [np.zeros(0, np.uint64)]
    edges = np.searchsorted(rows.batch[chosen], np.arange(len(names) + 1)).tolist()
    for name, first, last in zip(names, edges, edges[1:], strict=False):
        for start in range(first, last, _READ_AT_ONCE):
            texts = batches[name].texts(rows.position[chosen[start : min(start + _READ_AT_ONCE, last)]])
            values.append(shingle_sets(texts, seed).values)
    return ShingleSets.of(np.concatenate(values), sizes[chosen])
