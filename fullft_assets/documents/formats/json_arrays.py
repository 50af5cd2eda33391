"""JSON files: an array of records, an object with such an array, a single record, or JSON lines under the
ending .json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain, islice
from typing import Any, TextIO

from fullft_assets.documents.formats import json_lines
from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.json_lines import checked
from fullft_assets.documents.formats.protocol import Format, Reading
from fullft_assets.documents.formats.sniffing import has_text

#: Objects and arrays within each other, as many as may be nested in a file of records.
_MAX_NESTING = 200
#: Characters that are parsed at a time: nesting is looked at after each piece.
_BUFFER_BYTES = 2**12
_NO_ARRAY = "has no array at documents.records"
_TABLE = (
    "one object with an array of objects: if they are the records, set documents.records to its path, such as"
    " `data` or `result.rows`"
)
#: Objects within objects in which an array of records is looked for.
_MOST_DEPTH = 3


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number in the array, or line number; record or problem) of each record of a JSON file.

    Raises:
        Unreadable: an array is broken, or not where `documents.records` says; the records before the break
            are no delivery.
    """
    with file.text() as lines:
        first = next((line for line in lines if not line.isspace()), "")
    if first.lstrip().startswith("["):
        yield from _of_array(file, "")
    elif reading.documents.records is not None:
        yield from _of_array(file, reading.documents.records)
    elif _is_record(first) or not _is_record(text := _read(file)):
        yield from _hinted(json_lines.records(file, reading), reading)
    else:
        yield from _hinted(iter([(1, checked(json.loads(text), text))]), reading)


def _read(file: Delivered) -> str:
    with file.text() as text:
        return text.read()


def _is_record(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _hinted(records: Iterator[tuple[int, Record]], reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield records; in place of a single one that is rather a table, what to set."""
    first_records = list(islice(records, 2))
    if len(first_records) == 1 and _is_table(first_records[0][1], reading):
        # The array's name is not shown: it may be a label, or a person's.
        yield first_records[0][0], _TABLE
    else:
        yield from chain(first_records, records)


def _is_table(record: Record, reading: Reading) -> bool:
    """Return whether a record has an array of objects, but no text, and is not of an annotation tool."""
    from fullft_assets.documents.formats.registered import FORMATS

    if (
        isinstance(record, str)
        or reading.documents.format not in ("auto", "json")
        or has_text(record, reading.wanted)
    ):
        return False
    of_tools = (each.looks_like for each in FORMATS.all().values() if each.looks_like is not None)
    return _has_array(record, _MOST_DEPTH) and not any(
        looks_like(record, reading.wanted) for looks_like in of_tools
    )


def _has_array(value: dict[str, Any], depth: int) -> bool:
    """Return whether an object has an array of several objects, itself or in an object within it."""
    return any(
        len(inner) > 1 and all(isinstance(each, dict) for each in inner)
        if isinstance(inner, list)
        else isinstance(inner, dict) and depth > 1 and _has_array(inner, depth - 1)
        for inner in value.values()
    )


def _of_array(file: Delivered, path: str) -> Iterator[tuple[int, Record]]:
    """Yield (number, record or problem) of each element of the array at a path; an empty path names the
    file itself. The elements are parsed one after the other.

    Raises:
        Unreadable: the file is not JSON to its end, or has no array there.
    """
    import ijson

    number = 0
    depth = 0
    is_there = False

    def events(text: TextIO) -> Iterator[tuple[str, str, Any]]:
        nonlocal depth, is_there
        for prefix, event, value in ijson.parse(_Encoded(text), buf_size=_BUFFER_BYTES):
            depth += event in ("start_map", "start_array")
            depth -= event in ("end_map", "end_array")
            if depth > _MAX_NESTING:
                raise Unreadable(f"not JSON: after record {number}: nested too deeply")
            is_there = is_there or (prefix == path and event == "start_array")
            yield prefix, event, float(value) if isinstance(value, Decimal) else value

    try:
        with file.text() as text:
            for number, record in enumerate(ijson.items(events(text), f"{path}.item".lstrip(".")), start=1):
                yield number, record if isinstance(record, dict) else "not a JSON object"
    except ijson.JSONError as error:
        # Python writes NaN, which JSON does not have.
        remaining = _array_in(file, path)[number:]
        if not remaining and not is_there and not depth:
            raise Unreadable(_NO_ARRAY) from None
        if not remaining:
            # What follows the first line quotes the text.
            message = str(error).splitlines()[0].rstrip(".")
            raise Unreadable(f"not JSON: after record {number}: {message}") from None
        is_there = True
        for record in remaining:
            number += 1
            yield number, checked(record, json.dumps(record))
    if not is_there:
        raise Unreadable(_NO_ARRAY)


def _array_in(file: Delivered, path: str) -> list[Any]:
    """Return the array at a path of a file that Python's own parser reads; empty where it does not."""
    try:
        value = json.loads(_read(file))
        for name in filter(None, path.split(".")):
            value = value[name]
        return value if isinstance(value, list) else []
    except (ValueError, TypeError, KeyError, RecursionError):
        return []


class _Encoded:
    """A text, read as UTF-8."""

    def __init__(self, text: TextIO):
        self._text = text

    def read(self, size: int = -1) -> bytes:
        """Return the next characters, encoded."""
        return self._text.read(size).encode()


FORMAT = Format(
    records, endings=(".json",), is_text=True, may_be_compressed=True, is_recognised_by_content=True
)
