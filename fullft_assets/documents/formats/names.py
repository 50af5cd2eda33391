"""How the same name is the same text, however it was written: groups in one spelling, and words that mean
that there is none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache

#: A whole number as a table or a form writes it: with leading zeros, or with the point that a column with
#: gaps gets.
_WHOLE_NUMBER = re.compile(r"0*([0-9]+?)(?:\.0+)?")


@lru_cache(maxsize=1 << 16)
def group_key(name: str) -> str:
    """Return the one spelling of a group's name: without surrounding space, case or the leading zeros of a
    number.

    `P-7 `, `p-7` and `P-7` are one group, so are `00012`, `12.0` and 12. Two groups taken for one only share
    a side of the split; one taken for two would be on both sides.
    """
    folded = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    number = _WHOLE_NUMBER.fullmatch(folded)
    return number[1] if number else folded


def is_missing(word: str, words: Collection[str]) -> bool:
    """Return whether a trimmed word means that there is no value: it is empty, or is among `words` (in lower
    case).
    """
    return not word or word.casefold() in words
