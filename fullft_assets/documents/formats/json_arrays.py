"""JSON files: an array of records, a single record, or JSON lines under the ending .json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from fullft_assets.documents.formats import json_lines
from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.json_lines import checked, reason
from fullft_assets.documents.formats.protocol import Format, Reading

_SPACE = re.compile(r"[ \t\r\n]*")


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number in the array, or line number; record or problem) of each record of a JSON file.

    Raises:
        Unreadable: an array is broken; the records before the break are no delivery.
    """
    with file.text() as lines:
        first = next((line for line in lines if not line.isspace()), "")
    if first.lstrip().startswith("["):
        yield from _of_array(file)
    elif _is_record(first) or not _is_record(text := _read(file)):
        yield from json_lines.records(file, reading)
    else:
        yield 1, checked(json.loads(text), text)


def _read(file: Delivered) -> str:
    with file.text() as text:
        return text.read()


def _is_record(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _of_array(file: Delivered) -> Iterator[tuple[int, Record]]:
    # Element by element: the objects of a large array would fill the memory.
    text, decoder = _read(file), json.JSONDecoder()
    at, number = _after_space(text, text.index("[") + 1), 0
    while not text.startswith("]", at) or number:
        number += 1
        try:
            record, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"not JSON: record {number}: {reason(error)}") from error
        yield number, checked(record, text[at:end])
        at = _after_space(text, end)
        if text.startswith("]", at):
            break
        if not text.startswith(",", at):
            raise Unreadable(f"not JSON: no comma or bracket after record {number}")
        at = _after_space(text, at + 1)
    if _after_space(text, at + 1) != len(text):
        raise Unreadable("not JSON: more text after the array's end")


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None, "the pattern fits an empty text"
    return found.end()


FORMAT = Format(records, endings=(".json",), is_text=True, may_be_compressed=True, is_recognised_by_content=True)
