"""Which rows of the training and validation splits are near to a row of a split that goes before theirs, or contain its text."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION, BatchRows, Rows
from fullft_assets.snapshot.containment import ContainmentSearch, join
from fullft_assets.snapshot.minhash import concatenate
from fullft_assets.snapshot.near_duplicates import NearSearch
from fullft_assets.snapshot.shingles import ShingleSets, minimizers, shingle_sets
from fullft_assets.snapshot.verdicts import KnownSearch, Names, Verdicts

if TYPE_CHECKING:
    import pyarrow as pa

#: A split, and those whose rows must not be near to it: first the one that goes before all.
_SIDES = ((TEST, (VALIDATION, TRAIN)), (VALIDATION, (TRAIN,)))
#: Texts up to which several things are done at a time: that takes the memory of each.
_SIDE_BY_SIDE = 1 << 18


def drop_near_duplicates(
    rows: Rows, batches: Mapping[str, BatchRows], settings: SnapshotSettings, seed: int, known: Mapping[str, Verdicts]
) -> dict[str, Verdicts]:
    """Leave out rows that are near-duplicates of a row of a split that goes before theirs.

    Args:
        rows: the rows of all batches.
        batches: where their sketches and texts are.
        settings: from which similarity on texts are near.
        seed: of the shingles.
        known: what an earlier snapshot found out, by the split that is guarded.

    Returns:
        The same for a later snapshot.
    """
    sketches = concatenate((batches[name].sketches() for name in sorted(batches)), len(rows))

    names = Names(sketches.sets)

    def search(reference: np.ndarray, candidates: np.ndarray) -> NearSearch:
        return NearSearch(sketches, reference, candidates, settings.near_duplicate_similarity)

    def search_for(guarded: int, others: tuple[int, ...]) -> KnownSearch:
        reference, candidates = np.flatnonzero(rows.split == guarded), np.flatnonzero(np.isin(rows.split, others))
        return KnownSearch(search, names, reference, candidates, known.get(SPLITS[guarded]))

    def read(chosen: np.ndarray) -> ShingleSets:
        return shingle_sets(_read_texts(rows, batches, chosen), seed)

    searches = _each(lambda side: search_for(*side), _SIDES, len(sketches))
    # Read at once: what of a batch holds a text is decoded as a whole.
    sets = read(np.concatenate([each.rows for each in searches]))
    begin, dropped, found = 0, np.zeros(len(rows), bool), {}
    for (guarded, others), each in zip(_SIDES, searches, strict=True):
        mine = sets.select(np.arange(begin, begin + len(each.rows)))
        begin += len(each.rows)
        near, found[SPLITS[guarded]] = each.run(mine, read, dropped)
        dropped[near] = True
        is_near = np.zeros(len(rows), bool)
        is_near[near] = True
        for other in others:
            rows.drop(is_near & (rows.split == other), f"{SPLITS[other]} rows near a {SPLITS[guarded]} row")
    return found


def drop_containing_rows(rows: Rows, batches: Mapping[str, BatchRows], share: float, seed: int) -> None:
    """Leave out rows that contain the text of a row of a split that goes before theirs.

    Args:
        rows: the rows of all batches.
        batches: where their texts are.
        share: least share of the contained text's shingles.
        seed: of the shingles.
    """
    ordered = (batches[name] for name in sorted(batches))
    chosen = join(minimizers(batch.texts(np.arange(len(batch.rows))), seed) for batch in ordered)
    for guarded, others in _SIDES:
        reference, candidates = np.flatnonzero(rows.split == guarded), np.flatnonzero(np.isin(rows.split, others))
        search = ContainmentSearch(chosen, reference, candidates, share)
        contains = np.zeros(len(rows), bool)
        contains[search.run(shingle_sets(_read_texts(rows, batches, search.rows), seed))] = True
        for other in others:
            rows.drop(contains & (rows.split == other), f"{SPLITS[other]} rows that contain a {SPLITS[guarded]} row")


def _read_texts(rows: Rows, batches: Mapping[str, BatchRows], chosen: np.ndarray) -> pa.ChunkedArray:
    """Return the texts of rows, in their order; each batch is read once, several at a time."""
    import pyarrow as pa

    order, names = np.argsort(rows.batch[chosen], kind="stable"), sorted(batches)

    def read(number: int) -> list[pa.Array]:
        texts = batches[names[number]].texts(rows.position[chosen[rows.batch[chosen] == number]])
        return texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]

    parts = [part for found in _each(read, np.unique(rows.batch[chosen]).tolist(), len(rows)) for part in found]
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pa.chunked_array(parts, pa.string()).take(pa.array(back))


def _each(do: Callable[[Any], Any], items: Sequence[Any], num_texts: int) -> list[Any]:
    """Return what is made of each item; of few texts side by side, since sorting and decoding go on without the interpreter's lock."""
    if num_texts > _SIDE_BY_SIDE:
        return list(map(do, items))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(do, items))
