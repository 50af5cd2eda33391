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
                # The parser names a place and never the text.
                is_deep = isinstance(error, RecursionError)
                yield number, f"not JSON: {'nested too deeply' if is_deep else str(error).splitlines()[0]}"
            else:
                yield number, checked(record, line)


def checked(record: Any, text: str) -> Record:
    """Return a parsed record, or why it is not one: no object, or no Unicode; `text` is its source."""
    if not isinstance(record, dict):
        return "not a JSON object"
    return HALF_A_PAIR if ("\\ud" in text or "\\uD" in text) and not _is_unicode(record) else record


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
    try:
        with file.text() as text:
            stream = _Encoded(text)
            for number, record in enumerate(
                ijson.items(stream, f"{path}.item".lstrip("."), use_float=True, buf_size=2**16), start=1
            ):
                yield number, record if isinstance(record, dict) else "not a JSON object"
            # The parser says nothing of a string that begins after the end, and never ends itself.
            if stream.last_character not in "]}":
                raise ijson.IncompleteJSONError("text after the end")
    except ijson.JSONError as error:
        # Python writes NaN, which JSON does not have.
        remaining = (_array_in(file, path) or [])[number:]
        if not remaining:
            # What follows the first line quotes the text; cut inside a character, the message is bytes.
            (message,) = error.args
            message = str(message, errors="replace") if isinstance(message, bytes) else message
            raise Unreadable(
                f"not JSON: after record {number}: {message.splitlines()[0].rstrip('.')}"
            ) from None
        yield from (
            (later, checked(record, json.dumps(record)))
            for later, record in enumerate(remaining, start=number + 1)
        )
    else:
        if number == 0 and _array_in(file, path) is None:
            raise Unreadable("has no array at documents.records")


def _array_in(file: Delivered, path: str) -> list[Any] | None:
    try:
        value = json.loads(_read(file))
        for name in filter(None, path.split(".")):
            value = value[name]
        return value if isinstance(value, list) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


class _Encoded:
    """A text, read as UTF-8, as the parser wants it.

    Attributes:
        last_character: the last one read that is no space.
    """

    def __init__(self, text: TextIO):
        self._text = text
        self.last_character = ""

    def read(self, size: int = -1) -> bytes:
        """Return the next characters, encoded."""
        characters = self._text.read(size)
        self.last_character = characters.rstrip()[-1:] or self.last_character
        return characters.encode()


JSON = Format(
    json_records, endings=(".json",), is_text=True, may_be_compressed=True, is_recognised_by_content=True
)
