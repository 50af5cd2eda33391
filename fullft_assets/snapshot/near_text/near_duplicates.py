"""Near-duplicates among many texts: MinHash bands propose pairs, the exact similarity of the word shingles
confirms each.

`minhash` describes what is kept of each text, and how its bands are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fullft_assets.snapshot.near_text.minhash import NUM_HASHES, SIMILARITY, Sketches, sketch_sets
from fullft_assets.snapshot.near_text.shingles import (
    BLOCK_ROWS,
    HASH_BITS,
    ShingleSets,
    distinct,
    expand,
    shingle_sets,
)

#: Shingles compared at once: what fits a core's cache.
_BLOCK_VALUES = 1 << 15
#: Pairs looked at at once.
_BLOCK_PAIRS = 1 << 18
#: Pairs of a candidate that are looked at in the first round; in each further one, twice as many.
_FIRST_PAIRS = 16
#: Standard deviations that the estimate of a similarity may be off: more is seen of three pairs in a million.
_DEVIATIONS = 4.5
_UINT64 = np.uint64

#: Returns the shingle sets of the given rows.
ReadSets = Callable[[np.ndarray], ShingleSets]


def find_near(
    sketches: Sketches,
    reference: np.ndarray,
    candidates: np.ndarray,
    read: ReadSets,
    similarity: float = SIMILARITY,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the candidates that are near to a reference text, each with one text that it is near to.

    A candidate needs one confirmed partner. So pairs are looked at in rounds, and a bucket of thousands of
    texts that are all near to each other is settled in the first one. Whether a pair is near depends on
    nothing but the two texts.

    Args:
        sketches: of all texts.
        reference, candidates: rows, disjoint.
        read: reads the shingle sets of rows (ascending): of those that may be near by their sketches.
        similarity: least Jaccard similarity of the shingle sets; pairs below SIMILARITY are hardly proposed.
    """
    reference = reference[np.unique(sketches.sets[reference], return_index=True)[1]]
    is_equal, place = positions(sketches.sets[reference], sketches.sets[candidates])
    near = [candidates[is_equal]]
    partners = [reference[place[is_equal]]]
    others = candidates[~is_equal]
    proposals = _Proposals.of(sketches.bands, reference, others)
    pending = np.flatnonzero(np.diff(proposals.ends))
    number = proposals.ends[pending]
    num_pairs = _FIRST_PAIRS
    while len(pending):
        stop = np.minimum(number + num_pairs, proposals.ends[pending + 1])
        is_found = np.zeros(len(pending), bool)
        for block in blocks_of(stop - number, _BLOCK_PAIRS):
            which, text = proposals.pairs(number[block], stop[block])
            first = others[pending[block][which]]
            second = reference[text]
            is_near = _are_near(sketches, first, second, read, similarity)
            winners, chosen = np.unique(which[is_near], return_index=True)
            is_found[block.start + winners] = True
            near.append(first[is_near][chosen])
            partners.append(second[is_near][chosen])
        goes_on = ~is_found & (stop < proposals.ends[pending + 1])
        pending = pending[goes_on]
        number = stop[goes_on]
        num_pairs *= 2
    return np.concatenate(near), np.concatenate(partners)


