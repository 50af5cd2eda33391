"""Identifiers of persons: national numbers with their check digits, and numbers that a word names.

Such words are `born`, `MRN` or `passport`.

Each function that tests check digits takes the bare characters, letters in upper case.
"""

import re
from collections.abc import Callable, Sequence
from datetime import date

from fullft_assets.personal_data.kinds import (
    Kind,
    Span,
    bare,
    checked,
    digits_of,
    named_by,
)

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


def is_luhn(number: str) -> bool:
    """Return whether a card's check digit is right (ISO/IEC 7812-1)."""
    digits = [int(c) * (2 if at % 2 else 1) for at, c in enumerate(reversed(number))]
    return sum(digit - 9 if digit > 9 else digit for digit in digits) % 10 == 0


def is_iban(number: str) -> bool:
    """Return whether an IBAN's check digits are right (ISO 13616, mod 97)."""
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1


def us_ssn(number: str) -> bool:
    """Return whether the Social Security Administration may have given out this number."""
    area = number[:3]
    impossible = area in ("000", "666") or area[0] == "9" or number[3:5] == "00" or number[5:] == "0000"
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


def is_vin(number: str) -> bool:
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


_NO_NINO = ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ")
_BIRTH = (
    r"(?:date of birth|birth ?date|birth ?day|born(?: on)?|d\.?o\.?b\.?|geboren(?: am|"
    r" op)?|geburtsdatum|geb\.|n[ée]e? le|date de naissance|"
    r"nacid[oa](?: el)?|fecha de nacimiento|nat[oa] (?:il|l')|data di nascita|data de"
    r" nascimento|nascid[oa](?: em| a)?|geboortedatum|"
    r"urodzon[ya](?: dnia)?|data urodzenia)"
)
_MONTH = r"[^\W\d_]{3,10}+\.?"
#: `5 May 1990`, `May 5, 1990` without its month, and days in digits.
_DAY = re.compile(
    r"[0-9](?<![\w./-].)(?:[0-9]?[./-][0-9]{1,2}[./-](?:[0-9]{4}|[0-9]{2})"
    r"|[0-9]{3}[./-][0-9]{1,2}[./-][0-9]{1,2}"
    rf"|[0-9]?(?:st|nd|rd|th|er|º|\.)?(?: of| de)? ?{_MONTH}(?: de|,)? [0-9]{{4}}|[0-9]?(?:st|nd|rd|th)?,?"
    r" [0-9]{4})(?!\w)"
)
#: A number of digits, letters and hyphens, from its first digit.
_RECORD_NUMBER = re.compile(r"[0-9](?<![0-9].)[0-9A-Za-z/-]{3,14}+")
_PASSPORT_NUMBER = re.compile(r"[0-9](?<![0-9].)[A-Za-z0-9]{5,9}+(?!\w)")
_RECORD = (
    r"(?:mrn|medical record|health record|patient(?:en)?[ -]?(?:id|number|no\.?|nr\.?|nummer)|hospital"
    r" (?:number|no\.?|id)|chart (?:number|no\.?)|"
    r"fallnummer|(?:num[eé]ro|n°) de dossier(?: m[eé]dical)?|dossier m[eé]dical|nhc|historia"
    r" cl[ií]nica|cartella clinica|prontu[aá]rio|"
    r"pati[eë]ntnummer|numer pacjenta)"
)
_PASSPORT = (
    r"(?:passport|reisepass|pass(?:nummer|nr\.?)|passeport|pasaporte|passaporto|passaporte|paspoort"
    r"|paszport(?:u)?)"
)
_VIN = r"(?:vin|vehicle identification|chassis|fahrgestell(?:nummer)?|fin|ch[aâ]ssis|bastidor|telaio)"


def _has_digits(least: int) -> Callable[[str], bool]:
    return lambda text: len(digits_of(text)) >= least


def _kind(
    name: str,
    placeholder: str,
    hint: str,
    pattern: str,
    check: Callable[[re.Match[str]], Span | None],
    flags: int = 0,
) -> Kind:
    return Kind(name, placeholder, hint, re.compile(pattern, flags), check)


#: A number that begins here is no part of a longer word, number or path.
_NOT_IN = r"(?<![\w.+/-].)"
_END = r"(?![\w-]|[.,][0-9])"

