"""The words of texts, as hashes, in any script: what shingles and the runs of screening are made of.

A word is a run of letters, digits and underscores, in lower case; marks on letters (the vowel signs of
Arabic, Hebrew and of Indian scripts) neither end nor change it. Chinese, Japanese, Thai, Lao, Khmer, Burmese
and the Tai scripts put no spaces between words (the line breaking classes ID and SA of Unicode Standard Annex
14): there each letter is a word by itself, also in a text of several scripts.

Whole columns at a time: the words of a block are split by Arrow, and each distinct word is hashed once.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

#: Kinds of words: one of several letters, a Chinese character, and a letter of another script without spaces.
WORD, IDEOGRAPH, LETTER = range(3)
#: How much of a word each kind is, in sixths. Messages of Django in English have a word for 1.8 letters of
#: their Chinese translation, 2.8 of the Japanese, 3.7 of the Thai, 3.4 of the Khmer and 2.7 of the Burmese
#: one.
SIXTHS = np.array([6, 3, 2])
_IDEOGRAPHS = r"\p{Han}\p{Yi}"
# The marks that lengthen a vowel are of no script.
_LETTERS = (
    r"\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}"
    r"\p{Tai_Tham}\p{Tai_Viet}ーｰ"
)
_BLOCK_BYTES = 1 << 24
_BLOCK_TEXTS = 1 << 16
_WORD = re.compile(r"\w+")
#: Word characters of ASCII in lower case, all else a space; other bytes stay, and are looked at once a
#: distinct word.
_TO_WORDS = bytes(
    ord(chr(c).lower()) if c > 127 or chr(c).isalnum() or c == ord("_") else 32 for c in range(128)
) + bytes(range(128, 256))


@dataclass(frozen=True)
class Words:
    """The words of n texts, one text after the other.

    Attributes:
        hashes: uint64 [m], the first 8 bytes of each word's BLAKE2b: they do not depend on a seed or a
            platform.
        counts: int64 [n], number of words of each text.
        kinds: uint8 [m], kind of each word; None where all are of the kind WORD.
    """

    hashes: np.ndarray
    counts: np.ndarray
    kinds: np.ndarray | None = None

    def sixths(self) -> np.ndarray:
        """Return the length of each word in sixths of a word."""
        return np.full(len(self.hashes), SIXTHS[WORD]) if self.kinds is None else SIXTHS[self.kinds]


def hash_words(texts: pa.Array | pa.ChunkedArray) -> Words:
    """Return the words of texts; null counts as empty."""
    parts = [block_words(block) for block in blocks(texts)]
    hashes = np.concatenate([np.zeros(0, np.uint64), *(words.hashes for words in parts)])
    counts = np.concatenate([np.zeros(0, np.int64), *(words.counts for words in parts)])
    if all(words.kinds is None for words in parts):
        return Words(hashes, counts)
    return Words(
        hashes,
        counts,
        np.concatenate([np.zeros(len(w.hashes), np.uint8) if w.kinds is None else w.kinds for w in parts]),
    )


def blocks(texts: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    """Yield texts in blocks of a bounded size."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        lengths = pc.fill_null(pc.binary_length(chunk), 0).to_numpy(zero_copy_only=False)
        block = np.cumsum(lengths, dtype=np.int64) // _BLOCK_BYTES
        starts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(chunk)]
        for start, end in zip(starts, starts[1:], strict=False):
            for first in range(start, end, _BLOCK_TEXTS):
                yield chunk.slice(first, min(_BLOCK_TEXTS, end - first))


def block_words(texts: pa.Array) -> Words:
    """Return the words of one block."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.fill_null(texts.cast(pa.string()), "")
    places = _may_lack_spaces(texts)
    if len(places):
        texts = _part(texts, places)
    offsets, data = _bytes_of(texts)
    spaced = pa.BinaryArray.from_buffers(
        pa.binary(),
        len(texts),
        [None, pa.py_buffer(offsets - offsets[0]), pa.py_buffer(bytes(data).translate(_TO_WORDS))],
    )
    split = pc.ascii_split_whitespace(spaced.view(pa.string()))
    encoded = split.values.cast(pa.binary()).dictionary_encode()
    number, ends = encoded.indices.to_numpy(), split.offsets.to_numpy()
    hashes, counts = _distinct_words(encoded.dictionary.to_pylist())
    of_words, num_words = _spread(hashes, counts, number, ends)
    if not len(places):
        return Words(of_words, num_words)
    kinds = _kinds(encoded.dictionary.cast(pa.string())).repeat(counts)
    return Words(of_words, num_words, _spread(kinds, counts, number, ends)[0])


def _bytes_of(texts: pa.Array) -> tuple[np.ndarray, memoryview]:
    """Return a slice's offsets and its own bytes only: a buffer may hold its whole parent."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return offsets, memoryview(texts.buffers()[2] or b"")[offsets[0] : offsets[-1]]


