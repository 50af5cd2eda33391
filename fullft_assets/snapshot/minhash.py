"""Sketches of texts: what of each is kept to find near-duplicates among many without reading them again.

They are made by one-permutation hashing (Li, Owen, Zhang 2012): the shingles' hashes are dealt into bins, and
a bin's smallest hash is one MinHash. An empty bin borrows from the first filled one in a random order of its
own, the same for all texts (optimal densification, Shrivastava 2017), so that two texts agree in each bin
with a probability of their Jaccard similarity. Texts that agree in all bins of a band (Leskovec et al.,
Mining of Massive Datasets, ch. 3) are a candidate pair. Most of those are far from near: one byte a bin (Li
and Koenig 2010, b-bit minwise hashing) shows it without reading the texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fullft_assets.snapshot.shingles import HASH_BITS, SORTED_ROWS, ShingleSets, mix, shingle_sets

if TYPE_CHECKING:
    import pyarrow as pa

_NUM_BINS = 128
#: Texts whose shingles are held at once.
BLOCK_TEXTS = 1 << 15
#: Texts with more filled bins than this have so few empty ones that each asks the lenders one by one.
_MANY_FILLED = 32
_UINT64 = np.uint64


def band_rows(similarity: float) -> int:
    """Return the bins of a band: the most that still propose a pair exactly at the threshold with probability
    0.99 or more.
    """
    for num_rows in (16, 12, 8, 6, 5, 4, 3, 2):
        if 1 - (1 - similarity**num_rows) ** (_NUM_BINS // num_rows) >= 0.99:
            return num_rows
    return 1


@dataclass(frozen=True)
class Sketches:
    """What is kept of n texts to find near-duplicates among them without reading them again.

    Attributes:
        bands: uint64 [num_bands, n]; texts with an equal key in one band are a candidate pair.
        sizes: int64 [n], distinct shingles of each text.
        signatures: uint8 [n, num_bins], a byte of each MinHash; the share that agrees estimates the
            similarity.
        sets: uint64 [n], hash of each text's whole set: equal for texts that differ in case, spaces and
            punctuation only.
    """

    bands: np.ndarray
    sizes: np.ndarray
    signatures: np.ndarray
    sets: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def select(self, rows: np.ndarray) -> Sketches:
        """Return the sketches of the given rows, in that order."""
        return Sketches(self.bands[:, rows], self.sizes[rows], self.signatures[rows], self.sets[rows])


def concatenate(parts: Iterable[Sketches], num_texts: int) -> Sketches:
    """Return the sketches of several batches as one, in the order given; of the parts one is held at a time.

    Args:
        parts: at least one, of as many bands and bins.
        num_texts: of all parts together.
    """
    whole, begin = None, 0
    for part in parts:
        if whole is None:
            num_bands, num_bins = len(part.bands), part.signatures.shape[1]
            whole = Sketches(
                np.empty((num_bands, num_texts), _UINT64),
                np.empty(num_texts, np.int64),
                np.empty((num_texts, num_bins), np.uint8),
                np.empty(num_texts, _UINT64),
            )
        place = slice(begin, begin + len(part))
        whole.bands[:, place] = part.bands
        for name in ("sizes", "signatures", "sets"):
            getattr(whole, name)[place] = getattr(part, name)
        begin += len(part)
        del part  # before the next one is read
    assert whole is not None, "there is at least one part"
    return whole


def sketch(texts: pa.Array | pa.ChunkedArray, similarity: float, seed: int) -> Sketches:
    """Return the sketches of texts for one threshold; they depend on nothing but each text, the threshold and
    the seed.
    """
    blocks = [texts.slice(start, BLOCK_TEXTS) for start in range(0, max(1, len(texts)), BLOCK_TEXTS)]
    return concatenate((sketch_sets(shingle_sets(block, seed), similarity) for block in blocks), len(texts))


def sketch_sets(sets: ShingleSets, similarity: float) -> Sketches:
    """Return the sketches of shingle sets; `sketch` for sets that are at hand."""
    num_texts = len(sets.sizes)
    starts = range(0, max(1, num_texts), SORTED_ROWS)
    blocks = (np.arange(start, min(start + SORTED_ROWS, num_texts)) for start in starts)
    return concatenate(
        (_sketch_block(sets.values_of(rows), sets.sizes[rows], similarity) for rows in blocks), num_texts
    )


def _sketch_block(values: np.ndarray, sizes: np.ndarray, similarity: float) -> Sketches:
    """Return the sketches of sets of these sizes, whose values are one after the other."""
    num_rows = band_rows(similarity)
    num_bands = _NUM_BINS // num_rows
    num_bins = num_bands * num_rows
    if not len(sizes):
        return Sketches(
            np.zeros((num_bands, 0), _UINT64), sizes, np.zeros((0, num_bins), np.uint8), np.zeros(0, _UINT64)
        )
    row = np.repeat(np.arange(len(sizes)), sizes)
    shift = _UINT64(HASH_BITS - 16)
    bins = (((values >> shift) * _UINT64(num_bins)) >> _UINT64(16)).astype(np.int64)
    # Values ascend within a row and bins with them: the first of a bin is its smallest.
    place = row * num_bins + bins
    first = np.flatnonzero(np.append(True, place[1:] != place[:-1]))
    dense, is_filled = np.zeros((len(sizes), num_bins), _UINT64), np.zeros((len(sizes), num_bins), bool)
    dense.ravel()[place[first]] = mix(values[first])
    is_filled.ravel()[place[first]] = True
    _lend(dense, is_filled)
    factors = mix(np.arange(1, num_rows + 1, dtype=_UINT64)) | _UINT64(1)
    bands = np.zeros((len(sizes), num_bands), _UINT64)
    for n in range(num_rows):
        bands += dense[:, n::num_rows] * factors[n]
    bands = mix(bands)
    sets = mix(np.add.reduceat(mix(values), np.cumsum(sizes) - sizes))
    return Sketches(np.ascontiguousarray(bands.T), sizes, (dense >> _UINT64(56)).astype(np.uint8), sets)


@cache
def _preferences(num_bins: int) -> np.ndarray:
    """Return [borrower, rank]: the bins that each bin prefers to borrow from, the first one first."""
    return np.random.default_rng(20_17).permuted(np.tile(np.arange(num_bins), (num_bins, 1)), axis=1)


@cache
def _ranks(num_bins: int) -> np.ndarray:
    """Return uint16 [lender, borrower]: rank of the lender in the borrower's order of preference, times the
    bins, plus the lender.

    The least over a text's filled bins names, modulo the bins, the first filled one in that order; a filled
    bin prefers itself.
    """
    rank = np.argsort(_preferences(num_bins), axis=1).T + 1
    np.fill_diagonal(rank, 0)
    return (rank * _NUM_BINS + np.arange(num_bins)[:, None]).astype(np.uint16)


def _lend(values: np.ndarray, is_filled: np.ndarray) -> None:
    """Give each empty bin of values [n, num_bins] the value of the first filled bin in its order of
    preference.
    """
    num_filled = np.count_nonzero(is_filled, axis=1)
    few, many = np.flatnonzero(num_filled <= _MANY_FILLED), np.flatnonzero(num_filled > _MANY_FILLED)
    if len(few):
        lenders = _first_of_few(np.nonzero(is_filled[few])[1], num_filled[few], values.shape[1])
        values[few] = np.take_along_axis(values[few], lenders, axis=1)
    if len(many):
        _ask_in_turn(values, is_filled, many)


def _first_of_few(filled: np.ndarray, counts: np.ndarray, num_bins: int) -> np.ndarray:
    """Return [n, num_bins]: the bin that lends each bin its value, from each text's filled bins (their
    counts, concatenated).
    """
    ranks = _ranks(num_bins)
    # Texts with most filled bins first: then the k-th bins of all texts that have one are a prefix, and one
    # call takes their minimum.
    order = np.argsort(-counts)
    begin = (np.cumsum(counts) - counts)[order]
    best = np.full((len(counts), num_bins), np.iinfo(np.uint16).max, np.uint16)
    for k, num in enumerate(
        np.searchsorted(-counts[order], -np.arange(1, counts.max() + 1), "right").tolist()
    ):
        np.minimum(best[:num], ranks[filled[begin[:num] + k]], out=best[:num])
    chosen = np.empty((len(counts), num_bins), np.int64)
    chosen[order] = best % _NUM_BINS
    return chosen


def _ask_in_turn(values: np.ndarray, is_filled: np.ndarray, rows: np.ndarray) -> None:
    """Do the same for rows with so many filled bins that a lender is soon found."""
    num_bins = values.shape[1]
    preferences, flat, flat_filled = _preferences(num_bins), values.ravel(), is_filled.ravel()
    which, borrower = np.nonzero(~is_filled[rows])
    base = rows[which] * num_bins
    for rank in range(num_bins):
        if not len(borrower):
            return
        lender = base + preferences[borrower, rank]
        found = flat_filled[lender]
        flat[(base + borrower)[found]] = flat[lender[found]]
        borrower, base = borrower[~found], base[~found]
