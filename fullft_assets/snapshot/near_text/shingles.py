"""Texts as sets of hashed word shingles: what near-duplicates and overlaps are measured on.

All of it works on whole columns: `words` has the words of a block as hashes, and three neighbouring words'
hashes are combined by numpy. Where a script has no spaces, a shingle is three Chinese characters, or five
letters of another script.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fullft_assets.snapshot.near_text.words import LETTER, Words, block_words, blocks, expand

SHINGLE_WORDS = 3
#: Letters of an alphabet without spaces that count as one word of a shingle: two Thai texts share most of
#: their runs of three letters.
_LETTERS = 3
#: A shingle's hash has 52 bits: above them fits the number of one of 4,096 rows, so that one sort of plain
#: integers orders a block by (row, shingle). Two different shingles of a pair of texts of 1,000 words collide
#: with a probability of 4e-10.
HASH_BITS = 52
BLOCK_ROWS = 1 << (64 - HASH_BITS)
#: Rows sorted at once: fewer, so that they fit a core's cache.
SORTED_ROWS = 1_024
#: Consecutive shingles of which one is a minimizer; a power of 2.
WINDOW = 8


@dataclass(frozen=True)
class ShingleSets:
    """Sets of hashed shingles: those of row i are the `sizes[i]` values from `starts[i]` on, ascending, each
    once.
    """

    values: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, sizes: np.ndarray) -> ShingleSets:
        """Return sets of these sizes, whose values are one after the other."""
        return cls(values, np.cumsum(sizes) - sizes, sizes)

    def select(self, rows: np.ndarray) -> ShingleSets:
        """Return the sets of the given rows, in that order, without copying a value."""
        return ShingleSets(self.values, self.starts[rows], self.sizes[rows])

    def values_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the values of the given rows, row by row."""
        return self.values[expand(self.starts[rows], self.sizes[rows])]


def shingle_sets(texts: pa.Array | pa.ChunkedArray, seed: int) -> ShingleSets:
    """Return each text's set of word shingles, hashed to `HASH_BITS` bits under a seed.

    A text of fewer than three words is one shingle; one without a word is compared as a whole.
    """
    return join((_distinct(*shingles) for shingles in _shingles(texts, seed)), np.uint64)


def sets_and_minimizers(texts: pa.Array | pa.ChunkedArray, seed: int) -> tuple[ShingleSets, ShingleSets]:
    """Return the shingle sets of texts, and the sets of their minimizers: of the smallest hash (its upper 32
    bits) of each run of WINDOW consecutive shingles.

    Texts that share a run of so many shingles share a minimizer (Roberts et al. 2004, "Reducing storage
    requirements for biological sequence comparison"). A text with fewer shingles has none.
    """
    sets = []
    minimizers = []
    for shingles in _shingles(texts, seed):
        minimizers.append(_least(*shingles))
        sets.append(_distinct(*shingles))
    return join(sets, np.uint64), join(minimizers, np.uint32)


def join(parts: Iterable[ShingleSets], kind: type[np.integer]) -> ShingleSets:
    """Return the sets of several lists of texts as one; `kind` is that of the values."""
    all_parts = list(parts)
    return ShingleSets.of(
        np.concatenate([np.zeros(0, kind), *(part.values for part in all_parts)]),
        np.concatenate([np.zeros(0, np.int64), *(part.sizes for part in all_parts)]),
    )


