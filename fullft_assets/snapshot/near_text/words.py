"""The words of texts, in any script: what near-duplicates and the runs of screening are made of.

A word is a run of letters, digits and underscores, in lower case; marks on letters (the vowel signs of
Arabic, Hebrew and of Indian scripts) neither end nor change it. Chinese, Japanese, Thai, Lao, Khmer, Burmese
and the Tai scripts put no spaces between words (the line breaking classes ID and SA of Unicode Standard Annex
14): there each letter is a word by itself, also in a text of several scripts.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fullft_assets.snapshot.all_rows import distinct

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
SHINGLE_WORDS = 3
#: Two different shingles of a pair of texts of 1,000 words collide with a probability of 4e-10.
HASH_BITS = 52
#: Of the hashes of runs; odd, so that it has an inverse modulo 2^64.
_FACTOR = 0x9E3779B97F4A7C15
_BLOCK_TEXTS = 1 << 12
#: Word characters of ASCII in lower case, all else a space.
_ASCII_WORDS = bytes(
    ord(chr(code).lower()) if chr(code).isalnum() or code == ord("_") else 32 for code in range(128)
) + bytes(range(128, 256))


@dataclass(frozen=True)
class Words:
    """The words of n texts, one text after the other.

    Attributes:
        hashes: uint64 [m], the first 8 bytes of each word's BLAKE2b: they do not depend on a platform.
        counts: int64 [n], number of words of each text.
        kinds: uint8 [m], kind of each word.
    """

    hashes: np.ndarray
    counts: np.ndarray
    kinds: np.ndarray


def hash_words(texts: pa.Array | pa.ChunkedArray) -> Words:
    """Return the words of texts; null counts as empty."""
    parts = [
        Words(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.uint8)),
        *(hash_lists(split_words(block)) for block in blocks(texts)),
    ]
    return Words(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))


def hash_lists(lists: pa.ListArray) -> Words:
    """Return lists of words as hashes."""
    encoding = lists.flatten().dictionary_encode()
    number = encoding.indices.to_numpy()
    digests = b"".join(
        [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in encoding.dictionary.to_pylist()]
    )
    return Words(
        np.frombuffer(digests, "<u8")[number], num_values(lists), _kinds(encoding.dictionary)[number]
    )


def blocks(texts: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    """Yield texts in blocks of a bounded size."""
    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        lengths = pc.fill_null(pc.binary_length(chunk), 0).to_numpy(zero_copy_only=False)
        ends = np.flatnonzero(np.diff(np.cumsum(lengths, dtype=np.int64) // (1 << 24))) + 1
        starts = [0, *ends.tolist(), len(chunk)]
        for start, end in zip(starts, starts[1:], strict=False):
            yield from (
                chunk.slice(first, min(_BLOCK_TEXTS, end - first))
                for first in range(start, end, _BLOCK_TEXTS)
            )


def split_words(texts: pa.Array) -> pa.ListArray:
    """Return the words of each text of one block; a text without any has an empty list, or null."""
    texts = pc.fill_null(texts.cast(pa.string()), "")
    is_ascii = pc.string_is_ascii(texts)
    spaced = pc.replace_with_mask(texts, is_ascii, _with_spaces_ascii(texts.filter(is_ascii)))
    is_other = pc.invert(is_ascii)
    spaced = pc.replace_with_mask(spaced, is_other, _with_spaces(texts.filter(is_other)))
    trimmed = pc.ascii_trim_whitespace(spaced)
    return pc.ascii_split_whitespace(pc.if_else(pc.equal(trimmed, ""), None, trimmed))


def _with_spaces_ascii(texts: pa.StringArray) -> pa.StringArray:
    _, offsets, data = texts.buffers()
    return pa.StringArray.from_buffers(
        len(texts),
        offsets,
        pa.py_buffer((data.to_pybytes() if data else b"").translate(_ASCII_WORDS)),
        offset=texts.offset,
    )


def _with_spaces(texts: pa.StringArray) -> pa.StringArray:
    # Arrow's own NFC leaves letters and their marks apart.
    texts = pa.array([normalize("NFC", text.lower()) for text in texts.to_pylist()], pa.string())
    for pattern, replacement in (
        (r"\pM+", ""),
        (rf"([{_IDEOGRAPHS}{_LETTERS}])", r" \1 "),
        (r"[^\pL\pN_]+", " "),
    ):
        texts = pc.replace_substring_regex(texts, pattern, replacement)
    return texts


def shingle_words(texts: pa.Array) -> pa.ListArray:
    """Return the words that the shingles of one block are made of, at least one a text.

    A letter of an alphabet without spaces is one with the letters after it. A text without a word is compared
    as a whole.
    """
    lists = split_words(texts)
    is_wordless = num_values(lists) == 0
    is_odd = pc.or_(pc.match_substring_regex(pc.fill_null(texts, ""), f"[{_LETTERS}]"), pa.array(is_wordless))
    if not pc.any(is_odd).as_py():
        return lists
    odd = np.flatnonzero(is_odd.to_numpy(zero_copy_only=False))
    odd_lists = pa.array(
        [
            _with_followers(words) if words else [text or ""]
            for words, text in zip(lists.take(odd).to_pylist(), texts.take(odd).to_pylist(), strict=True)
        ],
        lists.type,
    )
    positions = np.arange(len(lists))
    positions[odd] = len(lists) + np.arange(len(odd))
    return pa.concat_arrays([lists, odd_lists]).take(positions)


def _with_followers(words: list[str]) -> list[str]:
    is_letter = (_kinds(pa.array(words, pa.string())) == LETTER).tolist()
    joined = []
    for number, word in enumerate(words):
        end = number + 1
        # Letters of an alphabet without spaces that count as one word of a shingle: two Thai texts share most
        # of their runs of three letters.
        while is_letter[number] and end < min(len(words), number + 3) and is_letter[end]:
            end += 1
        joined.append(word if end == number + 1 else "".join(words[number:end]))
    return joined


def shingle_sets(texts: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of each text's distinct shingles, text after text (uint64 of HASH_BITS bits), and how
    many each text has (int64 [n]).
    """
    parts = [distinct_shingles(hash_lists(shingle_words(block))) for block in blocks(texts)]
    hashes, sizes = zip((np.zeros(0, np.uint64), np.zeros(0, np.int64)), *parts, strict=True)
    return np.concatenate(hashes), np.concatenate(sizes)


