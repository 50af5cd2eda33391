"""Personal data in texts: e-mail, telephone, payment card, IBAN, US social security number and IP address.

Each kind has a coarse hint that RE2 tries on a whole column, an exact pattern that is only tried where the
hint holds, and a check that a pattern cannot express: the check digits of cards (Luhn, ISO/IEC 7812-1) and
IBANs (mod 97, ISO 13616), numbers that the Social Security Administration never gives out, addresses that
are no one's. Licence versions, section numbers, dates and ZIP+4 codes look like numbers of people; what
guards against them is in the patterns. Names and postal addresses are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

#: Length of an IBAN by country (SWIFT IBAN registry).
IBAN_LENGTHS = {
    **{"AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28, "CH": 21},
    **{"CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27},
    **{"GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26},
    **{"IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MD": 24},
    **{"ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29},
    **{"RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24},
    **{"TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20},
}
#: Printed in advertisements, so given to nobody (Social Security Administration).
_ADVERTISED_SSNS = ("078051120", "219099999")
_FILE_ENDINGS = ("png", "jpg", "jpeg", "gif", "svg", "js", "css", "webp")
_NUMBERED = re.compile(
    r"(?:\b(?:v|ver|version|release|rev|revision|section|sections|sec|clause|article|chapter|paragraph|rule)|§)[ .:(]*$", re.I
)

Span = tuple[int, int]


@dataclass(frozen=True)
class Found:
    """One piece of personal data: characters `start` to `end` (exclusive) of the text, and what replaces it."""

    start: int
    end: int
    placeholder: str


@dataclass(frozen=True)
class Kind:
    """One kind of personal data; `check` returns the span that counts, or None for a false alarm."""

    placeholder: str
    hint: str
    pattern: re.Pattern[str]
    check: Callable[[re.Match[str]], Span | None]


def count(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return how many pieces of personal data each text holds; 0 for null."""
    counts = np.zeros(len(texts), np.int32)
    rows = np.flatnonzero(_matches(texts, "|".join(f"(?:{kind.hint})" for kind in KINDS)))
    hinted = texts.take(rows)
    hints = np.array([_matches(hinted, kind.hint) for kind in KINDS])
    for at, (row, text) in enumerate(zip(rows, hinted.to_pylist(), strict=True)):
        counts[row] = len(find(text, [KINDS[kind] for kind in np.flatnonzero(hints[:, at])]))
    return counts


def find(text: str, kinds: Sequence[Kind] | None = None) -> list[Found]:
    """Return the personal data (of some kinds) in a text, in order and without overlaps; of two kinds the stricter one wins."""
    found: list[Found] = []
    for kind in KINDS if kinds is None else kinds:
        for match in kind.pattern.finditer(text):
            span = kind.check(match)
            if span is not None and not any(span[0] < other.end and other.start < span[1] for other in found):
                found.append(Found(*span, kind.placeholder))
    return sorted(found, key=lambda one: one.start)


def mask(text: str, found: Sequence[Found]) -> str:
    """Return the text with each piece of personal data replaced by its placeholder."""
    pieces, position = [], 0
    for one in found:
        pieces += [text[position : one.start], one.placeholder]
        position = one.end
    return "".join([*pieces, text[position:]])


def shift(start: int, end: int, found: Sequence[Found]) -> Span:
    """Return where characters `start` to `end` of a text are once it is masked.

    A border inside personal data moves to the border of the placeholder, so that a span over a whole or half
    e-mail address is a span over `[EMAIL]`.
    """
    return _shifted(start, found, is_end=False), _shifted(end, found, is_end=True)


def _shifted(position: int, found: Sequence[Found], *, is_end: bool) -> int:
    moved = 0
    for one in found:
        if position >= one.end:
            moved += len(one.placeholder) - (one.end - one.start)
        elif position > one.start:
            return one.start + moved + (len(one.placeholder) if is_end else 0)
    return position + moved


