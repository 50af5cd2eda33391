"""Texts that are inside longer ones across the split, such as a mail quoted in the reply to it.

The Jaccard similarity of such a pair is small. What shows it is the share of the shorter text's shingles that
the longer one has (Broder 1997, "On the resemblance and containment of documents"). A passage of WINDOW
shingles that is quoted word for word keeps its minimizers: texts are a candidate pair that share enough of
them, and the exact share confirms it.

A minimizer in more than MAX_ROWS texts (of a disclaimer, of a standard clause) shows no copy of a document,
and is not looked up.
"""

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
from fullft_assets.snapshot.near_text.shingles import ShingleSets, distinct, expand

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

    minimizers: ShingleSets
    sketches: Sketches
    common: np.ndarray


def common(minimizers: ShingleSets, rows: np.ndarray) -> np.ndarray:
    """Return the minimizers (ascending) that more than MAX_ROWS of some rows have."""
    values = np.sort(minimizers.values_of(rows))
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
    values = texts.minimizers.values_of(reference)
    text = np.repeat(np.arange(len(reference)), texts.minimizers.sizes[reference])
    is_rare = ~positions(texts.common, values)[0]
    order = np.argsort(values[is_rare], kind="stable")
    text = text[is_rare][order]
    known, begin, num_texts = np.unique(values[is_rare][order], return_index=True, return_counts=True)
    pairs = [np.zeros((2, 0), np.int64)]
    # No row is in two blocks, so that all that a pair shares is counted at once.
    for block in blocks_of(texts.minimizers.sizes[candidates], _BLOCK_VALUES):
        rows = candidates[block]
        is_hit, place = positions(known, texts.minimizers.values_of(rows))
        place = place[is_hit]
        row = np.repeat(np.arange(len(rows)), texts.minimizers.sizes[rows])[is_hit]
        pair = np.repeat(row, num_texts[place]) * len(reference)
        pair += text[expand(begin[place], num_texts[place])]
        pair, num_rare = np.unique(pair, return_counts=True)
        row, of_pair = np.divmod(pair, max(1, len(reference)))
        chosen = _share_enough(texts, rows[row], reference[of_pair], num_rare, share)
        pairs.append(np.stack([rows[row[chosen]], reference[of_pair[chosen]]]))
    first, second = np.concatenate(pairs, axis=1)
    # The least Jaccard similarity of two texts of which the longer one has this share of the shorter one.
    shared = share * np.minimum(sizes[first], sizes[second])
    similarity = shared / (sizes[first] + sizes[second] - shared)
    likely = ~are_far(texts.sketches, similarity, first, second, _SIGNATURE_DEVIATIONS)
    return first[likely], second[likely]


def _share_enough(
    texts: Texts, first: np.ndarray, second: np.ndarray, num_rare: np.ndarray, share: float
) -> np.ndarray:
    """Return the places of the pairs of rows that share enough minimizers, of which some (`num_rare`) are in
    few texts.
    """
    counts, sizes = texts.minimizers.sizes, texts.sketches.sizes
    # Of as many shingles, the text with fewer minimizers: the same one from either side.
    is_first = (sizes[first] < sizes[second]) | (
        (sizes[first] == sizes[second]) & (counts[first] < counts[second])
    )
    shorter = np.where(is_first, first, second)
    chosen = np.flatnonzero(num_rare >= _LEAST_RARE * counts[shorter])
    shared = count_shared(texts.minimizers, first[chosen], second[chosen])
    return chosen[shared >= _least_shared(counts[shorter[chosen]], sizes[shorter[chosen]], share)]


def _least_shared(counts: np.ndarray, sizes: np.ndarray, share: float) -> np.ndarray:
    """Return how many of the minimizers of each text another one has that has a share of its shingles; at
    least one.
    """
    lost = _LOST * np.floor((1 - share) * sizes + 1e-9)
    return np.maximum(1, counts - np.floor(lost + _DEVIATIONS * np.sqrt(lost)).astype(np.int64))
