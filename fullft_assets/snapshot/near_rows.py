"""Which rows of the training and validation splits are near to a row of a split that goes before theirs, contain its text, or are inside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION, BatchRows, Rows
from fullft_assets.snapshot.containment import ContainmentSearch, are_looked_for, common
from fullft_assets.snapshot.minhash import concatenate
from fullft_assets.snapshot.near_duplicates import NearSearch
from fullft_assets.snapshot.shingles import ShingleSets, join, shingle_sets
from fullft_assets.snapshot.verdicts import KnownSearch, Names, Search, Verdicts

if TYPE_CHECKING:
    import pyarrow as pa

#: A split, and those whose rows must not be near to it: first the one that goes before all.
_SIDES = ((TEST, (VALIDATION, TRAIN)), (VALIDATION, (TRAIN,)))
#: Texts up to which several things are done at a time: that takes the memory of each.
_SIDE_BY_SIDE = 1 << 18


@dataclass(frozen=True)
class _Side:
    """A search for the rows of later splits that must not stay because of what is in a split that goes before theirs.

    Attributes:
        guarded, others: that split and the later ones.
        reference: the rows of that split.
        reason: why a row is left out, given its split and the guarded one.
        key: name of the verdicts.
        search: the search.
    """

    guarded: int
    others: tuple[int, ...]
    reference: np.ndarray
    reason: str
    key: str
    search: KnownSearch


def drop_near_and_contained(
    rows: Rows, batches: Mapping[str, BatchRows], settings: SnapshotSettings, seed: int, known: Mapping[str, Verdicts]
) -> dict[str, Verdicts]:
    """Leave out rows that are near to a row of a split that goes before theirs, contain its text, or are inside it.

    Args:
        rows: the rows of all batches.
        batches: where their sketches and texts are.
        settings: from which similarity on texts are near, and from which share on one is inside another.
        seed: of the shingles.
        known: what an earlier snapshot found out, by the name of the search.

    Returns:
        The same for a later snapshot.
    """
    sketches = concatenate((batches[name].sketches() for name in sorted(batches)), len(rows))
    names = Names(sketches.sets)

    def find_near(reference: np.ndarray, candidates: np.ndarray) -> NearSearch:
        return NearSearch(sketches, reference, candidates, settings.near_duplicate_similarity)

    near = _sides(rows, names, find_near, "{} rows near a {} row", "{}", known)
    share = settings.contained_share
    if share is None:
        return _run(rows, batches, near, seed)
    chosen = join(batches[name].minimizers() for name in sorted(batches))
    in_many = common(chosen, names.any_row())

    def still(near: np.ndarray, partner: np.ndarray) -> np.ndarray:
        (has_first, first), (has_second, second) = names.find(near), names.find(partner)
        both = has_first & has_second
        # Of a text that is gone it does not matter.
        kept = np.ones(len(near), bool)
        kept[both] = are_looked_for(chosen, sketches.sizes, in_many, first[both[has_first]], second[both[has_second]])
        return kept

    def find_contained(reference: np.ndarray, candidates: np.ndarray) -> ContainmentSearch:
        return ContainmentSearch(chosen, sketches, in_many, reference, candidates, share)

    known = {name: verdicts.under(in_many, still) for name, verdicts in known.items() if verdicts.hold_under(in_many)}

    def contained() -> list[_Side]:
        return _sides(rows, names, find_contained, "{} rows that contain a {} row or are inside one", "{} contained", known)

    if len(rows) <= _SIDE_BY_SIDE:
        found = _run(rows, batches, [*near, *contained()], seed)
    else:
        found = _run(rows, batches, near, seed)
        near.clear()  # what they hold is large
        found |= _run(rows, batches, contained(), seed)
    return {key: replace(each, common=in_many) if key.endswith("contained") else each for key, each in found.items()}


def _sides(
    rows: Rows, names: Names, search: Callable[[np.ndarray, np.ndarray], Search], reason: str, key: str, known: Mapping[str, Verdicts]
) -> list[_Side]:
    def side(guarded: int, others: tuple[int, ...]) -> _Side:
        reference, candidates = np.flatnonzero(rows.split == guarded), np.flatnonzero(np.isin(rows.split, others))
        name = key.format(SPLITS[guarded])
        return _Side(guarded, others, reference, reason, name, KnownSearch(search, names, reference, candidates, known.get(name)))

    return _each(lambda each: side(*each), _SIDES, len(rows))


def _run(rows: Rows, batches: Mapping[str, BatchRows], sides: Sequence[_Side], seed: int) -> dict[str, Verdicts]:
    """Leave out what several searches find, one after the other; return the verdicts of each."""

    def read(chosen: np.ndarray) -> ShingleSets:
        return shingle_sets(_read_texts(rows, batches, chosen), seed)

    # Read at once: what of a batch holds a text is decoded as a whole.
    sets = read(np.concatenate([side.search.rows for side in sides]))
    begin, found = 0, {}
    for side in sides:
        mine = sets.select(np.arange(begin, begin + len(side.search.rows)))
        begin += len(side.search.rows)
        # Candidates that were left out since are compared as well, since their verdicts save time later.
        left_out = np.zeros(len(rows), bool)
        left_out[side.reference] = ~rows.kept[side.reference]
        near, found[side.key] = side.search.run(mine, read, left_out)
        is_near = np.zeros(len(rows), bool)
        is_near[near] = True
        for other in side.others:
            rows.drop(is_near & (rows.split == other), side.reason.format(SPLITS[other], SPLITS[side.guarded]))
    return found


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
