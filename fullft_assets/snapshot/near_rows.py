"""Which rows of the training and validation splits are near to a row of a split that goes before theirs,
contain its text, or are inside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION, BatchRows, Rows
from fullft_assets.snapshot.containment import ContainmentSearch, are_looked_for, common
from fullft_assets.snapshot.minhash import concatenate
from fullft_assets.snapshot.near_duplicates import NearSearch, ReadSets
from fullft_assets.snapshot.shingles import BLOCK_ROWS, ShingleSets, distinct, join, shingle_sets
from fullft_assets.snapshot.verdicts import KnownSearch, Names, Search, Verdicts

#: A split, and those whose rows must not be near to it: first the one that goes before all.
_SIDES = ((TEST, (VALIDATION, TRAIN)), (VALIDATION, (TRAIN,)))
#: Texts without a verdict up to which several searches are done at a time: that takes the memory of each.
_SIDE_BY_SIDE = 1 << 18
#: Texts of a batch that are read at once.
_READ_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class _Side:
    """A search for the rows of later splits that must not stay because of what is in a split that goes before
    theirs.

    Attributes:
        guarded, others: that split and the later ones.
        reference: the rows of that split.
        reason: why a row is excluded, given its split and the guarded one.
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
    rows: Rows,
    batches: Mapping[str, BatchRows],
    settings: SnapshotSettings,
    seed: int,
    known: Mapping[str, Verdicts],
) -> dict[str, Verdicts]:
    """Leave out rows that are near to a row of a split that goes before theirs, contain its text, or are
    inside it.

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
    is_little = _num_new(names, known) <= _SIDE_BY_SIDE

    def read(chosen: np.ndarray) -> ShingleSets:
        return _read_sets(rows, batches, chosen, sketches.sizes, seed)

    def find_near(reference: np.ndarray, candidates: np.ndarray) -> NearSearch:
        return NearSearch(sketches, reference, candidates, settings.near_duplicate_similarity)

    # Also those that the first searches leave out are compared in the others: their verdicts save time later.
    split = rows.split.copy()
    near = _sides(split, names, find_near, "{} rows near a {} row", "{}", known, is_little)
    share = settings.contained_share
    if share is None:
        return _run(rows, near, read)
    chosen = join(batches[name].minimizers() for name in sorted(batches))
    in_many = common(chosen, names.any_row())

    def still(near: np.ndarray, partner: np.ndarray) -> np.ndarray:
        (has_first, first), (has_second, second) = names.find(near), names.find(partner)
        both = has_first & has_second
        # Of a text that is gone it does not matter.
        kept = np.ones(len(near), bool)
        kept[both] = are_looked_for(
            chosen, sketches.sizes, in_many, first[both[has_first]], second[both[has_second]]
        )
        return kept

    def find_contained(reference: np.ndarray, candidates: np.ndarray) -> ContainmentSearch:
        return ContainmentSearch(chosen, sketches, in_many, reference, candidates, share)

    known = {
        name: verdicts.under(in_many, still)
        for name, verdicts in known.items()
        if verdicts.hold_under(in_many)
    }

    def contained() -> list[_Side]:
        return _sides(
            split,
            names,
            find_contained,
            "{} rows that contain a {} row or are inside one",
            "{} contained",
            known,
            is_little,
        )

    if is_little:
        # What of a batch holds a text is decoded as a whole: better once than twice.
        found = _run(rows, [*near, *contained()], read)
    else:
        found = _run(rows, near, read)
        # What they hold is large, and so are the bands, which the others do without.
        near.clear()
        sketches = replace(sketches, bands=np.zeros((0, 0), np.uint64))
        found |= _run(rows, contained(), read)
    return {
        key: replace(each, common=in_many) if key.endswith("contained") else each
        for key, each in found.items()
    }


def _num_new(names: Names, known: Mapping[str, Verdicts]) -> int:
    """Return how many rows have a text that the earlier searches did not compare: the first of them has the
    texts of all splits.
    """
    if SPLITS[TEST] not in known:
        return len(names.of_rows)
    every, compared = np.arange(len(names.of_rows)), known[SPLITS[TEST]]
    return int(
        np.count_nonzero(
            ~(names.are_in(compared.reference, every) | names.are_in(compared.candidates, every))
        )
    )


def _sides(
    split: np.ndarray,
    names: Names,
    search: Callable[[np.ndarray, np.ndarray], Search],
    reason: str,
    key: str,
    known: Mapping[str, Verdicts],
    side_by_side: bool,
) -> list[_Side]:
    def side(guarded: int, others: tuple[int, ...]) -> _Side:
        reference, candidates = np.flatnonzero(split == guarded), np.flatnonzero(np.isin(split, others))
        name = key.format(SPLITS[guarded])
        return _Side(
            guarded,
            others,
            reference,
            reason,
            name,
            KnownSearch(search, names, reference, candidates, known.get(name)),
        )

    if not side_by_side:
        return [side(*each) for each in _SIDES]
    return _each(lambda each: side(*each), _SIDES)


def _run(rows: Rows, sides: Sequence[_Side], read: ReadSets) -> dict[str, Verdicts]:
    """Leave out what several searches find, one after the other; return the verdicts of each."""
    sets = read(np.concatenate([side.search.rows for side in sides]))
    begin, found = 0, {}
    for side in sides:
        mine = sets.select(np.arange(begin, begin + len(side.search.rows)))
        begin += len(side.search.rows)
        left_out = np.zeros(len(rows), bool)
        left_out[side.reference] = ~rows.kept[side.reference]
        near, found[side.key] = side.search.run(mine, read, left_out)
        is_near = np.zeros(len(rows), bool)
        is_near[near] = True
        for other in side.others:
            rows.drop(
                is_near & (rows.split == other), side.reason.format(SPLITS[other], SPLITS[side.guarded])
            )
    return found


def _read_sets(
    rows: Rows, batches: Mapping[str, BatchRows], chosen: np.ndarray, sizes: np.ndarray, seed: int
) -> ShingleSets:
    """Return the shingle sets of some rows. Each text is read once, and let go as soon as its shingles are
    there.

    `sizes`: int64 [n rows], distinct shingles of each row.
    """
    once, names = distinct(chosen), sorted(batches)
    sets = ShingleSets.of(np.empty(int(sizes[once].sum()), np.uint64), sizes[once])

    def fill(block: slice) -> None:
        texts = batches[names[rows.batch[once[block.start]]]].texts(rows.position[once[block]])
        begin = int(sets.starts[block.start])
        for start in range(0, len(texts), BLOCK_ROWS):
            values = shingle_sets(texts.slice(start, BLOCK_ROWS), seed).values
            sets.values[begin : begin + len(values)] = values
            begin += len(values)

    edges = np.searchsorted(rows.batch[once], np.arange(len(names) + 1)).tolist()
    pieces = [range(start, end, _READ_AT_ONCE) for start, end in zip(edges, edges[1:], strict=False)]
    _each(fill, [slice(start, min(start + _READ_AT_ONCE, piece.stop)) for piece in pieces for start in piece])
    return sets.select(np.searchsorted(once, chosen))


def _each(do: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return what is made of each item, side by side, since sorting and decoding go on without the
    interpreter's lock.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(do, items))
