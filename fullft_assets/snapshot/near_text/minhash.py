"""Sketches of texts: what of each is kept to find near-duplicates among many without reading them again.

A sketch has the MinHashes of a text's shingles under several hash functions (Broder 1997): two texts agree in
each with a probability of their Jaccard similarity. Texts that agree in all MinHashes of a band (Leskovec et
al., Mining of Massive Datasets, ch. 3) are a candidate pair. Most of those are far from near: one byte of
each MinHash (Li and Koenig 2010, b-bit minwise hashing) shows it without reading the texts.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fullft_assets.snapshot.near_text.shingles import SORTED_ROWS, ShingleSets, mix, shingle_sets

#: Jaccard similarity of word shingles from which two texts are near-duplicates.
SIMILARITY = 0.8
#: A pair exactly at that similarity agrees in one of 21 bands of 6 MinHashes in 998 of 1,000 cases.
_BAND_HASHES = 6
_NUM_BANDS = 21
NUM_HASHES = _NUM_BANDS * _BAND_HASHES
#: Texts whose shingles are held at once.
BLOCK_TEXTS = 1 << 15
_UINT64 = np.uint64
#: A hash function is the product with an odd number, modulo 2^64; shingles are hashes already.
_FACTORS = mix(np.arange(1, NUM_HASHES + 1, dtype=_UINT64)) | _UINT64(1)


@dataclass(frozen=True)
class Sketches:
    """What is kept of n texts to find near-duplicates among them without reading them again.

    Attributes:
        bands: uint64 [num_bands, n]; texts with an equal key in one band are a candidate pair.
        sizes: int64 [n], distinct shingles of each text.
        signatures: uint8 [n, NUM_HASHES], a byte of each MinHash; the share that agrees estimates the
            similarity.
        sets: uint64 [n], hash of each text's whole set: equal for texts that differ in case, spaces and
            punctuation only.
    """

    bands: np.ndarray
    sizes: np.ndarray
    signatures: np.ndarray
    sets: np.ndarray


def concatenate(parts: Iterable[Sketches]) -> Sketches:
    """Return the sketches of several lists of texts as one."""
    all_parts = [_NONE, *parts]
    return Sketches(
        np.concatenate([part.bands for part in all_parts], axis=1),
        np.concatenate([part.sizes for part in all_parts]),
        np.concatenate([part.signatures for part in all_parts]),
        np.concatenate([part.sets for part in all_parts]),
    )


_NONE = Sketches(
    np.zeros((_NUM_BANDS, 0), _UINT64),
    np.zeros(0, np.int64),
    np.zeros((0, NUM_HASHES), np.uint8),
    np.zeros(0, _UINT64),
)


def sketch(texts: pa.Array | pa.ChunkedArray, seed: int) -> Sketches:
    """Return the sketches of texts; they depend on nothing but each text and the seed."""
    blocks = [texts.slice(start, BLOCK_TEXTS) for start in range(0, len(texts), BLOCK_TEXTS)]
    return concatenate(sketch_sets(shingle_sets(block, seed)) for block in blocks)


def sketch_sets(sets: ShingleSets) -> Sketches:
    """Return the sketches of shingle sets; `sketch` for sets that are at hand. No set is empty."""
    rows = np.arange(len(sets.sizes))
    blocks = (rows[start : start + SORTED_ROWS] for start in range(0, len(rows), SORTED_ROWS))
    return concatenate(_sketch_block(sets.values_of(block), sets.sizes[block]) for block in blocks)


def _sketch_block(values: np.ndarray, sizes: np.ndarray) -> Sketches:
    starts = np.cumsum(sizes) - sizes
    minima = np.empty((NUM_HASHES, len(sizes)), _UINT64)
    for number, factor in enumerate(_FACTORS):
        minima[number] = np.minimum.reduceat(values * factor, starts)
    minima = mix(minima)
    bands = np.zeros((_NUM_BANDS, len(sizes)), _UINT64)
    for number in range(_BAND_HASHES):
        bands += minima[number::_BAND_HASHES] * _FACTORS[number]
    sets = mix(np.add.reduceat(mix(values), starts))
    return Sketches(mix(bands), sizes, (minima.T >> _UINT64(56)).astype(np.uint8), sets)
