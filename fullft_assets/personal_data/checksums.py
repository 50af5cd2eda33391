"""Check digits of cards, accounts and identifiers of persons. Each function takes the bare characters,
letters in upper case.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

#: Printed in advertisements, so given to nobody (Social Security Administration).
_ADVERTISED_SSNS = ("078051120", "219099999")
_VIN_VALUES = dict(
    zip(
        "ABCDEFGHJKLMNPRSTUVWXYZ",
        (1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 7, 9, 2, 3, 4, 5, 6, 7, 8, 9),
        strict=True,
    )
)
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
#: Values of the characters at odd places of an Italian fiscal code (decree of 23 December 1976); digits as
#: letters A to J.
_ITALIAN_ODD = dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        strict=True,
    )
)


def luhn(number: str) -> bool:
    """Return whether a card's check digit is right (ISO/IEC 7812-1)."""
    doubled = [int(c) * (2 if at % 2 else 1) for at, c in enumerate(reversed(number))]
    return sum(digit - 9 if digit > 9 else digit for digit in doubled) % 10 == 0


def iban(number: str) -> bool:
    """Return whether an IBAN's check digits are right (ISO 13616, mod 97)."""
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1


def us_ssn(number: str) -> bool:
    """Return whether the Social Security Administration may have given out this number."""
    area = number[:3]
    middle = number[3:5]
    serial = number[5:]
    impossible = area in ("000", "666") or area[0] == "9" or middle == "00" or serial == "0000"
    return not impossible and number not in _ADVERTISED_SSNS


def uk_nhs(number: str) -> bool:
    """Return whether an NHS number's check digit is right (mod 11)."""
    return len({*number}) > 1 and (_weighted(number[:9], range(10, 1, -1)) + int(number[9])) % 11 == 0


def es_letter(number: str) -> bool:
    """Return whether the letter of a Spanish DNI or NIE is right (mod 23)."""
    digits = number[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return number[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23]


def fr_nir(number: str) -> bool:
    """Return whether a French NIR's key is right (97 minus the number mod 97; Corsican departments are 19 and
    18).
    """
    body = number[:-2].replace("2A", "19").replace("2B", "18")
    return body.isdigit() and 97 - int(body) % 97 == int(number[-2:])


def it_fiscal_code(code: str) -> bool:
    """Return whether an Italian fiscal code's last letter is right."""
    letters = [chr(ord("A") + int(c)) if c.isdigit() else c for c in code]
    total = sum(_ITALIAN_ODD[c] if at % 2 == 0 else ord(c) - ord("A") for at, c in enumerate(letters[:15]))
    return letters[15] == chr(ord("A") + total % 26)


def de_tax_id(number: str) -> bool:
    """Return whether a German tax id is one: one digit occurs two or three times in the first ten; ISO 7064
    mod 11, 10.
    """
    counts = sorted(number[:10].count(digit) for digit in {*number[:10]})
    if number[0] == "0" or counts[-1] not in (2, 3) or counts[-2] != 1:
        return False
    product = 10
    for digit in number[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(number[10])


def ean13(number: str) -> bool:
    """Return whether the check digit of a Swiss AHV number is right (that of EAN-13)."""
    return _weighted(number, (1, 3) * 6 + (1,)) % 10 == 0


def nl_bsn(number: str) -> bool:
    """Return whether a Dutch BSN passes the eleven test."""
    return len({*number}) > 1 and _weighted(number, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def pl_pesel(number: str) -> bool:
    """Return whether a Polish PESEL's check digit is right, and its first six digits are a day (the month
    tells the century).
    """
    year, month, day = (int(number[at : at + 2]) for at in (0, 2, 4))
    century = {0: 1900, 1: 2000, 2: 2100, 3: 2200, 4: 1800}[month // 20]
    return (
        _is_day(century + year, month % 20, day)
        and _weighted(number, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0
    )


def br_cpf(number: str) -> bool:
    """Return whether both check digits of a Brazilian CPF are right (mod 11)."""
    checks = [_weighted(number[:n], range(n + 1, 1, -1)) * 10 % 11 % 10 for n in (9, 10)]
    return len({*number}) > 1 and checks == [int(number[9]), int(number[10])]


def vin(number: str) -> bool:
    """Return whether a vehicle's check character is right (49 CFR 565, North America and China)."""
    total = _weighted([int(c) if c.isdigit() else _VIN_VALUES[c] for c in number], _VIN_WEIGHTS)
    return number[8] == "0123456789X"[total % 11]


def _weighted(digits: Sequence[str] | Sequence[int], weights: Sequence[int]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True))


def _is_day(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True
