"""Copies of texts with what people and programs do to them: typing errors, another case, an end that is
missing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

#: Of 256: one word in ten gets a typing error.
_TYPO_SHARE = 26
_MIN_LETTERS = 4
_WORD = re.compile(r"\w+")


def perturb(kind: str, text: str, key: str) -> str:
    """Return a perturbed copy of a text, the same on every call with the same key; an empty one only of an
    empty text.
    """
    return _KINDS[kind](text, key)


def _with_typos(text: str, key: str) -> str:
    """Swap two neighbouring inner letters of one word in ten of those with at least four."""

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        drawn = hashlib.blake2b(f"{key}/{match.start()}".encode(), digest_size=8).digest()
        if len(word) < _MIN_LETTERS or drawn[0] >= _TYPO_SHARE:
            return word
        at = 1 + int.from_bytes(drawn[1:], "big") % (len(word) - 3)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return _WORD.sub(swap, text)


def _first_half(text: str, key: str) -> str:
    """Return the first half of the characters, without a word that is cut through."""
    half = text[: (len(text) + 1) // 2]
    whole = (
        half.rsplit(maxsplit=1)[0]
        if not text[len(half) : len(half) + 1].isspace() and len(half.split()) > 1
        else half
    )
    return whole.rstrip() or half


_KINDS: dict[str, Callable[[str, str], str]] = {
    "typos": _with_typos,
    "upper_case": lambda text, key: text.upper(),
    "lower_case": lambda text, key: text.lower(),
    "first_half": _first_half,
}
#: Names of the perturbations, in the report's order.
KINDS = tuple(_KINDS)
