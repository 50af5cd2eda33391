"""Offsets of spans, compared with the text that each span was exported with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

#: (Start, end, text) of a span; the text is None where the export does not contain it.
Quoted = tuple[int, int, str | None]


def in_characters(spans: Sequence[Quoted], text: str) -> tuple[list[tuple[int, int]] | None, int | None]:
    """Return the offsets of spans in characters, or None and the position of the first one whose text is not
    at its offsets.

    JavaScript counts UTF-16 code units, two for an emoji. Where the offsets of a row fit its quoted texts
    only in that reading, all of its offsets are converted. Spaces are compared as one.
    """
    wrong = _first_wrong(spans, lambda start, end: text[start:end] if 0 <= start <= end else None)
    if wrong is None:
        return [(start, end) for start, end, _ in spans], None
    if text.isascii() or max(text) <= "\uffff":
        return None, wrong
    characters = {
        unit: at
        for at, unit in enumerate(accumulate((2 if letter > "\uffff" else 1 for letter in text), initial=0))
    }
    wrong = _first_wrong(
        spans,
        lambda start, end: (
            text[characters[start] : characters[end]] if start in characters and end in characters else None
        ),
    )
    if wrong is not None:
        return None, wrong
    return [(characters[start], characters[end]) for start, end, _ in spans], None


def _first_wrong(spans: Sequence[Quoted], shown: Callable[[int, int], str | None]) -> int | None:
    for at, (start, end, quote) in enumerate(spans):
        text_there = shown(start, end)
        if quote is not None and (text_there is None or text_there.split() != quote.split()):
            return at
    return None
