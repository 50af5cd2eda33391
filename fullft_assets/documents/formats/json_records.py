"""JSON lines; and JSON files: an array of records, an object with one, a single record, or lines."""

import json
from collections.abc import Iterator
from typing import Any, TextIO

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.labels import parsed
from fullft_assets.documents.formats.registered import Format, Reading

HALF_A_PAIR = "not Unicode: half of a surrogate pair"


def line_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (line number, record or problem) of each line that is not blank."""
    with file.lines() as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, f"not JSON: {_reason(error)}"
            else:
                yield number, checked(record, line)


def checked(record: Any, text: str) -> Record:
    """Return a parsed record, or why it is not one: no object, or no Unicode; `text` is its source."""
    if not isinstance(record, dict):
        return "not a JSON object"
    return HALF_A_PAIR if ("\\ud" in text or "\\uD" in text) and not _is_unicode(record) else record


def _reason(error: Exception) -> str:
    # The parser names a place and never the text.
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


#: Characters that are parsed at a time.
_BUFFER_BYTES = 2**16


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
        yield from line_records(file, reading)
    else:
        yield 1, checked(json.loads(text), text)


def _read(file: Delivered) -> str:
    with file.text() as text:
        return text.read()


def _of_array(file: Delivered, path: str) -> Iterator[tuple[int, Record]]:
    """Yield (number, record or problem) of each element of the array at a path; an empty path names the
    file itself. The elements are parsed one after the other.

    Raises:
        Unreadable: the file is not JSON to its end, or has no array there.
    """
    import ijson

    number = 0
    is_there = False

    def events(text: TextIO) -> Iterator[tuple[str, str, Any]]:
        nonlocal is_there
        for prefix, event, value in ijson.parse(_Encoded(text), use_float=True, buf_size=_BUFFER_BYTES):
            is_there = is_there or (prefix == path and event == "start_array")
            yield prefix, event, value

    try:
        with file.text() as text:
            for number, record in enumerate(ijson.items(events(text), f"{path}.item".lstrip(".")), start=1):
                yield number, record if isinstance(record, dict) else "not a JSON object"
    except ijson.JSONError as error:
        # Python writes NaN, which JSON does not have.
        if not (remaining := _array_in(file, path)[number:]):
            # What follows the first line quotes the text.
            message = str(error).splitlines()[0].rstrip(".")
            raise Unreadable(f"not JSON: after record {number}: {message}") from None
        is_there = True
        for record in remaining:
            number += 1
            yield number, checked(record, json.dumps(record))
    if not is_there:
        raise Unreadable("has no array at documents.records")


def _array_in(file: Delivered, path: str) -> list[Any]:
    try:
        value = json.loads(_read(file))
        for name in filter(None, path.split(".")):
            value = value[name]
        return value if isinstance(value, list) else []
    except (ValueError, TypeError, KeyError, RecursionError):
        return []


class _Encoded:
    """A text, read as UTF-8, as the parser wants it."""

    def __init__(self, text: TextIO):
        self._text = text

    def read(self, size: int = -1) -> bytes:
        """Return the next characters, encoded."""
        return self._text.read(size).encode()


JSON = Format(
    json_records, endings=(".json",), is_text=True, may_be_compressed=True, is_recognised_by_content=True
)
