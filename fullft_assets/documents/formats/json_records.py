"""JSON lines; and JSON files: an array of records, an object with one, a single record, or lines."""

import json
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain, islice
from typing import Any, TextIO

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.labels import parsed
from fullft_assets.documents.formats.registered import FORMATS, Format, Reading
from fullft_assets.documents.formats.sniffing import has_text

HALF_A_PAIR = "not Unicode: half of a surrogate pair"
SPREAD = "not JSON: records that extend over several lines; write each on one line"


def line_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
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


JSON_LINES = Format(
    line_records, endings=(".jsonl", ".ndjson"), is_text=True, is_streamed=True, may_be_compressed=True
)


_NO_ARRAY = "has no array at documents.records"
_TABLE = (
    "one object with an array of objects: if they are the records, set documents.records to its path, such as"
    " `data` or `result.rows`"
)
#: Objects and arrays within each other, as many as may be nested in a file of records.
_MAX_NESTING = 200
#: Characters that are parsed at a time: nesting is looked at after each piece.
_BUFFER_BYTES = 2**12


def json_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number in the array, or line number; record or problem) of each record of a JSON file.

    Raises:
        Unreadable: an array is broken, or not where `documents.records` says; the records before the break
            are no delivery.
    """
    with file.text() as lines:
        first = next((line for line in lines if not line.isspace()), "")
    path = reading.documents.records
    if first.lstrip().startswith("["):
        yield from _of_array(file, "")
    elif path is not None:
        yield from _of_array(file, path)
    elif isinstance(parsed(first), dict) or not isinstance(parsed(text := _read(file)), dict):
        yield from _hinted(line_records(file, reading), reading)
    else:
        yield from _hinted(iter([(1, checked(json.loads(text), text))]), reading)


def _read(file: Delivered) -> str:
    with file.text() as text:
        return text.read()


def _hinted(records: Iterator[tuple[int, Record]], reading: Reading) -> Iterator[tuple[int, Record]]:
    first_records = list(islice(records, 2))
    if len(first_records) == 1 and _is_table(first_records[0][1], reading):
        # The array's name is not shown: it may be a label, or a person's.
        yield first_records[0][0], _TABLE
    else:
        yield from chain(first_records, records)


def _is_table(record: Record, reading: Reading) -> bool:
    is_asked = reading.documents.format in ("auto", "json")
    if isinstance(record, str) or not is_asked or has_text(record, reading.wanted):
        return False
    of_tools = (each.looks_like for each in FORMATS.all().values() if each.looks_like is not None)
    return _has_array(record) and not any(looks_like(record, reading.wanted) for looks_like in of_tools)


def _has_array(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_array(inner) for inner in value.values())
    return isinstance(value, list) and len(value) > 1 and all(isinstance(each, dict) for each in value)


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
    try:
        value = json.loads(_read(file))
        for name in filter(None, path.split(".")):
            value = value[name]
        return value if isinstance(value, list) else []
    except (ValueError, TypeError, KeyError, RecursionError):
        return []


class _Encoded:
    """A text, read as UTF-8 with a line end behind it: the parser overlooks a string behind the array that
    nothing ends.
    """

    def __init__(self, text: TextIO):
        self._text = text
        self._end = ["", "\n"]

    def read(self, size: int = -1) -> bytes:
        """Return the next characters, encoded; none of them tells the parser that they are bytes."""
        return (self._text.read(size) or (self._end.pop() if size else "")).encode()


JSON = Format(
    json_records, endings=(".json",), is_text=True, may_be_compressed=True, is_recognised_by_content=True
)
