"""Real licence rules with several labels, and with labelled spans, from the headers that ScanCode's people
wrote for them.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from fullft_assets.demos import licences

LABELS = ["copyleft", "copyleft_limited", "notice", "permissive", "reference", "tag"]
#: Settings of `examples` for several labels, and for spans.
SEVERAL_LABELS = {"label": "labels", "labels": LABELS, "task": "multi_label", "group": "expression"}
SPANS = {"task": "token_classification", "label": "spans", "labels": None, "group": "expression"}
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
    return sorted(
        (_data() / "rules").glob("*.RULE"), key=lambda path: hashlib.sha256(path.name.encode()).hexdigest()
    )


def _rules(skipped: int) -> Iterator[dict[str, Any]]:
    for path in _paths()[skipped:]:
        header, text = _read(path)
        yield {
            "id": path.stem,
            "text": text,
            "expression": header.get("license_expression", ""),
            "header": header,
        }


def labelled_rows(count: int, *, skipped: int = 0, known: set[str] | None = None) -> list[dict[str, Any]]:
    """Return rules with `labels`: what kind of clue each is, and the categories of all licences that it
    names.

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
            found.append(
                {
                    "id": rule["id"],
                    "text": rule["text"],
                    "labels": sorted(labels if known is None else labels & known),
                    "expression": rule["expression"],
                }
            )
        if len(found) == count:
            break
    return found


def spanned_rows(count: int, *, most_characters: int = 300) -> list[dict[str, Any]]:
    """Return short rules with `spans`: the phrases that must be there for the rule to hold (`{{ }}` in the
    file), and URLs elsewhere.

    Args:
        count: of rows.
        most_characters: of a text.
    """
    found: list[dict[str, Any]] = []
    for path in _paths():
        if "{{" not in path.read_text(encoding="utf-8"):
            continue
        header, marked = _read(path)
        text, spans = _unmarked(marked)
        if not spans or len(text) > most_characters:
            continue
        for url in header.get("ignorable_urls", []):
            for match in re.finditer(rf"(?<!\w){re.escape(url)}(?![\w/])", text):
                if all(match.end() <= span["start"] or match.start() >= span["end"] for span in spans):
                    spans.append({"start": match.start(), "end": match.end(), "label": "url"})
        found.append(
            {
                "id": path.stem,
                "text": text,
                "spans": spans,
                "expression": header.get("license_expression", ""),
            }
        )
        if len(found) == count:
            break
    return found


def _unmarked(marked: str) -> tuple[str, list[dict[str, Any]]]:
    text, spans = "", []
    for number, part in enumerate(re.split(r"\{\{(.*?)\}\}", marked, flags=re.DOTALL)):
        if number % 2 and part.strip():
            spans.append({"start": len(text), "end": len(text) + len(part), "label": "phrase"})
        text += part
    return text, spans