IDENTIFIERS = (
    Kind(
        "birth_date", "[BIRTH_DATE]",
        r"(?i)birth|\bborn\b|\bd\.?o\.?b\b|geboren|geburts|\bgeb\.|\bn[ée]e? le|naissance|nacid|nacimiento"
        r"|\bnat[oa] (?:il|l')|nascita|nascimento|"
        r"nascid|geboorte|urodz",
        _DAY,
        named_by(
            _BIRTH, "birth born dob d.o.b geb né nee née naissance nacid nacim nato nata nasci geboorte "
                    "urodz",
            lambda text: len(digits_of(text)) >= 4 and not re.fullmatch(r"[0-9]{1,2},? [0-9]{4}", text),
            prefix=r"(?<!\w)(?:jan|feb|mar|apr|ma[iy]|jun|jul|aug|sep|oct|nov|dec)[^\W\d_]{0,6}\.? ",
        ),
    ),
    Kind(
        "medical_record", "[MEDICAL_RECORD]",
        r"(?i)\bmrn\b|(?:medical|health) record|\bpatient|pati[eë]nt|hospital (?:number|no|id)|\bchart "
        r"(?:number|no)|fallnummer|dossier|\bnhc\b|"
        r"historia cl[ií]nica|cartella clinica|prontu|pacjenta",
        _RECORD_NUMBER,
        named_by(
            _RECORD, "mrn record patient patië hospital chart fallnummer dossier nhc historia cartella "
                     "prontu pacjenta", _has_digits(4),
            prefix=r"[A-Za-z]{0,4}[-/]?",
        ),
    ),
    Kind(
        "passport", "[PASSPORT]", r"(?i)passpor|passeport|passnummer|passnr|reisepass|pasaporte|passaport"
                                  r"|paspoort|paszport", _PASSPORT_NUMBER,
        named_by(_PASSPORT, "passp passe passn reisepass pasap passap paspo "
                            "paszp", _has_digits(4), prefix=r"(?<!\w)[A-Za-z]{0,3}"),
    ),
    _kind(
        "uk_nhs", "[NHS]", r"(?i)\bnhs\b", rf"[0-9]{_NOT_IN}[0-9]{{2}}[ -]?[0-9]{{3}}[ -]?[0-9]{{4}}{_END}",
        named_by("nhs", "nhs", lambda text: uk_nhs(bare(text))),
    ),
    _kind(
        "uk_nino", "[NINO]", r"(?i)\b[A-Z]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]\b",
        r"\b[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?:[0-9]{6}| [0-9]{2} [0-9]{2} [0-9]{2} )[A-D]\b"
        r"(?!-)", checked(lambda number: number[:2] not in _NO_NINO), re.I,
    ),
    _kind(
        "es_dni", "[DNI]", r"(?i)\b[0-9XYZ][0-9]{7}[ -]?[A-Z]\b|\b[0-9]{2}\.[0-9]{3}\.[0-9]{3}[ -]?[A-Z]\b",
        rf"[0-9XYZ]{_NOT_IN}(?:[0-9]{{7}}|[0-9]\.[0-9]{{3}}\.[0-9]{{3}})[ -]?[A-Z]"
        rf"(?![\w-])", checked(es_letter), re.I,
    ),
    _kind(
        "fr_nir", "[NIR]", r"[12378] ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3}",
        rf"[12378]{_NOT_IN} ?[0-9]{{2}} ?[0-9]{{2}} ?[0-9][0-9AB] ?[0-9]{{3}} ?[0-9]{{3}}[ -]?[0-9"
        rf"]{{2}}{_END}", checked(fr_nir),
    ),
    _kind(
        "it_fiscal_code", "[FISCAL_CODE]", r"(?i)\b[A-Z]{6}[0-9]{2}[A-Z][0-9]{2}[A-Z][0-9]{3}[A-Z]\b",
        r"\b[A-Z]{6}[0-9]{2}[ABCDEHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]"
        r"\b", checked(it_fiscal_code), re.I,
    ),
    _kind(
        "ch_ahv", "[AHV]", r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}",
        rf"7{_NOT_IN}56(\.?)[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{2}}{_END}",
        checked(ean13, group=0),
    ),
    _kind(
        "pl_pesel", "[PESEL]", r"\b[0-9]{11}\b", rf"[0-9]{_NOT_IN}[0-9"
                                                 rf"]{{10}}{_END}", checked(pl_pesel),
    ),
    _kind(
        "de_tax_id", "[TAX_ID]", r"\b[1-9][0-9] ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}\b",
        rf"[1-9]{_NOT_IN}(?:[0-9]{{10}}"
        rf"|[0-9] [0-9]{{3}} [0-9]{{3}} [0-9]{{3}}){_END}", checked(de_tax_id),
    ),
    _kind(
        "br_cpf", "[CPF]", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}",
        rf"[0-9]{_NOT_IN}[0-9]{{2}}\.[0-9]{{3}}\.[0-9]{{3}}-[0-9"
        rf"]{{2}}{_END}", checked(br_cpf, is_named=True),
    ),
    _kind(
        "br_cpf", "[CPF]", r"(?i)\bcpf\b", rf"[0-9]{_NOT_IN}[0-9]{{8}}-?[0-9]{{2}}{_END}",
        named_by("cpf", "cpf", lambda text: br_cpf(bare(text))),
    ),
    _kind(
        "nl_bsn", "[BSN]", r"(?i)\bbsn\b|burgerservice|sofi",
        rf"[0-9]{_NOT_IN}(?:[0-9]{{8}}|[0-9]{{3}}[ .][0-9]{{2}}[ .][0-9]{{3}}"
        rf"|[0-9]{{2}}[ .][0-9]{{3}}[ .][0-9]{{3}}){_END}",
        named_by("(?:bsn|burgerservicenummer|sofi"
                 "(?:nummer)?)", "bsn burger sofi", lambda text: nl_bsn(bare(text))),
    ),
    _kind(
        "vin", "[VIN]", r"(?i)\bvin\b|vehicle id|chassis|fahrgestell|\bfin\b|ch[aâ]ssis|bastidor|telaio",
        rf"[A-HJ-NPR-Z0-9]{_NOT_IN}[A-HJ-NPR-Z0-9]{{16}}(?!\w)",
        named_by(_VIN, "vin vehicle chassis fahrgestell fin châssis bastidor telaio", _has_digits(4)),
    ),
    _kind(
        "vin", "[VIN]", r"\b[A-HJ-NPR-Z0-9]{8}[0-9X][A-HJ-NPR-Z0-9]{8}\b",
        rf"[A-HJ-NPR-Z0-9]{_NOT_IN}[A-HJ-NPR-Z0-9]{{7}}[0-9X][A-HJ-NPR-Z0-9]{{8}}{_END}",
        checked(lambda text: 4 <= len(digits_of(text)) < 17 and len({*text}) > 5 and is_vin(text)),
    ),
)  # fmt: skip
