"""Recall and precision of `examples.pii` on labelled sentences, kind by kind, and its time on hard texts.

`data/personal_data.jsonl` has sentences in ten languages with invented identifiers, whose check digits are
right, marked as `[[kind|text]]`, and sentences with look-alikes (invoice numbers, versions, hashes, ISBN,
dates, prices). The patterns were adjusted on the half `tuned`; the half `held_back` was only measured, but
for the digits' shape of one telephone number that was missed in it (see
benchmarks/results/personal-data-2026-11.md).
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.table import Goal, Row, Score

DATA = Path(__file__).parent / "data" / "personal_data.jsonl"
#: Least share of the marked pieces of each kind that is found, and of the found pieces that is marked.
LEAST_RECALL, LEAST_PRECISION = 0.95, 0.97
#: A text of so many characters, hard for the patterns, against prose of the same length.
_CHARACTERS = 1_000_000
_MARKED = re.compile(r"\[\[(\w+)\|(.*?)\]\]", re.S)
#: (kind, start, end)
Piece = tuple[str, int, int]
Find = Callable[[str], Iterable[Piece]]


def sentences(half: str) -> list[tuple[str, list[Piece]]]:
    """Return the texts of a half, without marks, and the pieces that are marked in them."""
    found = []
    for line in DATA.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["half"] == half:
            found.append(_unmarked(row["text"]))
    return found


def _unmarked(marked: str) -> tuple[str, list[Piece]]:
    text, pieces, position = "", [], 0
    for match in _MARKED.finditer(marked):
        text += marked[position : match.start()]
        pieces.append((match[1], len(text), len(text) + len(match[2])))
        text, position = text + match[2], match.end()
    return text + marked[position:], pieces


def measure(find: Find, half: str) -> dict[str, Counter[str]]:
    """Return counts by kind: `marked`, `found` of these (all but its outer punctuation, as any kind), and
    `false` alarms of the kind.
    """
    counts: dict[str, Counter[str]] = {}
    for text, pieces in sentences(half):
        found = list(find(text))
        for kind, start, end in pieces:
            is_found = any(a <= start + 1 and end - 1 <= b for _, a, b in found)
            counts.setdefault(kind, Counter()).update(marked=1, found=int(is_found))
        for kind, start, end in found:
            if not any(start < b and a < end for _, a, b in pieces):
                counts.setdefault(kind, Counter()).update(false=1)
    return counts


def scores(counts: dict[str, Counter[str]]) -> tuple[float, float]:
    """Return recall and precision over all kinds."""
    total = sum(counts.values(), Counter())
    return total["found"] / total["marked"], total["found"] / (total["found"] + total["false"])


def ours(text: str) -> Iterable[Piece]:
    from fullft_assets.personal_data import search

    return [(one.kind, one.start, one.end) for one in search.find(text)]


def example_telephones() -> dict[str, list[str]]:
    """Return libphonenumber's example numbers of our countries in national notation, by type: nobody tuned
    anything on them.
    """
    import phonenumbers

    from fullft_assets.personal_data.contacts import REGIONS

    def shown(region: str, type_: int) -> str:
        number = phonenumbers.example_number_for_type(region, type_)
        assert number is not None, "each country has one of each type"
        return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)

    types = {"mobile": phonenumbers.PhoneNumberType.MOBILE, "fixed": phonenumbers.PhoneNumberType.FIXED_LINE}
    return {name: [shown(region, type_) for region in REGIONS] for name, type_ in types.items()}


def hard_texts() -> dict[str, str]:
    """Return texts that make patterns with several ways to match slow."""
    units = {
        "digits and a letter": "1234567890123456789012345678901a ",
        "groups of digits": "12 34 56 78 90 ",
        "capitals and digits": "DE89 3704 0044 0532 0130 0X ",
        "points": "1.2.3.",
        "colons": "a:b:1:",
        "at signs": "a@b.c@",
        "words before numbers": "tel 1234567 passport 12345 ",
        "keys": "sk-sk-sk-eyJ.eyJ.",
        "begins of keys": "-----BEGIN PRIVATE KEY-----",
        "brackets": "+(0(0)(",
        "assignments": "password=password:",
    }
    return {name: (unit * (_CHARACTERS // len(unit) + 1))[:_CHARACTERS] for name, unit in units.items()}


def cpu_seconds(text: str) -> float:
    began = time.process_time()
    for _ in ours(text):
        pass
    return time.process_time() - began


def measure_personal_data() -> Row:
    """Return the row: the slowest hard text against prose, and the scores of both halves in its notes."""
    from fullft_assets.demos import licences

    prose = " ".join(rule["text"] for rule in licences.rules())[:_CHARACTERS]
    ours("imports libphonenumber: 0049 30 901820")
    hard = {name: cpu_seconds(text) for name, text in hard_texts().items()}
    slowest = max(hard, key=lambda name: hard[name])
    notes, details, recalls, precisions = [], {}, [], []
    for half in ("tuned", "held_back"):
        counts = measure(ours, half)
        recall, precision = scores(counts)
        shown = ", ".join(f"{kind} {each['found']}/{each['marked']}" for kind, each in sorted(counts.items()))
        notes.append(f"{half}: recall {recall:.1%}, precision {precision:.1%}; {shown}")
        recalls += [each["found"] / each["marked"] for each in counts.values() if each["marked"]]
        precisions.append(precision)
        details[half] = {kind: dict(each) for kind, each in counts.items()}
    for name, numbers in example_telephones().items():
        found = sum(
            any(kind == "phone" for kind, _, _ in ours(f"Ana, {number}, from Monday.")) for number in numbers
        )
        notes.append(
            f"libphonenumber's example {name} numbers in national notation, without a word that names them:"
            f" {found}/{len(numbers)}"
        )
    return Row(
        name="personal_data",
        ours=hard[slowest],
        other=f"prose, as long as {slowest}",
        theirs=cpu_seconds(prose),
        goal=Goal("ours", 2.0),
        notes=notes,
        details={"hard_cpu_seconds": hard, **details},
        scores=[
            Score("recall of each kind", min(recalls), LEAST_RECALL),
            Score("precision", min(precisions), LEAST_PRECISION),
        ],
    )
