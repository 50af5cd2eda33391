"""JSON files: an array of records, an object with such an array, a single record, or JSON lines under the
ending .json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from itertools import chain, islice
from typing import Any

from fullft_assets.documents.formats import json_lines
from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.json_lines import checked, reason
from fullft_assets.documents.formats.protocol import Format, Reading
from fullft_assets.documents.formats.sniffing import has_text

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
#: Names of arrays and what they are in that are shown: others may be labels, or of persons.
_SHOWN = {
    "data",
    "documents",
    "entries",
    "examples",
    "items",
    "payload",
    "records",
    "response",
    "result",
    "results",
    "rows",
    "texts",
    "train",
}
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
        text = _read(file)
        end = yield from _of_array(text, text.index("["))
        if end != len(text):
            raise Unreadable("not JSON: more text after the array's end")
    elif reading.documents.records is not None:
        text = _read(file)
        yield from _of_array(text, _array_at(text, reading.documents.records))
        # What follows the array is not parsed, but a file that was cut off there is noticed.
        if not text.rstrip().endswith("}"):
            raise Unreadable("not JSON: the object has no end")
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
    found = list(islice(records, 2))
    if len(found) == 1 and (path := _path_of_table(found[0][1], reading)) is not None:
        is_shown = _SHOWN.issuperset(path)
        name, value = (
            (f" `{'.'.join(path)}`", ".".join(path))
            if is_shown
            else ("", "its path, such as `data` or `result.rows`")
        )
        yield (
            found[0][0],
            (
                f"one object with an array{name} of objects: if they are the records, set documents.records"
                f" to {value}"
            ),
        )
        return
    yield from chain(found, records)


def _path_of_table(record: Record, reading: Reading) -> list[str] | None:
    """Return the path of an array of objects in a record that has no text and is not of an annotation
    tool.
    """
    from fullft_assets.documents.formats.registered import FORMATS

    if (
        isinstance(record, str)
        or reading.documents.format not in ("auto", "json")
        or has_text(record, reading.wanted)
    ):
        return None
    path = _path_of_array(record, _MOST_DEPTH)
    of_tools = (each.looks_like for each in FORMATS.all().values() if each.looks_like is not None)
    return (
        None if path is None or any(looks_like(record, reading.wanted) for looks_like in of_tools) else path
    )


def _path_of_array(value: dict[str, Any], depth: int) -> list[str] | None:
    """Return the path of the first array of objects."""
    for name, inner in value.items():
        if isinstance(inner, list) and len(inner) > 1 and all(isinstance(each, dict) for each in inner):
            return [name]
        if isinstance(inner, dict) and depth > 1 and (path := _path_of_array(inner, depth - 1)) is not None:
            return [name, *path]
    return None


def _array_at(text: str, path: str) -> int:
    """Return where the array begins that a path names in an object; what is before it is parsed, and let go.

    Raises:
        Unreadable: there is none.
    """
    at = _after_space(text, 0)
    for name in path.split("."):
        at = _value_of(text, at, name)
    if not text.startswith("[", at):
        raise Unreadable("has no array at documents.records")
    return at


def _value_of(text: str, at: int, wanted: str) -> int:
    """Return where the value of a field begins in the object that begins at a place; the end of the text
    where it has no such field.
    """
    at = _after_space(text, at + 1) if text.startswith("{", at) else len(text)
    while text.startswith('"', at):
        name, at = _decoded(text, at, "the object")
        at = _after_space(text, _after_space(text, at) + len(":"))
        if name == wanted:
            return at
        _, at = _decoded(text, at, "the object")
        at = _after_space(text, _after_space(text, at) + len(","))
    return len(text)


def _of_array(text: str, at: int) -> Generator[tuple[int, Record], None, int]:
    """Yield (number, record or problem) of each element of the array that begins at a place; return the place
    after it.
    """
    # Element by element: the objects of a large array would fill the memory.
    at, number = _after_space(text, at + 1), 0
    while not text.startswith("]", at) or number:
        number += 1
        record, end = _decoded(text, at, f"record {number}")
        yield number, checked(record, text[at:end])
        at = _after_space(text, end)
        if text.startswith("]", at):
            break
        if not text.startswith(",", at):
            raise Unreadable(f"not JSON: no comma or bracket after record {number}")
        at = _after_space(text, at + 1)
    return _after_space(text, at + 1)


def _decoded(text: str, at: int, what: str) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {what}: {reason(error)}") from error


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None, "the pattern fits an empty text"
    return found.end()


FORMAT = Format(
    records, endings=(".json",), is_text=True, may_be_compressed=True, is_recognised_by_content=True
)
