"""Masks: which tokens are trained (conversations), and which belong to a labelled span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fullft_assets.chunks.windows import Cuts, Encoded, gather, repeated

#: Character spans of many texts: text i's are `spans[bounds[i]:bounds[i + 1]]`, each (start, end exclusive).
CharacterSpans = Sequence[Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class LocatedSpans:
    """Labelled spans in tokens.

    `marks` [tokens] int32: 0 outside, k + 1 for the first token of its text's span k, -(k + 1) for a later
    one. `num_without_tokens`: spans of white space, or of characters whose tokens an earlier span has.
    """

    marks: np.ndarray
    num_without_tokens: int


def token_ranges(encoded: Encoded, spans: CharacterSpans) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the tokens that have a character in a span.

    Returns:
        For each span, in the order of the texts and within a text as given: its text's number, its first
        token and the one behind its last, as positions in the flat tokens. A span without tokens is empty or
        reversed.
    """
    counts = np.fromiter(map(len, spans), np.int64, len(spans))
    rows = np.repeat(np.arange(len(spans)), counts)
    edges = np.array([edge for row in spans for edge in row], np.int64).reshape(-1, 2)
    if encoded.spans is None or not len(rows):
        return rows, np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    # One axis for all texts: each is moved behind the longest, so that one sorted search serves them all.
    length = int(max(encoded.spans.max(initial=0), edges.max(initial=0))) + 1
    base = np.repeat(np.arange(len(spans), dtype=np.int64), encoded.lengths()) * length
    # Normalizers that reorder marks give offsets that step back by a character.
    begins = np.minimum.accumulate((encoded.spans[:, 0] + base)[::-1])[::-1]
    ends = np.maximum.accumulate(encoded.spans[:, 1] + base)
    first = np.searchsorted(ends, edges[:, 0] + rows * length, side="right")
    last = np.searchsorted(begins, edges[:, 1] + rows * length, side="left")
    return rows, np.maximum(first, encoded.bounds[rows]), np.minimum(last, encoded.bounds[rows + 1])


def locate_spans(encoded: Encoded, texts: Sequence[str], spans: CharacterSpans) -> LocatedSpans:
    """Mark the tokens of labelled spans; of overlapping ones the one that starts first, then the longer, has
    a token.
    """
    stripped = [
        [strip_span(text, start, end) for start, end in row] for text, row in zip(texts, spans, strict=True)
    ]
    rows, first, last = token_ranges(encoded, stripped)
    edges = np.array([edge for row in stripped for edge in row], np.int64).reshape(-1, 2)
    number = np.concatenate([np.arange(len(row)) for row in stripped]) if len(rows) else np.zeros(0, np.int64)
    order = np.lexsort((-edges[:, 1], edges[:, 0], rows))
    number = number[order]
    first = first[order]
    last = last[order]
    taken = np.zeros(len(order), np.int64)
    taken[1:] = np.maximum.accumulate(last)[:-1]
    first = np.maximum(first, taken)
    has_tokens = first < last
    number = number[has_tokens] + 1
    first = first[has_tokens]
    last = last[has_tokens]
    marks = np.zeros(len(encoded.ids), np.int32)
    sizes = last - first
    inside = np.repeat(first - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    marks[inside] = -np.repeat(number, sizes)
    marks[first] = number
    return LocatedSpans(marks, int((~has_tokens).sum()))


def strip_span(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without the white space at its ends."""
    # Byte-level tokens take the space before a word along; a span's own outer space would draw a neighbour
    # in.
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end - (len(inner) - len(inner.rstrip()))


def train_spans(encoded: Encoded, spans: CharacterSpans) -> np.ndarray:
    """Return for each token 1 if one of its characters is in a trained span, else 0: [tokens] int32."""
    _, first, last = token_ranges(encoded, spans)
    steps = np.zeros(len(encoded.ids) + 1, np.int64)
    real = first < last
    np.add.at(steps, first[real], 1)
    np.add.at(steps, last[real], -1)
    return (np.cumsum(steps[:-1]) > 0).astype(np.int32)


def count_trained(marks: np.ndarray, encoded: Encoded, cuts: Cuts) -> np.ndarray:
    """Return for each text how many of the tokens that are in a window are trained."""
    total = np.concatenate([[0], np.cumsum(marks, dtype=np.int64)])
    return total[cuts.covered()] - total[encoded.bounds[:-1]]


def train_once(marks: np.ndarray, cuts: Cuts) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows' marks (see `windows.gather`); marks of tokens repeated from the window before are
    0.

    A repeated token is there as context: trained in both windows it would weigh twice.
    """
    window_marks, begins = gather(marks, cuts, (), ())
    place = np.arange(len(window_marks)) - np.repeat(begins[:-1], np.diff(begins))
    window_marks[place < np.repeat(repeated(cuts), np.diff(begins))] = 0
    return window_marks, begins
