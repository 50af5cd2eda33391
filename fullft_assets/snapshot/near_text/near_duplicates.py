"""Near-duplicates among many texts: MinHash bands propose pairs, the exact similarity of the word shingles
confirms each.

`minhash` describes what is kept of each text, and how its bands are computed.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

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

    A candidate needs one confirmed partner. So the texts of its buckets are looked at in rounds, one of each
    band in the first and twice as many in each further round: a bucket of thousands of texts that are all
    near to each other is settled in the first one. Whether a pair is near depends on nothing but the two
    texts.

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
    pending = candidates[~is_equal]
    texts, start, stop = _buckets(sketches.bands, reference, pending)
    num_texts = 1
    while len(pending):
        end = np.minimum(start + num_texts, stop)
        is_near = np.zeros(len(pending), bool)
        for block in blocks_of((end - start).sum(axis=0), _BLOCK_PAIRS):
            counts = (end - start)[:, block].ravel()
            which = np.tile(np.arange(block.start, block.stop), len(sketches.bands)).repeat(counts)
            text = texts[expand(start[:, block].ravel(), counts)]
            which, text = np.divmod(distinct(which * len(reference) + text), len(reference))
            is_pair_near = _are_near(sketches, pending[which], reference[text], read, similarity)
            winners, first = np.unique(which[is_pair_near], return_index=True)
            is_near[winners] = True
            near.append(pending[winners])
            partners.append(reference[text[is_pair_near][first]])
        goes_on = ~is_near & (end < stop).any(axis=0)
        pending = pending[goes_on]
        start = end[:, goes_on]
        stop = stop[:, goes_on]
        num_texts *= 2
    return np.concatenate(near), np.concatenate(partners)


def _buckets(
    bands: np.ndarray, reference: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the numbers of the reference texts, bucket by bucket, and where those begin and end among them
    that have the key of each candidate: int32 [bands, candidates].
    """
    texts = np.argsort(bands[:, reference], axis=1, kind="stable")
    start = np.empty((len(bands), len(candidates)), np.int32)
    stop = np.empty_like(start)
    for number, band in enumerate(bands):
        keys = band[reference[texts[number]]]
        start[number] = np.searchsorted(keys, band[candidates], "left") + number * len(reference)
        stop[number] = np.searchsorted(keys, band[candidates], "right") + number * len(reference)
    return texts.ravel(), start, stop


def _are_near(
    sketches: Sketches, first: np.ndarray, second: np.ndarray, read: ReadSets, similarity: float
) -> np.ndarray:
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
    least = similarity - deviations * np.sqrt(similarity * (1 - similarity) / NUM_HASHES)
    least = np.broadcast_to(least, len(first))
    for start in range(0, len(first), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        is_alike = sketches.signatures[first[block]] == sketches.signatures[second[block]]
        is_far[block] = is_alike.mean(axis=1) < least[block]
    return is_far


def count_shared(sets: ShingleSets, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how many values the sets at two lists of positions share, pair by pair."""
    shared = np.zeros(len(first), np.int64)
    for block in blocks_of(sets.sizes[first] + sets.sizes[second], _BLOCK_VALUES, BLOCK_ROWS):
        packed = []
        for side in (first[block], second[block]):
            pair = np.repeat(np.arange(len(side), dtype=_UINT64), sets.sizes[side])
            packed.append((pair << _UINT64(HASH_BITS)) | sets.values_of(side))
        # One sort of (pair, value).
        merged = np.concatenate(packed)
        merged.sort(kind="stable")
        twice = merged[1:][merged[1:] == merged[:-1]] >> _UINT64(HASH_BITS)
        shared[block] = np.bincount(twice.astype(np.int64), minlength=block.stop - block.start)
    return shared


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

    if not reference or not candidates:
        return {}
    sets = shingle_sets(pa.array([*reference, *candidates], pa.string()), seed)
    rows = np.arange(len(sets.sizes))
    near, partners = find_near(
        sketch_sets(sets), rows[: len(reference)], rows[len(reference) :], sets.select, similarity
    )
    order = np.argsort(near)
    return dict(zip((near[order] - len(reference)).tolist(), partners[order].tolist(), strict=True))
