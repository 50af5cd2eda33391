"""Damaged characters: sequences that a wrong decoding leaves behind (found by ftfy), and characters that no
text has.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

#: Share of damaged characters above which a text is quarantined. Of text in UTF-8 that was read as
#: Windows-1252, Italian has 1.3%, German 4% and Russian 73%; of intact text in 18 languages none has any.
MAX_SHARE = 0.01
#: Replacement characters, and control characters other than those that break lines.
_NO_TEXT = r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd-\uffff]"


def damage_shares(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the share of each text's characters that are damaged: float64 [rows], NaN for null."""
    return np.array([np.nan if text is None else damage_share(text) for text in texts.to_pylist()], float)


def damage_share(text: str) -> float:
    """Return the share of one text's characters that are damaged; 0 for an empty text."""
    num_damaged = sum(len(sequence[0]) for sequence in _pattern().finditer(text))
    return num_damaged / max(1, len(text))


@cache
def _pattern() -> re.Pattern[str]:
    from ftfy.badness import BADNESS_RE

    return re.compile(f"{BADNESS_RE.pattern}|{_NO_TEXT}", re.VERBOSE)
