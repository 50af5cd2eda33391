"""Texts as sets of hashed word shingles: what near-duplicates and overlaps are measured on.

All of it works on whole columns: the words of a batch are split by Arrow, each distinct word is hashed
once, and three neighbouring words' hashes are combined by numpy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

SHINGLE_WORDS = 3
#: A shingle's hash has 52 bits: above them fits the number of one of 4,096 rows, so that one sort of plain integers orders a block
#: by (row, shingle). Two different shingles of a pair of texts of 1,000 words collide with a probability of 4e-10.
HASH_BITS = 52
BLOCK_ROWS = 1 << (64 - HASH_BITS)
#: Rows sorted at once: fewer, so that they fit a core's cache.
SORTED_ROWS = 1_024
_BLOCK_BYTES = 1 << 24
_BLOCK_TEXTS = 1 << 16
_NO_HASH = np.uint64(0)
_WORD = re.compile(r"\w+")
#: Word characters of ASCII in lower case, all else a space; other bytes stay, and are looked at once a distinct word.
_TO_WORDS = bytes(ord(chr(c).lower()) if c > 127 or chr(c).isalnum() or c == ord("_") else 32 for c in range(128)) + bytes(range(128, 256))


def word_hashes(texts: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the words of texts, lower-cased (letters, digits and underscores, as Unicode has them), as hashes.

    Args:
        texts: strings; null counts as empty.

    Returns:
        uint64 hashes of all words in their order, and n + 1 offsets: the words of text i are `hashes[offsets[i] : offsets[i + 1]]`.
        A hash is the first 8 bytes of the word's BLAKE2b: it does not depend on a seed or a platform.
    """
    hashes, counts = [], [np.zeros(1, np.int64)]
    for block in _blocks(texts):
        found, number = _block_words(block)
        hashes.append(found)
        counts.append(number)
    return np.concatenate([*hashes, np.zeros(0, np.uint64)]), np.cumsum(np.concatenate(counts))


def _blocks(texts: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    import pyarrow as pa
    import pyarrow.compute as pc

    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        lengths = pc.fill_null(pc.binary_length(chunk), 0).to_numpy(zero_copy_only=False)
        block = np.cumsum(lengths, dtype=np.int64) // _BLOCK_BYTES
        starts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(chunk)]
        for start, end in zip(starts, starts[1:], strict=False):
            for first in range(start, end, _BLOCK_TEXTS):
                yield chunk.slice(first, min(_BLOCK_TEXTS, end - first))


