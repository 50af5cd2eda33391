"""How a person is reached and paid, and what lets others act as that person.

E-mail, telephone, IBAN, payment card, IP address, US social security number; keys and tokens, of which most
have a prefix of their provider, and others a word before them. Licence versions, section numbers, dates and
ZIP+4 codes look like numbers of people; what guards against them is in the patterns.
"""

import ipaddress
import re
from functools import lru_cache

from fullft_assets.personal_data import identifiers
from fullft_assets.personal_data.kinds import (
    Kind,
    Span,
    bare,
    checked,
    digits_of,
    is_another_number,
    named_by,
    whole,
)

_PLACEHOLDER = re.compile(
    r"(?i)^(?:x+|\*+|\.+|<.*|\$.*|\{.*|%.*|your.*|example.*|changeme|redacted|none|null|true|false)$"
)


def _check_assigned(match: re.Match[str]) -> Span | None:
    value = match[1]
    mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    return match.span(1) if mixed and not _PLACEHOLDER.match(value) else None


SECRETS = (
    Kind(
        "secret",
        "[SECRET]",
        r"-----BEGIN [A-Z ]*PRIVATE KEY",
        re.compile(
            r"-----BEGIN (?:[A-Z]{2,9} ){0,3}PRIVATE KEY(?:"
            r" BLOCK)?-----(?:[A-Za-z0-9+/=\s:,.\\()]|-(?!-)){0,20000}+-----END (?:[A-Z]{2,9} ){0,3}PRIVATE"
            r" KEY(?: BLOCK)?-----"
        ),
        whole,
    ),
    Kind(
        "secret",
        "[SECRET]",
        r"(?:AKIA|ASIA)[A-Z0-9]|gh[pousr]_|github_pat_|glpat-|xox[abposr]-|sk-|[rs]k_|AIza|hf_|npm_|eyJ|SG\.",
        re.compile(
            r"(?<![\w-])(?:(?:AKIA|ASIA)[A-Z0-9]{16}(?!\w)|gh[pousr]_[A-Za-z0-9]{36,255}+"
            r"|github_pat_\w{22,255}+|glpat-[\w-]{20,64}+"
            r"|xox[abposr]-[A-Za-z0-9-]{10,255}+|sk-(?=[\w-]{0,60}[0-9])[\w-]{20,255}+|[rs]k_(?:live"
            r"|test)_[A-Za-z0-9]{16,255}+"
            r"|AIza[\w-]{35}(?!\w)|hf_[A-Za-z0-9]{30,64}+|npm_[A-Za-z0-9]{36}|SG\.[\w-]{20,24}\.[\w-]{40,45}"
            r"|eyJ[\w-]{8,2000}+\.[\w-]{8,8000}+\.[\w-]{8,2000}+)"
        ),
        whole,
    ),
    Kind(
        "secret",
        "[SECRET]",
        r"(?i)\b(?:bearer|basic) [A-Za-z0-9._~+/-]{16}",
        re.compile(
            r"\b(?:bearer|basic) (?=[A-Za-z0-9._~+/-]{0,60}[0-9])([A-Za-z0-9._~+/-]{16,4000}+={0,2})", re.I
        ),
        whole,
    ),
    Kind(
        "secret",
        "[SECRET]",
        r"(?i)[?&#][a-z_-]{0,20}(?:token|key|secret|sig|signature|password|passwd|pwd|auth|code)="
        r"|://[^\s/@:]{1,64}:[^\s/@]{1,64}@",
        re.compile(
            r"(?:[?&#][a-z_-]{0,20}?(?:token|key|secret|sig|signature|password|passwd|pwd|auth)=|"
            r"(?<=://)[^\s/@:]{1,64}+:)"
            r"([^\s&#\"'<>@]{8,2000}+)",
            re.I,
        ),
        _check_assigned,
    ),
    Kind(
        "secret",
        "[SECRET]",
        r"(?i)(?:password|passwd|passwort|key|secret|token|contraseña|passe)\"?(?: is| ist| es| est)?["
        r" ]?[:=]|(?:password|passwort) (?:is|ist) ",
        re.compile(
            r"(?:password|passwd|passwort|api[_ -]?key|secret(?:[_ -]?(?:access)?[_ -]?key)?|access[_"
            r" -]?key|(?:auth|access)[_ -]?token|"
            r"contraseña|mot de passe)\"?(?:(?: is| ist| es| est)?[ ]?[:=]| is| ist| es| est)["
            r" ]?[\"']?([^\s\"'<>(){},;]{8,200}+)",
            re.I,
        ),
        _check_assigned,
    ),
)


