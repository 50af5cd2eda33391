"""Chunks: a long text's tokens cut into overlapping pieces.

Everything is flat: the tokens of many texts follow each other in one array, `bounds` gives where each
text begins. A list of lists of 100,000 texts would take ten times the memory and most of the time. Masks say
which tokens are trained (conversations), and which belong to a labelled span.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: One call of the tokenizer takes at most this many texts and characters: its encodings take about 120 bytes
#: a token.
SLICE_TEXTS = 4_096
SLICE_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Encoded:
    """Tokens of many texts, without special tokens.

    `ids` [tokens] int32; text i's are `ids[bounds[i]:bounds[i + 1]]`. `spans` [tokens, 2] int32 are the
    characters that each token covers, within its text; None where they were not asked for.
    """

    ids: np.ndarray
    bounds: np.ndarray
    spans: np.ndarray | None

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each text."""
        return np.diff(self.bounds)


@dataclass(frozen=True)
class Cuts:
    """Chunks of many texts: `first` and `last` (exclusive) [chunks] are positions in the flat tokens.

    Text i's chunks are those from `bounds[i]` to `bounds[i + 1]`.
    """

    first: np.ndarray
    last: np.ndarray
    bounds: np.ndarray

    def covered(self) -> np.ndarray:
        """Return for each text the flat position behind the last token that is in a chunk."""
        return self.last[self.bounds[1:] - 1]


@dataclass(frozen=True)
class Room:
    """The size of a chunk without special tokens, the tokens that two of them share, and how many a text may
    have.
    """

    size: int
    stride: int
    most: int | None


def encode(tokenizer: "Tokenizer", texts: Sequence[str], *, spans: bool = False) -> Encoded:
    """Tokenise texts on all cores, in slices of bounded memory.

    Args:
        tokenizer: it truncates and pads nothing.
        texts: plain texts.
        spans: whether the characters of each token are needed.
    """
    encode_batch = tokenizer.encode_batch if spans else tokenizer.encode_batch_fast
    ids = [np.zeros(0, np.int32)]
    counts = [np.zeros(0, np.int64)]
    offsets = [np.zeros((0, 2), np.int32)]
    for begin, end in _slices(texts):
        encodings = encode_batch(list(texts[begin:end]), add_special_tokens=False)
        counts.append(np.fromiter(map(len, encodings), np.int64, len(encodings)))
        num_tokens = int(counts[-1].sum())
        ids.append(
            np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, num_tokens)
        )
        if spans:
            edges = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
            offsets.append(np.fromiter(edges, np.int32, 2 * num_tokens).reshape(-1, 2))
    return Encoded(
        np.concatenate(ids), bounds(np.concatenate(counts)), np.concatenate(offsets) if spans else None
    )


def _slices(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    begin = size = 0
    for position, text in enumerate(texts):
        if position > begin and (position - begin >= SLICE_TEXTS or size + len(text) > SLICE_CHARACTERS):
            yield begin, position
            begin = position
            size = 0
        size += len(text)
    if begin < len(texts):
        yield begin, len(texts)


def bounds(counts: np.ndarray) -> np.ndarray:
    """Return where each of the parts with these sizes begins, and the end: int64 [parts + 1]."""
    edges = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=edges[1:])
    return edges


