"""What one kind of personal data looks like: a coarse hint, a pattern, and a check that a pattern cannot
express.

Every pattern is linear in the text: it starts at a border, its repetitions are bounded or possessive, and no
two of its parts compete for the same characters. A number that is only recognised by a word before it is
found by its digits, which are rare, and then the word is looked for.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

Span = tuple[int, int]

#: What may be between a word that names a number ("passport") and the number: "no.", "is", a colon, brackets.
JOIN = (
    r"(?:[ _-]?(?:numbers?|num[eé]ro|n[uú]mero|nummer|numer|num|nos?|nr|id|code)\b[.]?|[ ]?n[°º])?+"
    r"(?:[ :#=()\"'-]|\b(?:is|was|ist|war|lautet|est|es|e|é|è|jest|of|the|holder|mein|meine)\b){0,6}+"
)
_CUE_WINDOW = 60
#: Words that say that the number behind them is no person's.
_OTHER_NUMBER = re.compile(
    r"(?:invoice|order|part|model|item|article|serial|sku|isbn|issn|batch|lot|version|build|commit|ticket"
    r"|case|tracking|product|catalog(?:ue)?|"
    r"reference|ref|rechnung|bestellung|bestell|artikel|teile|serien|facture|commande|factura|pedido|fattura"
    r"|ordine|faktura|nota"
    r" fiscal|"
    r"checksum|hash|release|firmware|patent|doi|ean|gtin|upc|barcode|price|total|amount|revision|tracking)"
    r"(?:[ _-]?(?:nummer|number|num[eé]ro|n[uú]mero|nr|no|id|code|key))?[.]?[ :#=-]{0,3}$",
    re.I,
)


@dataclass(frozen=True)
class Found:
    """One piece of personal data: characters `start` to `end` (exclusive) of the text, its kind, and what
    replaces it.
    """

    start: int
    end: int
    placeholder: str
    kind: str = ""


@dataclass(frozen=True)
class Kind:
    """One pattern of a kind of personal data; `check` returns the span that counts, or None for a false
    alarm.

    Attributes:
        name: as `examples.pii_kinds` names it.
        placeholder: what replaces it.
        hint: for RE2, of a column of texts: where it does not match, the pattern does not.
        pattern: of what is found.
        check: of a match.
    """

    name: str
    placeholder: str
    hint: str
    pattern: re.Pattern[str]
    check: Callable[[re.Match[str]], Span | None]


_NO_DIGITS = re.compile("[^0-9]+")
_SEPARATORS = re.compile(r"[\W_]+")


def digits_of(text: str) -> str:
    """Return the ASCII digits of a text."""
    return _NO_DIGITS.sub("", text)


def bare(text: str) -> str:
    """Return letters and digits in upper case, without what separates them."""
    return _SEPARATORS.sub("", text).upper()


def whole(match: re.Match[str]) -> Span | None:
    """Accept what the pattern found: its last group, if it has one that took part."""
    return match.span(match.lastindex or 0)


def is_another_number(match: re.Match[str], start: int) -> bool:
    """Return whether the words before say that this is an invoice's number, a part's, a version."""
    return _OTHER_NUMBER.search(match.string, max(0, start - 40), start) is not None


def checked(
    test: Callable[[str], bool], *, is_named: bool = False, group: int | None = None
) -> Callable[[re.Match[str]], Span | None]:
    """Return a check that tests the letters and digits of a match.

    Args:
        test: of the check digits.
        is_named: the pattern asks for a word that names it, so that nothing else can be meant.
        group: what is tested. Default: the last group that took part, else all that the pattern found.
    """

    def check(match: re.Match[str]) -> Span | None:
        number = (match.lastindex or 0) if group is None else group
        is_right = test(bare(match[number]))
        is_other = not is_named and is_another_number(match, match.start(number))
        return match.span(number) if is_right and not is_other else None

    return check


def named_by(
    cue: str, stems: str, accept: Callable[[str], bool], *, prefix: str = ""
) -> Callable[[re.Match[str]], Span | None]:
    """Return a check of numbers that are only recognised by a word before them.

    Args:
        cue: pattern of the words.
        stems: strings in lower case, one of which is in each of these words: they are looked for first, which
            is quick.
        accept: whether what is found may be such a number.
        prefix: pattern of what belongs to the number in front of the match.
    """
    stem_list = stems.split()
    words = re.compile(rf"\b{cue}{JOIN}\Z", re.I)
    front = re.compile(rf"{prefix}\Z", re.I)

    @lru_cache(maxsize=1)
    def may_be_in(text: str) -> bool:
        lowered = text.lower()
        return any(stem in lowered for stem in stem_list)

    def check(match: re.Match[str]) -> Span | None:
        # Once a text, and not at each of its numbers.
        if not may_be_in(match.string):
            return None
        start, end = match.span(match.lastindex or 0)
        if prefix and (prefix_match := front.search(match.string, max(0, start - 12), start)):
            start = prefix_match.start()
        window = match.string[max(0, start - _CUE_WINDOW) : start].lower()
        # No generator: most numbers get this far and no further.
        for stem in stem_list:
            if stem in window:
                return (start, end) if accept(match.string[start:end]) and words.search(window) else None
        return None

    return check