def _matches(texts: pa.Array | pa.ChunkedArray, pattern: str) -> np.ndarray:
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(pc.match_substring_regex(texts, pattern), False), bool)


def _digits(text: str) -> str:
    return "".join(c for c in text if c in "0123456789")


def _check_email(match: re.Match[str]) -> Span | None:
    local = _LOCAL_PART.search(match.string, max(0, match.start() - 64), match.start())
    if local is None or match[0].rpartition(".")[2].lower() in _FILE_ENDINGS:
        return None
    return local.start(), match.end()


def _check_iban(match: re.Match[str]) -> Span | None:
    length = IBAN_LENGTHS.get(match[0][:2])
    if length is None:
        return None
    # The pattern may have run into the capitals that follow; the country decides where the number ends.
    ends = [at for at, c in enumerate(match[0], start=1) if c != " "]
    if len(ends) < length or (len(ends) > length and match[0][ends[length - 1]] != " "):
        return None
    number = match[0][: ends[length - 1]].replace(" ", "")
    rest = int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97
    return (match.start(), match.start() + ends[length - 1]) if rest == 1 else None


def _check_card(match: re.Match[str]) -> Span | None:
    number = _digits(match[0])
    return match.span() if _is_issued(number) and _luhn(number) else None


def _is_issued(number: str) -> bool:
    """Return whether a network issues cards of this prefix and length (Visa, Mastercard, Amex, Discover, JCB, Diners, UnionPay)."""
    length, two, four = len(number), int(number[:2]), int(number[:4])
    if number[0] == "4":
        return length in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return length == 16
    if two in (34, 37):
        return length == 15
    if two in (36, 38) or 300 <= int(number[:3]) <= 305:
        return length == 14
    return (two in (62, 65) or four == 6011 or 3528 <= four <= 3589 or 644 <= int(number[:3]) <= 649) and 16 <= length <= 19


def _luhn(number: str) -> bool:
    doubled = [int(c) * (2 if at % 2 else 1) for at, c in enumerate(reversed(number))]
    return sum(digit - 9 if digit > 9 else digit for digit in doubled) % 10 == 0


def _check_ssn(match: re.Match[str]) -> Span | None:
    group = match.re.groups
    number = _digits(match[group])
    area, middle, serial = number[:3], number[3:5], number[5:]
    impossible = area in ("000", "666") or area[0] == "9" or middle == "00" or serial == "0000"
    return None if impossible or number in _ADVERTISED_SSNS else match.span(group)


def _check_ipv4(match: re.Match[str]) -> Span | None:
    parts = match[0].split(".")
    if any(int(part) > 255 or (part[0] == "0" and part != "0") for part in parts) or all(len(part) == 1 for part in parts):
        return None
    address = ipaddress.IPv4Address(match[0])
    if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_reserved:
        return None
    return None if _NUMBERED.search(match.string, max(0, match.start() - 20), match.start()) else match.span()


def _check_ipv6(match: re.Match[str]) -> Span | None:
    number = match[0].removesuffix(":") if not match[0].endswith("::") else match[0]
    # `abc::def` is more often a name in a program than an address.
    if sum(map(bool, number.split(":"))) < 3 or not _digits(number):
        return None
    try:
        address = ipaddress.IPv6Address(number)
    except ValueError:
        return None
    return None if address.is_loopback or address.is_multicast else (match.start(), match.start() + len(number))


def _check_called(match: re.Match[str]) -> Span | None:
    start, end = match.span(1)
    if not 7 <= len(_digits(match[1])) <= 15:
        return None
    return (start + 1, end) if match[1].startswith("(") and ")" not in match[1] else (start, end)


def _check_telephone(match: re.Match[str]) -> Span | None:
    least, most = _TELEPHONE_DIGITS[str(match.lastgroup)]
    # A ZIP+4 code has the shape of a trunk number.
    is_zip = match.lastgroup == "trunk" and re.fullmatch(r"[0-9]{5,6}[ -]{1,2}[0-9]{4}", match[0])
    return None if is_zip or not least <= len(_digits(match[0])) <= most else match.span()


