"""Real licence rules with several labels, and with labelled spans, from the headers that ScanCode's people wrote for them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from fullft_assets.samples import licences

#: What a header lists of the text below it; holders stand inside copyrights, so these are left out.
SPANS = {"ignorable_urls": "url", "ignorable_emails": "email", "ignorable_holders": "holder", "ignorable_authors": "author"}
_HEADER = re.compile(r"\A---\n(.*?)\n---\n?(.*)\Z", re.DOTALL)
_KEY = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def _read(path: Path) -> tuple[dict[str, Any], str]:
    match = _HEADER.match(path.read_text(encoding="utf-8"))
    return yaml.load(match[1], Loader=yaml.CSafeLoader), match[2].strip("\n")


def _data() -> Path:
    return Path(find_spec("licensedcode").submodule_search_locations[0], "data")


@cache
def categories() -> dict[str, str]:
    """Category (permissive, copyleft ...) of each licence by its key."""
    headers = (_read(path)[0] for path in (_data() / "licenses").glob("*.LICENSE"))
    return {header["key"]: header["category"].lower().replace(" ", "_") for header in headers}


@cache
def _paths() -> list[Path]:
    """Rules in a fixed random order."""
    return sorted((_data() / "rules").glob("*.RULE"), key=lambda path: hashlib.sha256(path.name.encode()).hexdigest())


def _rules(skipped: int) -> Iterator[dict[str, Any]]:
    for path in _paths()[skipped:]:
        header, text = _read(path)
        yield {"id": path.stem, "text": text, "expression": header.get("license_expression", ""), "header": header}


def labelled_rows(count: int, *, skipped: int = 0, known: set[str] | None = None) -> list[dict[str, Any]]:
    """Return rules with `labels`: what kind of clue each is, and the categories of all licences that it names.

    Args:
        count: of rows.
        skipped: rules.
        known: labels kept; the others are taken off their rows.
    """
    found: list[dict[str, Any]] = []
    for rule in _rules(skipped):
        kinds = [kind for kind in licences.KINDS if rule["header"].get(f"is_license_{kind}") is True]
        keys = _KEY.findall(rule["expression"].lower())
        labels = {*kinds, *(categories()[key] for key in keys if key in categories())}
        if len(kinds) == 1 and rule["text"].strip():
            chosen = sorted(labels if known is None else labels & known)
            found.append({"id": rule["id"], "text": rule["text"], "labels": chosen, "expression": rule["expression"]})
        if len(found) == count:
            break
    return found


def spanned_rows(count: int, *, skipped: int = 0, most_characters: int = 1_500) -> list[dict[str, Any]]:
    """Return rules with `spans`: each place where something that the header lists stands; some have none.

    Most rules list URLs alone, or nothing: half of the rows are of those that list holders, authors or e-mail addresses.

    Args:
        count: of rows.
        skipped: rows.
        most_characters: of a text.
    """
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for path in _paths():
        content = path.read_text(encoding="utf-8")
        is_rich = any(name in content for name in list(SPANS)[1:])
        if len(found[is_rich]) >= (skipped + count + 1) // 2 or len(content) > 2 * most_characters:
            continue
        header, text = _read(path)
        if text.strip() and len(text) <= most_characters:
            row = {"id": path.stem, "text": text, "spans": _spans(text, header), "expression": header.get("license_expression", "")}
            found[is_rich].append(row)
    return [row for pair in zip(found[True], found[False], strict=False) for row in pair][skipped:][:count]


def _spans(text: str, header: dict[str, Any]) -> list[dict[str, Any]]:
    listed = sorted(((value, label) for name, label in SPANS.items() for value in header.get(name, [])), key=lambda item: -len(item[0]))
    taken: list[tuple[int, int, str]] = []
    for value, label in listed:
        for match in re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text):
            start, end = match.span()
            if all(end <= other or start >= stop for other, stop, _ in taken):
                taken.append((start, end, label))
    return [{"start": start, "end": end, "label": label} for start, end, label in sorted(taken)]