@dataclass(frozen=True)
class _Proposals:
    """Candidate pairs by bucket.

    Attributes:
        ends: int64 [candidates + 1], the pairs of candidate i are those numbered `ends[i]` to `ends[i + 1]`.
        ranges: int64 [r], number of the first pair of each range, ascending.
        starts: int64 [r], place of its first text in `texts`.
        texts: reference texts by bucket.
    """

    ends: np.ndarray
    ranges: np.ndarray
    starts: np.ndarray
    texts: np.ndarray

    @classmethod
    def of(cls, bands: np.ndarray, reference: np.ndarray, candidates: np.ndarray) -> _Proposals:
        """Join the band keys [num_bands, n] of the rows of both sides."""
        owners: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        texts: list[np.ndarray] = []
        for number, band in enumerate(bands):
            order = np.argsort(band[reference], kind="stable")
            keys = band[reference[order]]
            begin = np.searchsorted(keys, band[candidates], "left")
            count = np.searchsorted(keys, band[candidates], "right") - begin
            owners.append(np.flatnonzero(count))
            starts.append(begin[owners[-1]] + number * len(reference))
            counts.append(count[owners[-1]])
            texts.append(order)
        owner = np.concatenate(owners)
        by_owner = np.argsort(owner, kind="stable")
        size = np.concatenate(counts)[by_owner]
        num_pairs = np.bincount(owner[by_owner], size, len(candidates)).astype(np.int64)
        ends = np.concatenate([[0], np.cumsum(num_pairs)])
        return cls(ends, np.cumsum(size) - size, np.concatenate(starts)[by_owner], np.concatenate(texts))

    def pairs(self, start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (number of the interval, reference text) of the pairs numbered start to stop, interval by
        interval; each once.
        """
        number = expand(start, stop - start)
        which = np.repeat(np.arange(len(start)), stop - start)
        place = np.searchsorted(self.ranges, number, "right") - 1
        text = self.texts[self.starts[place] + number - self.ranges[place]]
        size = int(text.max(initial=0)) + 1
        return np.divmod(distinct(which * size + text), size)


def _are_near(
    sketches: Sketches, first: np.ndarray, second: np.ndarray, read: ReadSets, similarity: float
) -> np.ndarray:
    """Return which pairs of rows are near, by their exact similarity: bool [pairs]."""
    sizes = sketches.sizes
    smaller = np.minimum(sizes[first], sizes[second])
    chosen = np.flatnonzero(smaller / np.maximum(sizes[first], sizes[second]) >= similarity)
    chosen = chosen[~are_far(sketches, similarity, first[chosen], second[chosen])]
    is_near = np.zeros(len(first), bool)
    if len(chosen):
        rows = distinct(np.concatenate([first[chosen], second[chosen]]))
        sets = read(rows)
        position = np.searchsorted(rows, first[chosen])
        other = np.searchsorted(rows, second[chosen])
        shared = count_shared(sets, position, other)
        is_near[chosen] = shared / (sets.sizes[position] + sets.sizes[other] - shared) >= similarity
    return is_near


def are_far(
    sketches: Sketches,
    similarity: float | np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    deviations: float = _DEVIATIONS,
) -> np.ndarray:
    """Return whether the signatures of two lists of rows show that they have less than a similarity.

    Args:
        sketches: of all texts.
        similarity: of all pairs, or of each.
        first, second: rows.
        deviations: standard deviations that an estimate may be off.
    """
    is_far = np.zeros(len(first), bool)
    least = np.broadcast_to(_least_estimate(similarity, deviations), len(first))
    for start in range(0, len(first), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        is_alike = sketches.signatures[first[block]] == sketches.signatures[second[block]]
        is_far[block] = is_alike.mean(axis=1) < least[block]
    return is_far


def _least_estimate(similarity: float | np.ndarray, deviations: float = _DEVIATIONS) -> float | np.ndarray:
    """Return the least share of equal MinHashes that two texts with a similarity may be expected to have."""
    return similarity - deviations * np.sqrt(similarity * (1 - similarity) / NUM_HASHES)


def count_shared(sets: ShingleSets, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how many values the sets at two lists of positions share, pair by pair."""
    shared = np.zeros(len(first), np.int64)
    for block in blocks_of(sets.sizes[first] + sets.sizes[second], _BLOCK_VALUES, BLOCK_ROWS):
        shared[block] = _shared(sets, first[block], second[block])
    return shared


def _shared(sets: ShingleSets, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the number of values that the sets at two lists of positions share, pair by pair: one sort of
    (pair, value).
    """
    packed = []
    for side in (first, second):
        pair = np.repeat(np.arange(len(side), dtype=_UINT64), sets.sizes[side])
        packed.append((pair << _UINT64(HASH_BITS)) | sets.values_of(side))
    merged = np.concatenate(packed)
    merged.sort(kind="stable")
    twice = merged[1:][merged[1:] == merged[:-1]] >> _UINT64(HASH_BITS)
    return np.bincount(twice.astype(np.int64), minlength=len(first))


def blocks_of(sizes: np.ndarray, most: int, most_rows: int | None = None) -> list[slice]:
    """Return slices of about `most` in the sum of sizes, and at most `most_rows` rows."""
    block = np.cumsum(sizes) // most
    cuts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(sizes)]
    step = most_rows or max(1, len(sizes))
    return [
        slice(i, min(i + step, end))
        for start, end in zip(cuts, cuts[1:], strict=False)
        for i in range(start, end, step)
    ]


def positions(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each wanted value is among the known ones (ascending), and the place that it has or
    would have there.
    """
    if not len(known):
        return np.zeros(len(wanted), bool), np.zeros(len(wanted), np.int64)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return known[place] == wanted, place


def near_duplicates(
    reference: Sequence[str], candidates: Sequence[str], similarity: float, seed: int
) -> dict[int, int]:
    """Return the candidates that are near-duplicates of a reference text.

    Returns:
        For each near candidate's position the position of one reference text it is near to.
    """
    import pyarrow as pa

    if not reference or not candidates:
        return {}
    sets = shingle_sets(pa.array([*reference, *candidates], pa.string()), seed)
    rows = np.arange(len(sets.sizes))
    near, partners = find_near(
        sketch_sets(sets), rows[: len(reference)], rows[len(reference) :], sets.select, similarity
    )
    order = np.argsort(near)
    return dict(zip((near[order] - len(reference)).tolist(), partners[order].tolist(), strict=True))
