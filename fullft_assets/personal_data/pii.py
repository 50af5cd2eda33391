"""Personal data in texts: found, counted and replaced by placeholders.

Each kind has a coarse hint that RE2 tries on a whole column, an exact pattern that is only tried where the
hint holds, and a check that a pattern cannot express: check digits, a country's numbering plan, numbers that
are never given out, addresses that are no one's. Names, places and dates are found where a model is given
(see `search`), postal addresses are not. `benchmarks/personal_data.py` measures recall and precision of each
kind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fullft_assets.personal_data.contacts import CONTACTS, TELEPHONES
from fullft_assets.personal_data.identifiers import IDENTIFIERS
from fullft_assets.personal_data.kinds import Found, Kind, Span
from fullft_assets.personal_data.secrets_and_keys import SECRETS

if TYPE_CHECKING:
    import pyarrow as pa

#: In the order of precedence: a card number is not also a telephone number.
KINDS = (*SECRETS, *CONTACTS, *IDENTIFIERS, *TELEPHONES)


def kinds_named(names: Collection[str]) -> tuple[Kind, ...]:
    """Return the patterns of some kinds, as `examples.pii_kinds` names them, in the order of precedence."""
    return tuple(kind for kind in KINDS if kind.name in names)


def count(texts: pa.Array | pa.ChunkedArray, kinds: Sequence[Kind] = KINDS) -> np.ndarray:
    """Return how many pieces of personal data (of some kinds) each text holds; 0 for null."""
    return counts_of(find_all(texts, kinds), len(texts))


def counts_of(pieces_by_row: Mapping[int, Sequence[Found]], num_rows: int) -> np.ndarray:
    """Return how many pieces of personal data each of the rows holds."""
    counts = np.zeros(num_rows, np.int32)
    for row, each in pieces_by_row.items():
        counts[row] = len(each)
    return counts


def find_all(texts: pa.Array | pa.ChunkedArray, kinds: Sequence[Kind]) -> dict[int, list[Found]]:
    """Return the personal data (of some kinds) in each text where a kind's hint matches, as `find` does, by
    row.
    """
    hinted: dict[int, set[str]] = {}
    for hint in dict.fromkeys(kind.hint for kind in kinds):
        for row in np.flatnonzero(_matches(texts, hint)).tolist():
            hinted.setdefault(row, set()).add(hint)
    return {
        row: find(texts[row].as_py(), [kind for kind in kinds if kind.hint in hints])
        for row, hints in hinted.items()
    }


def find(text: str, kinds: Sequence[Kind] = KINDS) -> list[Found]:
    """Return the personal data (of some kinds) in a text, in order and without overlaps; of two kinds the
    stricter one wins.
    """
    all_pieces: list[Found] = []
    taken = bytearray(len(text))
    for kind in kinds:
        for match in kind.pattern.finditer(text):
            span = kind.check(match)
            if span is not None and taken.find(1, *span) < 0:
                taken[span[0] : span[1]] = b"\1" * (span[1] - span[0])
                all_pieces.append(Found(*span, kind.placeholder, kind.name))
    return sorted(all_pieces, key=lambda one: one.start)


def mask(text: str, pieces: Sequence[Found]) -> str:
    """Return the text with each piece of personal data replaced by its placeholder."""
    parts, position = [], 0
    for one in pieces:
        parts += [text[position : one.start], one.placeholder]
        position = one.end
    return "".join([*parts, text[position:]])


def shift(start: int, end: int, pieces: Sequence[Found]) -> Span:
    """Return where characters `start` to `end` of a text are once it is masked.

    A border inside personal data moves to the border of the placeholder, so that a span over a whole or half
    e-mail address is a span over `[EMAIL]`.
    """
    return _shifted(start, pieces, is_end=False), _shifted(end, pieces, is_end=True)


def _shifted(position: int, pieces: Sequence[Found], *, is_end: bool) -> int:
    moved = 0
    for one in pieces:
        if position >= one.end:
            moved += len(one.placeholder) - (one.end - one.start)
        elif position > one.start:
            return one.start + moved + (len(one.placeholder) if is_end else 0)
    return position + moved


def _matches(texts: pa.Array | pa.ChunkedArray, pattern: str) -> np.ndarray:
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(pc.match_substring_regex(texts, pattern), False), bool)
