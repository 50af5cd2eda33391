"""JSON lines: one record a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fullft_assets.documents.formats.delivered import Delivered, Record
from fullft_assets.documents.formats.protocol import Format, Reading

HALF_A_PAIR = "not Unicode: half of a surrogate pair"
SPREAD = "not JSON: records that extend over several lines; write each on one line"


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (line number, record or problem) of each line that is not blank."""
    is_spread = None
    with file.lines() as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                # Each line of a record on many lines is broken in a way of its own: the first one decides.
                is_spread = _goes_on(line, error) if is_spread is None else is_spread
                yield number, SPREAD if is_spread else f"not JSON: {reason(error)}"
                continue
            is_spread = is_spread or False
            yield number, checked(record, line)


def checked(record: Any, text: str) -> Record:
    """Return a parsed record, or why it is not one: no object, or no Unicode; `text` is its source."""
    if not isinstance(record, dict):
        return "not a JSON object"
    if ("\\ud" in text or "\\uD" in text) and not _is_unicode(record):
        return HALF_A_PAIR
    return record


def _goes_on(line: str, error: Exception) -> bool:
    """Return whether a line is the sound beginning of a record."""
    begun = line.rstrip()
    return isinstance(error, json.JSONDecodeError) and error.pos >= len(begun) and begun[-1] in "{[,"


def reason(error: Exception) -> str:
    """Return the parser's complaint; it names a place and never the text."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]


def _is_unicode(record: dict[str, Any]) -> bool:
    # JSON may escape half of a UTF-16 pair, which is no character and cannot be stored as UTF-8.
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


FORMAT = Format(
    records, endings=(".jsonl", ".ndjson"), is_text=True, is_streamed=True, may_be_compressed=True
)