def distinct_shingles(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """Return the same of one block by its words. A text of fewer than three words is one shingle."""
    number = np.arange(len(words.hashes))
    ends = np.repeat(np.cumsum(words.counts), words.counts)
    is_first = number == ends - np.repeat(words.counts, words.counts)
    stop = number + SHINGLE_WORDS
    runs, text = hash_runs(words, np.where(is_first, np.minimum(stop, ends), stop))
    # Above the bits of a hash fits the number of a text of the block.
    packed = distinct(text.astype(np.uint64) << np.uint64(HASH_BITS) | runs >> np.uint64(64 - HASH_BITS))
    sizes = np.bincount((packed >> np.uint64(HASH_BITS)).astype(np.int64), minlength=len(words.counts))
    return packed & np.uint64((1 << HASH_BITS) - 1), sizes


def num_values(lists: pa.ListArray) -> np.ndarray:
    """Return how many values each list has, null counting as none: int64 [n]."""
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)


def _kinds(words: pa.Array) -> np.ndarray:
    """Return the kind of each word: uint8 [n]."""
    kinds = np.full(len(words), WORD, np.uint8)
    for kind, letters in ((IDEOGRAPH, _IDEOGRAPHS), (LETTER, _LETTERS)):
        kinds[pc.match_substring_regex(words, f"^[{letters}]").to_numpy(zero_copy_only=False)] = kind
    return kinds


def hash_runs(words: Words, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of the run that begins at each word (uint64 [runs]), and the text that it is in (int64
    [runs]); a run that would reach into the next text is left out.

    The hash of the words w[i], w[i + 1], ... of a run is the sum of w[i + k] * F^k modulo 2^64: a difference
    of two prefix sums over all words, divided by F^i.

    Args:
        words: of the texts.
        stop: int64 [m], number of the word after each run.
    """
    text = np.repeat(np.arange(len(words.counts)), words.counts)
    start = np.flatnonzero(stop <= np.cumsum(words.counts)[text])
    sums = np.concatenate(
        [np.zeros(1, np.uint64), np.cumsum(words.hashes * _powers(_FACTOR, len(words.hashes)))]
    )
    inverses = _powers(pow(_FACTOR, -1, 2**64), len(words.hashes))
    return (sums[stop[start]] - sums[start]) * inverses[start], text[start]


def _powers(factor: int, count: int) -> np.ndarray:
    """Return factor^0 to factor^(count - 1) modulo 2^64."""
    factors = np.full(count, factor, np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)