def cut(tokens: Encoded, room: Room) -> Cuts:
    """Cut every text's tokens into chunks of at most `room.size` tokens.

    Neighbours share `room.stride` tokens. Every token is in a chunk unless `room.most` limits the chunks.
    """
    lengths = tokens.lengths()
    step = room.size - room.stride
    counts = 1 + np.maximum(0, -(-(lengths - room.size) // step))
    counts = counts if room.most is None else np.minimum(counts, room.most)
    of_texts = bounds(counts)
    # Of each chunk its number within its text.
    number = np.arange(of_texts[-1]) - np.repeat(of_texts[:-1], counts)
    first = np.repeat(tokens.bounds[:-1], counts) + number * step
    return Cuts(first, np.minimum(first + room.size, np.repeat(tokens.bounds[1:], counts)), of_texts)


def gather(
    values: np.ndarray, cuts: Cuts, prefix: Sequence[int], suffix: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Copy each chunk's values, with `prefix` and `suffix` around them.

    Returns:
        The chunks' values, one after the other, and where each chunk begins (one more than chunks).
    """
    sizes = cuts.last - cuts.first + len(prefix) + len(suffix)
    begins = bounds(sizes)
    chunk_values = np.empty(begins[-1], np.int32)
    inner = np.ones(len(chunk_values), bool)
    positions = np.hstack(
        [begins[:-1, None] + np.arange(len(prefix)), begins[1:, None] - np.arange(len(suffix), 0, -1)]
    )
    chunk_values[positions] = [*prefix, *suffix]
    inner[positions] = False
    source = np.arange(begins[-1]) + np.repeat(cuts.first - begins[:-1] - len(prefix), sizes)
    chunk_values[inner] = values[source[inner]]
    return chunk_values, begins


def to_arrow(values: np.ndarray, begins: np.ndarray, cuts: Cuts) -> pa.ListArray:
    """Return list<list<int32>>: for each text its chunks."""

    chunks = pa.ListArray.from_arrays(pa.array(begins, pa.int32()), pa.array(values, pa.int32()))
    return pa.ListArray.from_arrays(pa.array(cuts.bounds, pa.int32()), chunks)


def to_lists(values: np.ndarray, begins: np.ndarray, cuts: Cuts) -> list[list[list[int]]]:
    """Return for each text its chunks, as Python lists."""
    plain = values.tolist()
    edges = begins.tolist()
    texts = cuts.bounds.tolist()
    chunks = [plain[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]
    return [chunks[begin:end] for begin, end in zip(texts, texts[1:], strict=False)]


#: Character spans of many texts: text i's are `spans[bounds[i]:bounds[i + 1]]`, each (start, end exclusive).
CharacterSpans = Sequence[Sequence[tuple[int, int]]]


def _token_ranges(tokens: Encoded, spans: CharacterSpans) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the tokens that have a character in a span.

    Returns:
        For each span, in the order of the texts and within a text as given: its text's number, its first
        token and the one behind its last, as positions in the flat tokens. A span without tokens is empty or
        reversed.
    """
    rows = np.repeat(np.arange(len(spans)), np.fromiter(map(len, spans), np.int64, len(spans)))
    edges = np.array([edge for row in spans for edge in row], np.int64).reshape(-1, 2)
    if tokens.spans is None or not len(rows):
        return rows, np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    # One axis for all texts: each is moved behind the longest, so that one sorted search serves them all.
    length = int(max(tokens.spans.max(initial=0), edges.max(initial=0))) + 1
    base = np.repeat(np.arange(len(spans), dtype=np.int64), tokens.lengths()) * length
    # Normalizers that reorder marks give offsets that step back by a character.
    begins = np.minimum.accumulate((tokens.spans[:, 0] + base)[::-1])[::-1]
    ends = np.maximum.accumulate(tokens.spans[:, 1] + base)
    first = np.searchsorted(ends, edges[:, 0] + rows * length, side="right")
    last = np.searchsorted(begins, edges[:, 1] + rows * length, side="left")
    return rows, np.maximum(first, tokens.bounds[rows]), np.minimum(last, tokens.bounds[rows + 1])


def locate_spans(tokens: Encoded, texts: Sequence[str], spans: CharacterSpans) -> tuple[np.ndarray, int]:
    """Mark the tokens of labelled spans. A token of overlapping spans belongs to the span that starts first,
    then to the longer span.

    Returns:
        Marks [tokens] int32: 0 outside, k + 1 for the first token of its text's span k, -(k + 1) for a later
        one. The number of spans without a token: of white space, or of characters whose tokens an earlier
        span has.
    """
    stripped_spans = [
        [strip_span(text, start, end) for start, end in row] for text, row in zip(texts, spans, strict=True)
    ]
    rows, first, last = _token_ranges(tokens, stripped_spans)
    edges = np.array([edge for row in stripped_spans for edge in row], np.int64).reshape(-1, 2)
    number = (
        np.concatenate([np.arange(len(row)) for row in stripped_spans])
        if len(rows)
        else np.zeros(0, np.int64)
    )
    order = np.lexsort((-edges[:, 1], edges[:, 0], rows))
    number, first, last = np.stack([number + 1, first, last])[:, order]
    first = np.maximum(first, np.append(0, np.maximum.accumulate(last))[:-1])
    has_tokens = first < last
    number, first, last = np.stack([number, first, last])[:, has_tokens]
    marks = np.zeros(len(tokens.ids), np.int32)
    sizes = last - first
    inside = np.repeat(first - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    marks[inside] = -np.repeat(number, sizes)
    marks[first] = number
    return marks, int((~has_tokens).sum())


def strip_span(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without the white space at its ends."""
    # Byte-level tokens take the space before a word along; a span's own outer space would draw a neighbour
    # in.
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end - (len(inner) - len(inner.rstrip()))


def train_spans(tokens: Encoded, spans: CharacterSpans) -> np.ndarray:
    """Return for each token 1 if one of its characters is in a trained span, else 0: [tokens] int32."""
    _, first, last = _token_ranges(tokens, spans)
    steps = np.zeros(len(tokens.ids) + 1, np.int64)
    real = first < last
    np.add.at(steps, np.concatenate([first[real], last[real]]), np.repeat([1, -1], real.sum()))
    return (np.cumsum(steps[:-1]) > 0).astype(np.int32)


def count_trained(marks: np.ndarray, tokens: Encoded, cuts: Cuts) -> np.ndarray:
    """Return for each text how many of the tokens that are in a chunk are trained."""
    total = np.concatenate([[0], np.cumsum(marks, dtype=np.int64)])
    return total[cuts.covered()] - total[tokens.bounds[:-1]]


def train_once(marks: np.ndarray, cuts: Cuts) -> tuple[np.ndarray, np.ndarray]:
    """Return the chunks' marks (see `cutting.gather`); marks of tokens repeated from the chunk before are
    0.

    A repeated token is there as context: trained in both chunks it would weigh twice.
    """
    chunk_marks, begins = gather(marks, cuts, (), ())
    # How many of its first tokens are in the chunk before it of the same text.
    num_shared = np.zeros(len(cuts.first), np.int64)
    num_shared[1:] = cuts.last[:-1] - cuts.first[1:]
    num_shared[cuts.bounds[:-1]] = 0
    position = np.arange(len(chunk_marks)) - np.repeat(begins[:-1], np.diff(begins))
    chunk_marks[position < np.repeat(num_shared, np.diff(begins))] = 0
    return chunk_marks, begins