_LOCAL_PART = re.compile(r"[\w%+][\w.+%'-]*\Z")
#: Least and most digits of each form of telephone number.
_TELEPHONE_DIGITS = {"international": (8, 15), "american": (10, 11), "french": (10, 10), "trunk": (9, 12)}
# Each pattern starts with a set of characters and looks back after it: only so can the search skip what cannot start one.
_TELEPHONE = r"""
[+(0-9](?<![\w.+/@:-].)(?:
    (?P<international>(?<=\+)[1-9][0-9]{0,2}(?:[ .\-/]{0,2}\(?[0-9]{1,5}\)?){2,6})
  |(?P<american>(?:(?<=1)[ .-](?:\([2-9]|[2-9])|(?<=\()[2-9]|(?<=[2-9]))[0-9]{2}(?:\)[ -]?[2-9][0-9]{2}[-. ]|[-][2-9][0-9]{2}-|[.][2-9][0-9]{2}[.])[0-9]{4})
  |(?P<french>(?<=0)[1-9](?:[ .-][0-9]{2}){4})
  |(?P<trunk>(?:(?<=\()0|(?<=0))[1-9][0-9]{1,4}\)?[ /-]{1,3}[0-9]{3,8}(?:[ -][0-9]{2,5}){0,3})
)(?![\w%]|[-/.:,]?[0-9])
"""
_CALLED = r"""
(?i:\b(?:telephone|telefon|telefax|t[ée]l[ée]phone|tel[ée]fono|phone|tel|fax|mobile|mobil)\b)[.]?
(?:\ ?(?:number|no|nr)\b[.]?)?[ :#]{0,3}([+(]?[0-9](?:[ ().\-/]{0,3}[0-9]){6,14})(?![-/]?\w)
"""
_CARD = r"[0-9](?<![\w.+-].)(?:[0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}|[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5}|[0-9]{12,18})(?![\w-]|\.[0-9])"

#: In the order of precedence: a card number is not also a telephone number.
KINDS = (
    Kind("[EMAIL]", "@", re.compile(r"@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])"), _check_email),
    Kind("[IBAN]", r"\b[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4}", re.compile(r"[A-Z](?<!\w.)[A-Z][0-9]{2}(?: ?[A-Z0-9]){11,32}"), _check_iban),
    Kind("[CARD]", r"[0-9](?:[ -]?[0-9]){12}", re.compile(_CARD), _check_card),
    Kind(
        "[SSN]",
        r"[0-9]{3}-[0-9]{2}-[0-9]{4}",
        re.compile(r"([0-9](?<![\w.-].)[0-9]{2}-[0-9]{2}-[0-9]{4})(?![\w-])"),
        _check_ssn,
    ),
    Kind(
        "[SSN]",
        r"(?i)(?:ssn|social security).{0,12}[0-9]{3}",
        re.compile(r"(?i:\b(?:ssn|social security(?: number| no\.?)?))[:# ]{0,3}([0-9]{3} ?[0-9]{2} ?[0-9]{4})(?!\w)"),
        _check_ssn,
    ),
    Kind(
        "[IP]",
        r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]",
        re.compile(r"[0-9](?<![\w.-].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![\w-]|\.[0-9])"),
        _check_ipv4,
    ),
    Kind("[IP]", r"[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]*:", re.compile(r"[0-9A-Fa-f:](?<![\w:.].)[0-9A-Fa-f:]{5,38}(?!\w)"), _check_ipv6),
    Kind("[PHONE]", r"(?i)(?:l[ée]phone|l[ée]fono|phone|tel|telefon|fax|mobil).{0,14}[0-9]", re.compile(_CALLED, re.X), _check_called),
    Kind("[PHONE]", r"[0-9](?:[ ().\-/]{0,3}[0-9]){6}", re.compile(_TELEPHONE, re.X), _check_telephone),
)
