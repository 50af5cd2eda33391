"""Texts that are inside longer ones across the split, such as a mail quoted in the reply to it.

The Jaccard similarity of such a pair is small. What shows it is the share of the shorter text's shingles that
the longer one has (Broder 1997, "On the resemblance and containment of documents"). A passage of WINDOW
shingles that is quoted word for word keeps its minimizers: texts are a candidate pair that share enough of
them, and the exact share confirms it.

A minimizer in more than MAX_ROWS texts (of a disclaimer, of a standard clause) shows no copy of a document,
and is not looked up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fullft_assets.snapshot.near_text.minhash import Sketches
from fullft_assets.snapshot.near_text.near_duplicates import (
    ReadSets,
    are_far,
    blocks_of,
    count_shared,
    positions,
)
from fullft_assets.snapshot.near_text.shingles import Minimizers, ShingleSets, distinct, expand

#: Texts that a minimizer may be in.
MAX_ROWS = 100
#: Least share of the shorter text's minimizers that the longer one has and that are in few texts.
_LEAST_RARE = 0.25
#: Minimizers that a text loses with each shingle, and standard deviations that it may lose more: of 7,600
#: texts with words replaced or deleted at random, as many as leave 95% of the shingles, 0.3% lose more.
_LOST, _DEVIATIONS = 0.35, 2
#: Standard deviations by which the signatures of a pair may be below the similarity that they should have.
_SIGNATURE_DEVIATIONS = 3
#: Least distinct shingles of a text that is looked for in longer ones: shorter ones are phrases that anybody
#: may write.
_LEAST_SIZE = 16
#: Minimizers looked up at once.
_BLOCK_VALUES = 1 << 18


@dataclass(frozen=True)
class Texts:
    """What is known of all texts.

    Attributes:
        minimizers, sketches: of each.
        common: minimizers that are not looked up, ascending: see `common`.
    """

    minimizers: Minimizers
    sketches: Sketches
    common: np.ndarray


def common(minimizers: Minimizers, rows: np.ndarray) -> np.ndarray:
    """Return the minimizers (ascending) that more than MAX_ROWS of some rows have."""
    is_counted = np.zeros(len(minimizers.counts), bool)
    is_counted[rows] = True
    values = minimizers.values[np.repeat(is_counted, minimizers.counts)]
    values.sort()
    repeated = values[MAX_ROWS:]
    return distinct(repeated[repeated == values[: len(repeated)]])


def find_contained(
    texts: Texts, reference: np.ndarray, candidates: np.ndarray, share: float, read: ReadSets
) -> np.ndarray:
    """Return the candidates that contain a reference text, or are inside one.

    Args:
        texts: all texts.
        reference, candidates: rows, disjoint.
        share: least share of the shorter text's shingles that the longer one has.
        read: reads the shingle sets of rows (ascending).
    """
    first, second = candidate_pairs(texts, reference, candidates, share)
    if not len(first):
        return first
    rows = distinct(np.concatenate([first, second]))
    sets = read(rows)
    position = np.searchsorted(rows, first)
    other = np.searchsorted(rows, second)
    shorter = np.minimum(sets.sizes[position], sets.sizes[other])
    return distinct(first[count_shared(sets, position, other) >= share * shorter])


def candidate_pairs(
    texts: Texts, reference: np.ndarray, candidates: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (candidate, reference text) of which one may be inside the other, by their minimizers
    and sketches.
    """
    sizes = texts.sketches.sizes
    candidates = candidates[sizes[candidates] >= _LEAST_SIZE]
    reference = reference[sizes[reference] >= _LEAST_SIZE]
    # The relation is symmetric: the list of the fewer texts is the shorter one to sort.
    if len(candidates) < len(reference):
        first, second = _pairs(texts, candidates, reference, share)
    else:
        second, first = _pairs(texts, reference, candidates, share)
    similarity = _least_similarity(sizes[first], sizes[second], share)
    likely = ~are_far(texts.sketches, similarity, first, second, _SIGNATURE_DEVIATIONS)
    return first[likely], second[likely]


