"""Characters that a wrong decoding leaves behind, counted in whole columns."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

# What the bytes 80 to BF of UTF-8 become where they are read as Windows-1252 or Latin-1.
_CONTINUATION = r"[\x{80}-\x{bf}€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
#: RE2: UTF-8 of three and of two bytes read as a one-byte encoding (`â€™` for ’, `Ã©` for é), of the scripts
#: that it occurs in most; replacement and control characters.
_DAMAGE = "|".join(
    (
        r"[âãäåæçèéï]" + _CONTINUATION + "{2}",
        r"[ÂÃÎÏÐÑ]" + _CONTINUATION,
        r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x{9f}\x{fffd}-\x{ffff}]",
    )
)


def damage_shares(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the share of each text's characters that are damaged; 0 for empty, NaN for null."""
    import pyarrow.compute as pc

    lengths = np.asarray(pc.utf8_length(texts).cast("float64"))
    damaged = np.zeros(len(texts))
    # Most texts hold nothing but printable ASCII: one scan finds them.
    rows = np.flatnonzero(
        np.asarray(pc.fill_null(pc.match_substring_regex(texts, r"[^\t\n\f\r\x20-\x7e]"), False))
    )
    whole = pc.utf8_length(pc.replace_substring_regex(texts.take(rows), _DAMAGE, ""))
    damaged[rows] = lengths[rows] - np.asarray(whole)
    return damaged / np.maximum(lengths, 1)


def damage_share(text: str) -> float:
    """Return the share of one text's characters that are damaged; 0 for empty."""
    return sum(len(found[0]) for found in _pattern().finditer(text)) / max(1, len(text))


@cache
def _pattern() -> re.Pattern[str]:
    # RE2 writes a character by its number in braces.
    return re.compile(re.sub(r"\\x\{([0-9a-f]+)\}", lambda match: re.escape(chr(int(match[1], 16))), _DAMAGE))