#: Length of an IBAN by country (SWIFT IBAN registry).
IBAN_LENGTHS = {
    **{
        "AD": 24,
        "AE": 23,
        "AL": 28,
        "AT": 20,
        "AZ": 28,
        "BA": 20,
        "BE": 16,
        "BG": 22,
        "BH": 22,
        "BR": 29,
        "BY": 28,
        "CH": 21,
    },
    **{
        "CR": 22,
        "CY": 28,
        "CZ": 24,
        "DE": 22,
        "DK": 18,
        "DO": 28,
        "EE": 20,
        "EG": 29,
        "ES": 24,
        "FI": 18,
        "FO": 18,
        "FR": 27,
    },
    **{
        "GB": 22,
        "GE": 22,
        "GI": 23,
        "GL": 18,
        "GR": 27,
        "GT": 28,
        "HR": 21,
        "HU": 28,
        "IE": 22,
        "IL": 23,
        "IQ": 23,
        "IS": 26,
    },
    **{
        "IT": 27,
        "JO": 30,
        "KW": 30,
        "KZ": 20,
        "LB": 28,
        "LC": 32,
        "LI": 21,
        "LT": 20,
        "LU": 20,
        "LV": 21,
        "MC": 27,
        "MD": 24,
    },
    **{
        "ME": 22,
        "MK": 19,
        "MR": 27,
        "MT": 31,
        "MU": 30,
        "NL": 18,
        "NO": 15,
        "PK": 24,
        "PL": 28,
        "PS": 29,
        "PT": 25,
        "QA": 29,
    },
    **{
        "RO": 24,
        "RS": 22,
        "SA": 24,
        "SC": 31,
        "SE": 24,
        "SI": 19,
        "SK": 24,
        "SM": 27,
        "ST": 25,
        "SV": 28,
        "TL": 23,
        "TN": 24,
    },
    **{"TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20},
}
_FILE_ENDINGS = ("png", "jpg", "jpeg", "gif", "svg", "js", "css", "webp")
_NUMBERED = re.compile(
    r"(?:\b(?:v|ver|version|release|rev|revision|section|sections|sec|clause|article|chapter|paragraph|rule)"
    r"|§)["
    r" .:(]*$",
    re.I,
)
#: Countries whose national mobile numbers are found without the country's code.
REGIONS = (
    "US",
    "GB",
    "DE",
    "FR",
    "ES",
    "IT",
    "NL",
    "BE",
    "AT",
    "CH",
    "PL",
    "PT",
    "BR",
    "IE",
    "SE",
    "DK",
    "MX",
    "IN",
    "AU",
)

#: Countries whose mobile numbers are found in groups as well, though they have no zero in front, or two
#: digits behind it.
_GROUPED_REGIONS = ("ES", "PL", "PT", "NL", "BE", "BR")
_CURRENCY = r"(?:€|\$|£|z[łl]|kr|EUR|USD|GBP|CHF|PLN|BRL|R\$)"
_AMOUNT_BEFORE = re.compile(rf"(?:{_CURRENCY}|[0-9])[ -]$", re.I)
_AMOUNT_AFTER = re.compile(rf"[ ]?(?:{_CURRENCY}|%|[0-9])(?!\w)|[ ][0-9]", re.I)


def _check_email(match: re.Match[str]) -> Span | None:
    local = _LOCAL_PART.search(match.string, max(0, match.start() - 64), match.start())
    return (
        None
        if local is None or match[0].rpartition(".")[2].lower() in _FILE_ENDINGS
        else (local.start(), match.end())
    )


def _check_iban(match: re.Match[str]) -> Span | None:
    if (length := IBAN_LENGTHS.get(match[0][:2].upper())) is None:
        return None
    # The pattern may have run into the letters that follow; the country decides where the number ends.
    ends = [at for at, c in enumerate(match[0], start=1) if c.isalnum()]
    if len(ends) < length or (len(ends) > length and match[0][ends[length - 1]].isalnum()):
        return None
    end = ends[length - 1]
    return (match.start(), match.start() + end) if identifiers.is_iban(bare(match[0][:end])) else None


#: Cards that networks issue: first and last prefix, and lengths (Visa, Mastercard, Amex, Diners, Discover,
#: JCB, UnionPay).
_ISSUED_CARDS = (
    ("4", "4", {13, 16, 19}),
    ("51", "55", {16}),
    ("2221", "2720", {16}),
    *((prefix, prefix, {15}) for prefix in ("34", "37")),
    *((prefix, prefix, {14}) for prefix in ("36", "38")),
    ("300", "305", {14}),
    *((prefix, prefix, {16, 17, 18, 19}) for prefix in ("62", "65", "6011")),
    ("3528", "3589", {16, 17, 18, 19}),
    ("644", "649", {16, 17, 18, 19}),
)


def _is_card(number: str) -> bool:
    return identifiers.is_luhn(number) and any(
        first <= number[: len(first)] <= last and len(number) in lengths
        for first, last, lengths in _ISSUED_CARDS
    )


def _check_ipv4(match: re.Match[str]) -> Span | None:
    parts = match[0].split(".")
    if any(int(part) > 255 or (part[0] == "0" and part != "0") for part in parts) or all(
        len(part) == 1 for part in parts
    ):
        return None
    address = ipaddress.IPv4Address(match[0])
    return (
        None
        if address.is_loopback
        or address.is_unspecified
        or address.is_multicast
        or address.is_reserved
        or _NUMBERED.search(match.string, max(0, match.start() - 20), match.start())
        else match.span()
    )


def _check_ipv6(match: re.Match[str]) -> Span | None:
    number = match[0].removesuffix(":") if not match[0].endswith("::") else match[0]
    # `abc::def` is more often a name in a program than an address.
    if sum(map(bool, number.split(":"))) < 3 or not digits_of(number):
        return None
    try:
        address = ipaddress.IPv6Address(number)
    except ValueError:
        return None
    return (
        None if address.is_loopback or address.is_multicast else (match.start(), match.start() + len(number))
    )


def _may_be_called(number: str) -> bool:
    # A day is no number.
    return 7 <= len(digits_of(number)) <= 15 and not re.fullmatch(
        r"(?:19|20)[0-9]{2}[-/.][0-9]{1,2}[-/.][0-9]{1,2}", number
    )


def _check_called(match: re.Match[str]) -> Span | None:
    return (
        None
        if (span := _NAMED_TELEPHONE(match)) is None
        else (span[0] + 1, span[1])
        if match[0].startswith("(") and ")" not in match[0]
        else span
    )


def _check_telephone(match: re.Match[str]) -> Span | None:
    form = str(match.lastgroup)
    least, most = _TELEPHONE_DIGITS[form]
    # A ZIP+4 code has the shape of a trunk number.
    is_zip = form == "trunk" and re.fullmatch(r"[0-9]{5,6}[ -]{1,2}[0-9]{4}", match[0])
    if is_zip or not least <= len(digits_of(match[0])) <= most:
        return None
    if form == "prefixed" and not _is_valid(f"+{digits_of(match[0])[2:]}"):
        return None
    if form == "unspaced" and (
        is_another_number(match, match.start())
        or not any(_is_valid(match[0], region, mobile=True) for region in REGIONS)
    ):
        return None
    return None if form == "mobile" and not _is_grouped_mobile(match) else match.span()


def _is_grouped_mobile(match: re.Match[str]) -> bool:
    start, end = match.span()
    is_amount = _AMOUNT_BEFORE.search(match.string, max(0, start - 5), start) or _AMOUNT_AFTER.match(
        match.string, end
    )
    return (
        False
        if is_amount or is_another_number(match, start)
        else any(_is_valid(digits_of(match[0]), region, mobile=True) for region in _GROUPED_REGIONS)
    )


@lru_cache(maxsize=4096)
def _is_valid(number: str, region: str | None = None, *, mobile: bool = False) -> bool:
    import phonenumbers

    try:
        phone_number = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False
    if not phonenumbers.is_valid_number(phone_number):
        return False
    kinds = (phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE)
    return not mobile or phonenumbers.number_type(phone_number) in kinds


_LOCAL_PART = re.compile(r"[\w%+][\w.+%'-]*\Z")
#: Least and most digits of each form of telephone number.
_TELEPHONE_DIGITS = {
    "international": (8, 15),
    "prefixed": (10, 17),
    "american": (10, 11),
    "french": (10, 10),
    "trunk": (9, 12),
    "unspaced": (10, 11),
    "mobile": (9, 11),
}
# Each pattern starts with a set of characters and looks back after it: only so can the search skip what
# cannot start one.
_TELEPHONE = r"""
[+(0-9](?<![\w.+/@:-].)(?:
    (?P<international>(?<=\+)[1-9](?:[ .\-/()]{0,3}[0-9]){7,14}+)
  |(?P<prefixed>(?<=0)0[1-9](?:[ .\-/()]{0,3}[0-9]){7,14}+)
  |(?P<american>(?:(?<=1)[ .-](?:\([2-9]|[2-9])|(?<=\()[2-9]|(?<=[2-9]))[0-9]{2}
    (?:\)[ -]?[2-9][0-9]{2}[-. ]|[-][2-9][0-9]{2}-|[.][2-9][0-9]{2}[.]|[ ][2-9][0-9]{2}[ ])[0-9]{4})
  |(?P<french>(?<=0)[1-9](?:[ .-][0-9]{2}){4})
  |(?P<trunk>(?:(?<=\()0|(?<=0))[1-9][0-9]{1,4}\)?[ /-]{1,3}[0-9]{3,8}+(?:[ -][0-9]{2,5}){0,3}+)
  |(?P<unspaced>(?<=0)[1-9][0-9]{8,9}+)
  |(?P<mobile>(?<=0)(?:6[ -][0-9]{8}|4[5-9][0-9][ /][0-9]{2}[ .][0-9]{2}[ .][0-9]{2})
    |(?<=\()[1-9]{2}\)[ ]?9[0-9]{4}-[0-9]{4}
    |(?<=[4-9])[0-9]{2}(?:[ ][0-9]{3}[ ][0-9]{3}|-[0-9]{3}-[0-9]{3}|[ ][0-9]{2}[ ][0-9]{2}[ ][0-9]{2}))
)(?![\w%]|[-/.:,]?[0-9])
"""
_CALLED = r"[+(0-9](?<![\w+(.@].)(?:(?<=[0-9])|[0-9])(?:[ ().\-/]{0,3}[0-9]){6,14}+(?![-/]?\w)"
_SEVEN_DIGITS = r"[0-9](?:[ ().\-/]{0,3}[0-9]){6}"
_CALL_STEMS = (
    "tel tél phone fax mob móvil movil cell celular komórka komorka portable handy whatsapp call ring text"
    " sms llam rufen appel chiama bel zadzwo"
)
_NAMED_TELEPHONE = named_by(
    r"(?:telephone|telefon|telefax|telefoon|t[ée]l[ée]phone|tel[ée]fono|telefone|phone|tel|t[ée]l|fax"
    r"|mobile|mobil|mobiel|m[óo]vil|cell|cellulare|celular|kom[óo]rka|portable|handy|whatsapp|call|ring"
    r"|text|sms|llama|llame|rufen|appelez|chiama|bel"
    r"|zadzwo[ńn])\b[.]?"
    r"(?: (?:me|us|him|her|sie|mich|lo|al|moi|nous|mi|mij|under|unter|at|on|au|op|pod|no|to|the|my|new|line"
    r"|office)\b){0,3}+",
    _CALL_STEMS,
    _may_be_called,
)
_CARD = (
    r"[0-9](?<![\w.+-].)(?:[0-9]{3}([ .-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}|[0-9]{3}(["
    r" .-])[0-9]{6}\2[0-9]{4,5}|[0-9]{12,18}+)(?![\w-]|\.[0-9])"
)

CONTACTS = (
    Kind(
        "email",
        "[EMAIL]",
        "@",
        re.compile(r"@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])"),
        _check_email,
    ),
    Kind(
        "iban",
        "[IBAN]",
        r"\b[A-Za-z]{2}[0-9]{2}[ -]?[A-Za-z0-9]{4}",
        re.compile(r"[A-Za-z](?<!\w.)[A-Za-z][0-9]{2}(?:[ -]?[A-Za-z0-9]){11,32}+"),
        _check_iban,
    ),
    Kind(
        "payment_card", "[CARD]", r"[0-9](?:[ .-]?[0-9]){12}", re.compile(_CARD), checked(_is_card, group=0)
    ),
    Kind(
        "us_ssn",
        "[SSN]",
        r"[0-9]{3}-[0-9]{2}-[0-9]{4}",
        re.compile(r"[0-9](?<![\w.-].)[0-9]{2}-[0-9]{2}-[0-9]{4}(?![\w-])"),
        checked(identifiers.us_ssn),
    ),
    Kind(
        "us_ssn",
        "[SSN]",
        r"(?i)ssn|social security",
        re.compile(r"[0-9](?<![\w.-].)[0-9]{2}[ .-]?[0-9]{2}[ .-]?[0-9]{4}(?!\w)"),
        named_by("(?:ssn|social security)", "ssn social", lambda text: identifiers.us_ssn(digits_of(text))),
    ),
    Kind(
        "ip_address",
        "[IP]",
        r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]",
        re.compile(r"[0-9](?<![\w.-].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![\w-]|\.[0-9])"),
        _check_ipv4,
    ),
    Kind(
        "ip_address",
        "[IP]",
        r"[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]*:",
        re.compile(r"[0-9A-Fa-f:](?<![\w:.].)[0-9A-Fa-f:]{5,38}+(?!\w)"),
        _check_ipv6,
    ),
)
#: After all identifiers: their digits are no telephone numbers.
TELEPHONES = (
    Kind(
        "phone",
        "[PHONE]",
        rf"(?i)\b(?:{'|'.join(_CALL_STEMS.split())})[^0-9]*{_SEVEN_DIGITS}",
        re.compile(_CALLED),
        _check_called,
    ),
    # Not the years of "1999-2004", which many texts have.
    Kind(
        "phone",
        "[PHONE]",
        rf"(?:\+|\b0){_SEVEN_DIGITS}|[2-9][0-9]{{2}}(?:\)[ -]?|[-. ])[2-9][0-9]{{2}}[-. ][0-9]{{4}}"
        r"|\([1-9]{2}\) ?9[0-9]{4}-|\b[4-9][0-9]{2}(?:[ -][0-9]{3}[ -][0-9]{3}|(?: [0-9]{2}){3})",
        re.compile(_TELEPHONE, re.X),
        _check_telephone,
    ),
)