def _pairs(texts: Texts, few: np.ndarray, many: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of two lists of rows that share enough minimizers."""
    counts = texts.minimizers.counts
    values = _values(texts.minimizers, few)
    is_rare = ~positions(texts.common, values)[0]
    order = np.argsort(values[is_rare], kind="stable")
    text = np.repeat(np.arange(len(few)), counts[few])[is_rare][order]
    known, begin, num_texts = np.unique(values[is_rare][order], return_index=True, return_counts=True)
    pairs = [np.zeros((2, 0), np.int64)]
    # No row is in two blocks, so that all that a pair shares is counted at once.
    for block in blocks_of(counts[many], _BLOCK_VALUES):
        rows = many[block]
        is_hit, place = positions(known, _values(texts.minimizers, rows))
        place = place[is_hit]
        row = np.repeat(np.arange(len(rows)), counts[rows])[is_hit]
        pair = np.repeat(row, num_texts[place]) * len(few) + text[expand(begin[place], num_texts[place])]
        pair, num_shared = np.unique(pair, return_counts=True)
        first, second = few[pair % max(1, len(few))], rows[pair // max(1, len(few))]
        enough = _share_enough(texts, first, second, num_shared, share)
        pairs.append(np.stack([first[enough], second[enough]]))
    first, second = np.concatenate(pairs, axis=1)
    return first, second


def _share_enough(
    texts: Texts, first: np.ndarray, second: np.ndarray, num_rare: np.ndarray, share: float
) -> np.ndarray:
    """Return the places of the pairs of rows that share enough minimizers, of which some are in few texts.

    Args:
        texts: all texts.
        first, second: rows.
        num_rare: minimizers that are not common and that they share.
        share: see `find_contained`.
    """
    counts = texts.minimizers.counts
    shorter = _shorter(texts.sketches.sizes, counts, first, second)
    chosen = np.flatnonzero(num_rare >= _LEAST_RARE * counts[shorter])
    shorter = shorter[chosen]
    least = _least_shared(counts[shorter], texts.sketches.sizes[shorter], share)
    unsure = num_rare[chosen] < least
    shared = _count_shared(texts.minimizers, first[chosen[unsure]], second[chosen[unsure]])
    is_enough = ~unsure
    is_enough[unsure] = shared >= least[unsure]
    return chosen[is_enough]


def _shorter(sizes: np.ndarray, counts: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the row of each pair that has fewer shingles, or as many and fewer minimizers: the same one from
    either side.
    """
    is_first = (sizes[first] < sizes[second]) | (
        (sizes[first] == sizes[second]) & (counts[first] < counts[second])
    )
    return np.where(is_first, first, second)


def _count_shared(minimizers: Minimizers, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how many minimizers pairs of rows share."""
    rows = distinct(np.concatenate([first, second]))
    sets = ShingleSets.of(_values(minimizers, rows).astype(np.uint64), minimizers.counts[rows])
    return count_shared(sets, np.searchsorted(rows, first), np.searchsorted(rows, second))


def _values(minimizers: Minimizers, rows: np.ndarray) -> np.ndarray:
    return minimizers.values[expand(minimizers.offsets[rows], minimizers.counts[rows])]


def _least_shared(counts: np.ndarray, sizes: np.ndarray, share: float) -> np.ndarray:
    """Return how many of the minimizers of each text another one has that has a share of its shingles; at
    least one.
    """
    lost = _LOST * np.floor((1 - share) * sizes + 1e-9)
    return np.maximum(1, counts - np.floor(lost + _DEVIATIONS * np.sqrt(lost)).astype(np.int64))


def _least_similarity(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Return the Jaccard similarity of two texts from their numbers of shingles and the share of the shorter
    text that the longer one contains.
    """
    shared = share * np.minimum(first, second)
    return shared / (first + second - shared)