def _block_words(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.fill_null(texts.cast(pa.string()), "")
    # The slice's own bytes only: a buffer may hold its whole parent.
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    data = memoryview(texts.buffers()[2] or b"")[offsets[0] : offsets[-1]]
    spaced = pa.BinaryArray.from_buffers(
        pa.binary(), len(texts), [None, pa.py_buffer(offsets - offsets[0]), pa.py_buffer(bytes(data).translate(_TO_WORDS))]
    )
    split = pc.ascii_split_whitespace(spaced.view(pa.string()))
    encoded = split.values.cast(pa.binary()).dictionary_encode()
    number, ends = encoded.indices.to_numpy(), split.offsets.to_numpy()
    hashes, counts = _distinct_words(encoded.dictionary.to_pylist())
    begin = np.cumsum(counts) - counts
    found, num_words = np.append(hashes, _NO_HASH)[begin].take(number), np.diff(ends)
    # Nearly every run is one word; the others are set right.
    odd = np.flatnonzero((counts != 1).take(number))
    if len(odd):
        more = counts[number[odd]] - 1
        num_words = num_words + np.bincount(np.searchsorted(ends, odd, "right") - 1, more, len(texts)).astype(np.int64)
        several, empty = odd[more > 0], odd[more < 0]
        is_word = np.ones(len(found), bool)
        is_word[empty] = False
        found, more, run = found[is_word], more[more > 0], number[several]
        if len(several):
            after = several + 1 - np.searchsorted(empty, several)
            found = np.insert(found, after.repeat(more), hashes[expand(begin[run] + 1, more)])
    return found, num_words


def _distinct_words(runs: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of the words in each run of word bytes, and how many there are: none in an empty run, several in `l’état`."""
    words, counts = [], np.ones(len(runs), np.int64)
    for number, run in enumerate(runs):
        if run and run.isascii():
            words.append(run)
        else:
            found = _WORD.findall(run.decode().lower())
            counts[number] = len(found)
            words += [word.encode() for word in found]
    digests = b"".join([hashlib.blake2b(word, digest_size=8).digest() for word in words])
    return np.frombuffer(digests, "<u8"), counts


def expand(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the concatenation of the ranges [start, start + count)."""
    ends = np.cumsum(count)
    return np.repeat(start - ends + count, count) + np.arange(ends[-1] if len(ends) else 0)


@dataclass(frozen=True)
class ShingleSets:
    """Sets of hashed shingles: those of row i are `values[offsets[i] : offsets[i + 1]]`, ascending, each once; no set is empty."""

    values: np.ndarray
    offsets: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Number of distinct shingles of each row."""
        return np.diff(self.offsets)

    def row(self, number: int) -> np.ndarray:
        """Return the set of one row."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    def select(self, rows: np.ndarray) -> ShingleSets:
        """Return the sets of the given rows, in that order."""
        sizes = self.sizes[rows]
        return ShingleSets(self.values[expand(self.offsets[rows], sizes)], np.concatenate([[0], np.cumsum(sizes)]))


def shingle_sets(texts: pa.Array | pa.ChunkedArray, seed: int) -> ShingleSets:
    """Return each text's set of word shingles, hashed to `HASH_BITS` bits under a seed.

    A text of fewer than three words is one shingle; one without a word is compared as a whole.
    """
    values, sizes = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for block in _blocks(texts):
        words, counts = _block_words(block)
        ends = np.cumsum(counts)
        for start in range(0, len(block), SORTED_ROWS):
            end = min(start + SORTED_ROWS, len(block))
            mine = words[ends[start] - counts[start] : ends[end - 1]]
            found, number = _sets_of_words(mine, counts[start:end], block.slice(start, end - start), seed)
            values.append(found)
            sizes.append(number)
    return ShingleSets(np.concatenate(values), np.concatenate([[0], np.cumsum(np.concatenate(sizes))]))


def _sets_of_words(words: np.ndarray, counts: np.ndarray, texts: pa.Array, seed: int) -> tuple[np.ndarray, np.ndarray]:
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
        mixed[short] = sum((padded[short + n] * factors[n] for n in range(size)), np.zeros(len(short), np.uint64))
    mixed, row = mixed[is_shingle], row[is_shingle]
    wordless = np.flatnonzero(counts == 0)
    if len(wordless):
        whole = [int.from_bytes(hashlib.blake2b(_utf8(texts[int(n)].as_py()), digest_size=8).digest(), "little") for n in wordless]
        mixed = np.concatenate([mixed, np.array(whole, np.uint64) * factors[0]])
        row = np.concatenate([row, wordless.astype(np.uint64)])
    packed = (row << np.uint64(HASH_BITS)) | (mix(mixed) >> np.uint64(64 - HASH_BITS))
    packed.sort()
    packed = packed[np.concatenate([[True], packed[1:] != packed[:-1]])] if len(packed) else packed
    sizes = np.diff(np.searchsorted(packed, np.arange(len(counts), dtype=np.uint64) << np.uint64(HASH_BITS)), append=len(packed))
    return packed & np.uint64((1 << HASH_BITS) - 1), sizes


def mix(values: np.ndarray) -> np.ndarray:
    """Return uint64 values with every bit spread over all (the finaliser of SplitMix64; Steele, Lea, Flood 2014)."""
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


def _utf8(text: str | None) -> bytes:
    return (text or "").encode("utf-8", "surrogatepass")
