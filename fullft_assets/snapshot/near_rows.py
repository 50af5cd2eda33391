"""Which rows of the training and validation splits are near to a row of a split that goes before theirs,
contain its text, or are inside it.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION, BatchRows, Rows
from fullft_assets.snapshot.near_text.pairs import Texts

#: A split, and those whose rows must not be near to it: first the one that goes before all.
_SIDES = ((TEST, (VALIDATION, TRAIN)), (VALIDATION, (TRAIN,)))


def drop_near_and_contained(rows: Rows, batches: Mapping[str, BatchRows], settings: SnapshotSettings) -> None:
    """Leave out rows that are near to a row of a split that goes before theirs, contain its text, or are
    inside it.

    Args:
        rows: the rows of all batches.
        batches: where their sketches and texts are.
        settings: from which share on one text is inside another.
    """
    texts = Texts(
        [batches[name].sketches for name in sorted(batches)], lambda chosen: _read(rows, batches, chosen)
    )
    _drop(rows, texts.find_near, "{} rows near a {} row")
    _drop(
        rows,
        lambda reference, candidates: texts.find_contained(reference, candidates, settings.contained_share),
        "{} rows that contain a {} row or are inside one",
    )


def _drop(rows: Rows, search: Callable[[np.ndarray, np.ndarray], dict[int, int]], reason: str) -> None:
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
        is_out[list(search(reference, candidates))] = True
        for other in others:
            rows.drop(is_out & (rows.split == other), reason.format(SPLITS[other], SPLITS[guarded]))


def _read(rows: Rows, batches: Mapping[str, BatchRows], chosen: np.ndarray) -> pa.ChunkedArray:
    """Return the texts of some rows (ascending)."""
    names = sorted(batches)
    edges = np.searchsorted(rows.batch[chosen], np.arange(len(names) + 1)).tolist()
    chunks: list[pa.Array] = []
    for name, first, last in zip(names, edges, edges[1:], strict=False):
        if first < last:
            texts = batches[name].texts(rows.position[chosen[first:last]])
            chunks += texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    return pa.chunked_array(chunks, pa.string())