def _may_lack_spaces(texts: pa.Array) -> np.ndarray:
    """Return the positions of the texts with bytes that characters of scripts without spaces begin with (and
    some others do).
    """
    offsets, data = _bytes_of(texts)
    codes = np.frombuffer(data, np.uint8)
    # From U+0E00 on; E2 begins the punctuation of all scripts.
    at = np.flatnonzero(codes >= 0xE0)
    at = at[codes[at] != 0xE2]
    return np.unique(np.searchsorted(offsets[1:] - offsets[0], at, "right")) if len(at) else at


def _part(texts: pa.Array, places: np.ndarray) -> pa.Array:
    """Return texts with spaces around each letter of scripts without spaces in those at the given
    positions.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    chosen = np.zeros(len(texts), bool)
    chosen[places] = True
    return pc.replace_with_mask(texts, pa.array(chosen), _parted(texts.take(pa.array(places))))


def _parted(texts: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    return pc.replace_substring_regex(texts, rf"([{_IDEOGRAPHS}{_LETTERS}]\p{{M}}*)", r" \1 ")


def _kinds(runs: pa.Array) -> np.ndarray:
    """Return the kind of the words of each distinct run."""
    import pyarrow.compute as pc

    kinds = np.full(len(runs), WORD, np.uint8)
    for kind, letters in ((IDEOGRAPH, _IDEOGRAPHS), (LETTER, _LETTERS)):
        kinds[pc.match_substring_regex(runs, f"^[{letters}]").to_numpy(zero_copy_only=False)] = kind
    return kinds


def _spread(
    values: np.ndarray, counts: np.ndarray, number: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of all words in their order, and how many words each text has.

    Args:
        values: of the words in each distinct run, run by run.
        counts: number of words of each distinct run.
        number: the runs of all texts.
        ends: n + 1 offsets of the texts' runs.
    """
    begin, num_words = np.cumsum(counts) - counts, np.diff(ends)
    spread = np.append(values, values.dtype.type(0))[begin].take(number)
    # Nearly every run is one word; the others are set right.
    odd = np.flatnonzero((counts != 1).take(number))
    if len(odd):
        more = counts[number[odd]] - 1
        num_words = num_words + np.bincount(
            np.searchsorted(ends, odd, "right") - 1, more, len(ends) - 1
        ).astype(np.int64)
        several, empty = odd[more > 0], odd[more < 0]
        is_word = np.ones(len(spread), bool)
        is_word[empty] = False
        spread = spread[is_word]
        more = more[more > 0]
        run = number[several]
        if len(several):
            after = several + 1 - np.searchsorted(empty, several)
            spread = np.insert(spread, after.repeat(more), values[expand(begin[run] + 1, more)])
    return spread, num_words


def _distinct_words(runs: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of the words in each run of word bytes, and how many there are: none in an empty run,
    several in `l’état`.
    """
    words, counts = [], np.ones(len(runs), np.int64)
    for number, run in enumerate(runs):
        if run and run.isascii():
            words.append(run)
        else:
            words_of_run = _words_of_run(run.decode())
            counts[number] = len(words_of_run)
            words += [word.encode() for word in words_of_run]
    digests = b"".join([hashlib.blake2b(word, digest_size=8).digest() for word in words])
    return np.frombuffer(digests, "<u8"), counts


def _words_of_run(run: str) -> list[str]:
    lower = unicodedata.normalize("NFC", run.lower())
    return _WORD.findall(lower if lower.isalnum() else lower.translate(_WITHOUT_MARKS))


class _WithoutMarks(dict[int, int | None]):
    def __missing__(self, code: int) -> int | None:
        self[code] = None if unicodedata.category(chr(code)).startswith("M") else code
        return self[code]


_WITHOUT_MARKS = _WithoutMarks()


def expand(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the concatenation of the ranges [start, start + count)."""
    ends = np.cumsum(count)
    return np.repeat(start - ends + count, count) + np.arange(ends[-1] if len(ends) else 0)