def _shingles(texts: pa.Array | pa.ChunkedArray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield the shingles of few texts at a time, the number of each one's text among them, and how many texts
    these are.
    """
    for block in blocks(texts):
        of_block = block_words(block)
        words, counts = _with_followers(of_block), of_block.counts
        ends = np.cumsum(counts)
        for start in range(0, len(block), SORTED_ROWS):
            end = min(start + SORTED_ROWS, len(block))
            of_few, few = words[ends[start] - counts[start] : ends[end - 1]], block.slice(start, end - start)
            yield *_shingles_of_words(of_few, counts[start:end], few, seed), len(few)


def _with_followers(words: Words) -> np.ndarray:
    """Return the words' hashes; of letters of an alphabet without spaces, those of each letter with the ones
    after it.
    """
    hashes, factors = words.hashes.copy(), _keys(0, _LETTERS)
    ends = np.cumsum(words.counts)
    letter = np.flatnonzero(words.kinds == LETTER)
    for n in range(1, _LETTERS):
        letter = letter[letter + n < ends[np.searchsorted(ends, letter, "right")]]
        letter = letter[words.kinds[letter + n] == LETTER]
        hashes[letter] += words.hashes[letter + n] * factors[n]
    return hashes


def _shingles_of_words(
    words: np.ndarray, counts: np.ndarray, texts: pa.Array, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    num_words = len(words)
    factors = _keys(seed, SHINGLE_WORDS)
    # Padding makes the short text at the very end a shingle like any other.
    padded = np.concatenate([words, np.zeros(SHINGLE_WORDS - 1, np.uint64)])
    mixed = words * factors[0]
    for n in range(1, SHINGLE_WORDS):
        mixed += padded[n : n + num_words] * factors[n]
    row = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    begin = np.cumsum(counts) - counts
    # The last words of a text begin no shingle, except the first word of a short text.
    is_shingle = np.ones(num_words, bool)
    for n in range(1, SHINGLE_WORDS):
        is_shingle[(begin + counts - n)[counts > n]] = False
    for size in range(1, SHINGLE_WORDS):
        short = begin[counts == size]
        mixed[short] = sum(
            (padded[short + n] * factors[n] for n in range(size)), np.zeros(len(short), np.uint64)
        )
    mixed, row = mixed[is_shingle], row[is_shingle]
    wordless = np.flatnonzero(counts == 0)
    if len(wordless):
        contents = [(text or "").encode() for text in texts.take(wordless).to_pylist()]
        whole = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
        mixed = np.concatenate([mixed, np.frombuffer(whole, "<u8") * factors[0]])
        row = np.concatenate([row, wordless.astype(np.uint64)])
    return mix(mixed) >> np.uint64(64 - HASH_BITS), row


def _distinct(shingles: np.ndarray, row: np.ndarray, num_rows: int) -> ShingleSets:
    packed = distinct((row << np.uint64(HASH_BITS)) | shingles)
    sizes = np.bincount((packed >> np.uint64(HASH_BITS)).astype(np.int64), minlength=num_rows)
    return ShingleSets.of(packed & np.uint64((1 << HASH_BITS) - 1), sizes)


def _least(shingles: np.ndarray, row: np.ndarray, num_rows: int) -> ShingleSets:
    least, size = (shingles >> np.uint64(HASH_BITS - 32)) | (row << np.uint64(32)), 1
    # A window that reaches over two rows has the least of the first one: it is excluded below.
    while size < WINDOW:
        least = np.minimum(least[:-size], least[size:])
        size *= 2
    least = least[row[: len(least)] == row[len(row) - len(least) :]]
    # Neighbouring windows often have one minimum: fewer are sorted.
    least = distinct(least[np.append(True, least[1:] != least[:-1])[: len(least)]])
    sizes = np.bincount((least >> np.uint64(32)).astype(np.int64), minlength=num_rows)
    return ShingleSets.of(least.astype(np.uint32), sizes)


def distinct(values: np.ndarray) -> np.ndarray:
    """Return the distinct integers in ascending order, by sorting: `np.unique` hashes, which takes fifty
    times as long for a million.
    """
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def mix(values: np.ndarray) -> np.ndarray:
    """Return uint64 values with every bit spread over all (the finaliser of SplitMix64; Steele, Lea, Flood
    2014).
    """
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _keys(seed: int, count: int) -> np.ndarray:
    digest = hashlib.blake2b(f"shingles/{seed}".encode(), digest_size=8 * count).digest()
    # Odd factors are bijections of the 64-bit integers.
    return np.frombuffer(digest, "<u8") | np.uint64(1)
