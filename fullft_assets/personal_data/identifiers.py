"""Identifiers of persons: national numbers with their check digits, and numbers that are only recognised by a
word before them (born, MRN, passport).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fullft_assets.personal_data import checksums
from fullft_assets.personal_data.kinds import (
    Kind,
    Span,
    bare,
    checked,
    digits_of,
    is_another_number,
    named_by,
)

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


def _has_month(text: str) -> bool:
    return len(digits_of(text)) >= 4 and not re.fullmatch(r"[0-9]{1,2},? [0-9]{4}", text)


def _check_vin(match: re.Match[str]) -> Span | None:
    number = bare(match[0])
    num_digits = len(digits_of(number))
    is_mixed = 4 <= num_digits < 17 and len({*number}) > 5
    return (
        match.span()
        if is_mixed and checksums.vin(number) and not is_another_number(match, match.start())
        else None
    )


def _check_nino(match: re.Match[str]) -> Span | None:
    is_given = match[0][:2].upper() not in ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ")
    return match.span() if is_given and not is_another_number(match, match.start()) else None


def _check_ahv(match: re.Match[str]) -> Span | None:
    is_right = checksums.ean13(digits_of(match[0]))
    return match.span() if is_right and not is_another_number(match, match.start()) else None


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
                    "urodz", _has_month,
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
        named_by("nhs", "nhs", lambda text: checksums.uk_nhs(bare(text))),
    ),
    _kind(
        "uk_nino", "[NINO]", r"(?i)\b[A-Z]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]\b",
        r"\b[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?:[0-9]{6}| [0-9]{2} [0-9]{2} [0-9]{2} )[A-D]\b"
        r"(?!-)", _check_nino, re.I,
    ),
    _kind(
        "es_dni", "[DNI]", r"(?i)\b[0-9XYZ][0-9]{7}[ -]?[A-Z]\b|\b[0-9]{2}\.[0-9]{3}\.[0-9]{3}[ -]?[A-Z]\b",
        rf"[0-9XYZ]{_NOT_IN}(?:[0-9]{{7}}|[0-9]\.[0-9]{{3}}\.[0-9]{{3}})[ -]?[A-Z]"
        rf"(?![\w-])", checked(checksums.es_letter), re.I,
    ),
    _kind(
        "fr_nir", "[NIR]", r"[12378] ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3}",
        rf"[12378]{_NOT_IN} ?[0-9]{{2}} ?[0-9]{{2}} ?[0-9][0-9AB] ?[0-9]{{3}} ?[0-9]{{3}}[ -]?[0-9"
        rf"]{{2}}{_END}", checked(checksums.fr_nir),
    ),
    _kind(
        "it_fiscal_code", "[FISCAL_CODE]", r"(?i)\b[A-Z]{6}[0-9]{2}[A-Z][0-9]{2}[A-Z][0-9]{3}[A-Z]\b",
        r"\b[A-Z]{6}[0-9]{2}[ABCDEHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]"
        r"\b", checked(checksums.it_fiscal_code), re.I,
    ),
    _kind(
        "ch_ahv", "[AHV]", r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}",
        rf"7{_NOT_IN}56(\.?)[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{2}}{_END}",
        _check_ahv,
    ),
    _kind(
        "pl_pesel", "[PESEL]", r"\b[0-9]{11}\b", rf"[0-9]{_NOT_IN}[0-9"
                                                 rf"]{{10}}{_END}", checked(checksums.pl_pesel),
    ),
    _kind(
        "de_tax_id", "[TAX_ID]", r"\b[1-9][0-9] ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}\b",
        rf"[1-9]{_NOT_IN}(?:[0-9]{{10}}"
        rf"|[0-9] [0-9]{{3}} [0-9]{{3}} [0-9]{{3}}){_END}", checked(checksums.de_tax_id),
    ),
    _kind(
        "br_cpf", "[CPF]", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}",
        rf"[0-9]{_NOT_IN}[0-9]{{2}}\.[0-9]{{3}}\.[0-9]{{3}}-[0-9"
        rf"]{{2}}{_END}", checked(checksums.br_cpf, is_named=True),
    ),
    _kind(
        "br_cpf", "[CPF]", r"(?i)\bcpf\b", rf"[0-9]{_NOT_IN}[0-9]{{8}}-?[0-9]{{2}}{_END}",
        named_by("cpf", "cpf", lambda text: checksums.br_cpf(bare(text))),
    ),
    _kind(
        "nl_bsn", "[BSN]", r"(?i)\bbsn\b|burgerservice|sofi",
        rf"[0-9]{_NOT_IN}(?:[0-9]{{8}}|[0-9]{{3}}[ .][0-9]{{2}}[ .][0-9]{{3}}"
        rf"|[0-9]{{2}}[ .][0-9]{{3}}[ .][0-9]{{3}}){_END}",
        named_by("(?:bsn|burgerservicenummer|sofi"
                 "(?:nummer)?)", "bsn burger sofi", lambda text: checksums.nl_bsn(bare(text))),
    ),
    _kind(
        "vin", "[VIN]", r"(?i)\bvin\b|vehicle id|chassis|fahrgestell|\bfin\b|ch[aâ]ssis|bastidor|telaio",
        rf"[A-HJ-NPR-Z0-9]{_NOT_IN}[A-HJ-NPR-Z0-9]{{16}}(?!\w)",
        named_by(_VIN, "vin vehicle chassis fahrgestell fin châssis bastidor telaio", _has_digits(4)),
    ),
    _kind(
        "vin", "[VIN]", r"\b[A-HJ-NPR-Z0-9]{8}[0-9X][A-HJ-NPR-Z0-9]{8}\b",
        rf"[A-HJ-NPR-Z0-9]{_NOT_IN}[A-HJ-NPR-Z0-9]{{7}}[0-9X][A-HJ-NPR-Z0-9]{{8}}{_END}", _check_vin,
    ),
)  # fmt: skip
