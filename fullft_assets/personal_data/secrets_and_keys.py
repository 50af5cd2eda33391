"""Keys and tokens: whoever reads one may act as its owner. Most have a prefix of their provider; others a
word before them.
"""

from __future__ import annotations

import re

from fullft_assets.personal_data.kinds import Kind, Span, whole

_PLACEHOLDER = re.compile(
    r"(?i)^(?:x+|\*+|\.+|<.*|\$.*|\{.*|%.*|your.*|example.*|changeme|redacted|none|null|true|false)$"
)


def _check_assigned(match: re.Match[str]) -> Span | None:
    """Accept a value that looks random, unlike a word, a variable or a call."""
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
