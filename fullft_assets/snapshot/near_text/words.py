"""The words of texts, as hashes, in any script: what shingles and the runs of screening are made of.

A word is a run of letters, digits and underscores, in lower case; marks on letters (the vowel signs of
Arabic, Hebrew and of Indian scripts) neither end nor change it. Chinese, Japanese, Thai, Lao, Khmer, Burmese
and the Tai scripts put no spaces between words (the line breaking classes ID and SA of Unicode Standard Annex
14): there each letter is a word by itself, also in a text of several scripts.

Whole columns at a time: the words of a block are split by Arrow, and each distinct word is hashed once.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
        kinds: uint8 [m], kind of each word.
    """

    hashes: np.ndarray
    counts: np.ndarray
    kinds: np.ndarray


def hash_words(texts: pa.Array | pa.ChunkedArray) -> Words:
    """Return the words of texts; null counts as empty."""
    parts = [block_words(block) for block in blocks(texts)]
    return Words(
        np.concatenate([np.zeros(0, np.uint64), *(words.hashes for words in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(words.counts for words in parts)]),
        np.concatenate([np.zeros(0, np.uint8), *(words.kinds for words in parts)]),
    )


def blocks(texts: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    """Yield texts in blocks of a bounded size."""

    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        lengths = pc.fill_null(pc.binary_length(chunk), 0).to_numpy(zero_copy_only=False)
        block = np.cumsum(lengths, dtype=np.int64) // _BLOCK_BYTES
        starts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(chunk)]
        for start, end in zip(starts, starts[1:], strict=False):
            for first in range(start, end, _BLOCK_TEXTS):
                yield chunk.slice(first, min(_BLOCK_TEXTS, end - first))


def block_words(texts: pa.Array) -> Words:
    """Return the words of one block."""

    texts = pc.fill_null(texts.cast(pa.string()), "")
    lacks_spaces = _may_lack_spaces(texts)
    if lacks_spaces.any():
        parted = parted_letters(texts.filter(pa.array(lacks_spaces)))
        texts = pc.replace_with_mask(texts, pa.array(lacks_spaces), parted)
    offsets, data = _bytes_of(texts)
    spaced = pa.BinaryArray.from_buffers(
        pa.binary(),
        len(texts),
        [None, pa.py_buffer(offsets - offsets[0]), pa.py_buffer(bytes(data).translate(_TO_WORDS))],
    )
    split = pc.ascii_split_whitespace(spaced.view(pa.string()))
    runs = split.values.cast(pa.binary()).dictionary_encode()
    hashes, num_words = _distinct_words(runs.dictionary.to_pylist())
    # The words of all runs in their order: most runs are one word.
    number = runs.indices.to_numpy()
    counts = num_words[number]
    word = expand((np.cumsum(num_words) - num_words)[number], counts)
    kinds = np.full(len(word), WORD, np.uint8)
    if lacks_spaces.any():
        kinds = _kinds(runs.dictionary.cast(pa.string())).repeat(num_words)[word]
    ends = np.concatenate([[0], np.cumsum(counts)])[split.offsets.to_numpy()]
    return Words(hashes[word], np.diff(ends), kinds)


def _bytes_of(texts: pa.Array) -> tuple[np.ndarray, memoryview]:
    """Return a slice's offsets and its own bytes only: a buffer may hold its whole parent."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return offsets, memoryview(texts.buffers()[2] or b"")[offsets[0] : offsets[-1]]


def _may_lack_spaces(texts: pa.Array) -> np.ndarray:
    """Return which texts [n] have bytes that characters of scripts without spaces begin with (and some others
    do).
    """
    offsets, data = _bytes_of(texts)
    codes = np.frombuffer(data, np.uint8)
    # From U+0E00 on; E2 begins the punctuation of all scripts.
    at = np.flatnonzero((codes >= 0xE0) & (codes != 0xE2))
    lacks_spaces = np.zeros(len(texts), bool)
    lacks_spaces[np.searchsorted(offsets[1:] - offsets[0], at, "right")] = True
    return lacks_spaces


def parted_letters(texts: pa.Array) -> pa.Array:
    """Return texts with spaces around each letter of scripts without spaces."""

    return pc.replace_substring_regex(texts, rf"([{_IDEOGRAPHS}{_LETTERS}]\p{{M}}*)", r" \1 ")


def _kinds(runs: pa.Array) -> np.ndarray:

    kinds = np.full(len(runs), WORD, np.uint8)
    for kind, letters in ((IDEOGRAPH, _IDEOGRAPHS), (LETTER, _LETTERS)):
        kinds[pc.match_substring_regex(runs, f"^[{letters}]").to_numpy(zero_copy_only=False)] = kind
    return kinds


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
