"""The encoding of a text: the one of its byte order mark, else UTF-8 where it fits, else the likeliest code
page.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from fullft_assets.documents.formats.code_pages import Scores, choose, scores_of
from fullft_assets.documents.formats.delivered import MAX_LINE_CHARACTERS, Delivered, Unreadable

T = TypeVar("T")
#: What `read_text` calls the encoding of a text that has no other characters.
ASCII = "ascii"
#: Bytes at the start of a file that a byte order mark or a declared encoding is looked for in.
_HEAD_BYTES = 4096
#: Longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF_8 = ("utf-8", "utf-8-sig")
#: Bytes of lines with characters outside ASCII that an encoding is detected from.
SAMPLE_BYTES = 2**16
#: Characters at the start of a text that distinguish text from binary data.
CHECKED_CHARACTERS = 2**16
_CONTROLS = [chr(code) for code in (*range(9), 11, *range(14, 32), 127)]
MAX_CONTROL_SHARE = 0.01


def is_encoding(name: str) -> bool:
    """Return whether a name is one of an encoding of text; codecs such as base64 are none."""
    try:
        return bool(getattr(codecs.lookup(name), "_is_text_encoding", True))
    except LookupError:
        return False


def of_mark(head: bytes) -> str | None:
    """Return the encoding that a byte order mark names, or None."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def refuse_binary(text: str) -> None:
    """Raise `Unreadable` where the start of a text has many NULs and other control characters."""
    start = text[:CHECKED_CHARACTERS]
    controls = sum(start.count(character) for character in _CONTROLS)
    if controls > 2 and controls > MAX_CONTROL_SHARE * len(start):
        raise Unreadable(
            "binary data, not text; if it is UTF-16 without a byte order mark, set documents.encoding"
        )


def refuse_binary_file(file: Delivered) -> bool:
    """Raise `Unreadable` where a decoded file is no text; return whether it is short and ASCII."""
    with file.text() as text:
        start = text.read(CHECKED_CHARACTERS)
    refuse_binary(start)
    return len(start) < CHECKED_CHARACTERS and start.isascii()


def alone(scores: Scores) -> str | None:
    """Return the likeliest encoding of a file that is read by itself."""
    return choose([scores])[0]


def scores_of_lines(lines: Iterable[bytes]) -> Scores:
    """Return a score by encoding of lines that are not UTF-8; none where they are in no encoding.

    Text that is UTF-8 except for damaged bytes has no other encoding: decoded by one, every other letter
    would be wrong.

    Raises:
        Unreadable: they are binary data.
    """
    sample = bytearray()
    for line in lines:
        if not line.isascii():
            sample += line[: SAMPLE_BYTES - len(sample)]
            if len(sample) >= SAMPLE_BYTES:
                break
    refuse_binary(sample.decode("latin-1"))
    return {} if _is_damaged_utf8(bytes(sample)) else scores_of(bytes(sample))


def _is_damaged_utf8(sample: bytes) -> bool:
    text = sample.decode("utf-8", "surrogateescape")
    # A broken byte is a lone surrogate, which UTF-8 does not encode.
    broken = len(text) - len(text.encode("utf-8", "ignore").decode("utf-8"))
    intact = len(text) - len(text.encode("ascii", "ignore")) - broken
    return intact >= broken


def read_text(
    file: Delivered,
    encoding_of_settings: str | None,
    declared_by: Callable[[bytes], str | None] | None,
    read: Callable[[Delivered], T],
    decide: Callable[[Scores], str | None] = alone,
) -> tuple[T, str]:
    """Return what `read` makes of a text file in the first encoding that fits, and that encoding; `ASCII` of
    a short text that is.

    Args:
        file: the file.
        encoding_of_settings: the encoding that the settings name; a byte order mark is stronger.
        declared_by: returns the encoding that the first bytes of the file declare; wrong often enough that
            UTF-8 is tried first.
        read: reads the file in the encoding that `Delivered.encoding` names.
        decide: returns the encoding of a file that is in none of these, by the score of each encoding.

    Raises:
        Unreadable: no encoding fits, it is binary data, or `read` raises it.
    """
    with file.binary() as data:
        head = data.read(_HEAD_BYTES)
    known = of_mark(head) or encoding_of_settings
    for encoding in (
        (known,)
        if known
        else _candidates(file, declared_by(head) if declared_by is not None else None, decide)
    ):
        decoded = replace(file, encoding=encoding)
        try:
            is_ascii = refuse_binary_file(decoded) and not known
            return read(decoded), ASCII if is_ascii else encoding
        except UnicodeError:
            continue
    raise Unreadable(complaint(file, known or "utf-8-sig"))


def _candidates(
    file: Delivered, declared: str | None, decide: Callable[[Scores], str | None]
) -> Iterator[str]:
    yield "utf-8-sig"
    if declared is not None:
        yield declared
    with file.binary() as data:
        # In pieces where a line is long: the sample has no more of it anyway.
        detected_encoding = decide(scores_of_lines(iter(lambda: data.readline(SAMPLE_BYTES), b"")))
    if detected_encoding is not None:
        yield detected_encoding


def complaint(file: Delivered, encoding: str) -> str:
    """Return why an encoding does not fit a file, with the number of the first bad line where lines can be
    found without decoding.
    """
    name = "UTF-8" if encoding in _UTF_8 else encoding
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        return f"not {name}"
    # The decoder's own position counts from the start of its buffer, which helps nobody.
    with file.binary() as data:
        lines = iter(lambda: data.readline(MAX_LINE_CHARACTERS), b"")
        number = next(
            (number for number, line in enumerate(lines, start=1) if not _decodes(line, encoding)), 1
        )
    return f"not {name} on line {number}" + (
        "; where it has another encoding, set documents.encoding" if encoding in _UTF_8 else ""
    )


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeError:
        return False
    return True


def decode(data: bytes, encoding: str | None = None) -> str:
    """Return the text of a whole document that is read by itself.

    Raises:
        Unreadable: no encoding fits, or it is binary data.
    """
    [text] = decode_all([data], encoding)
    if isinstance(text, Unreadable):
        raise text
    return text


def decode_all(documents: Sequence[bytes], encoding_of_settings: str | None = None) -> list[str | Unreadable]:
    """Return the text of each whole document, or why it has none; code pages are chosen for all of them
    together.

    `encoding_of_settings` is the encoding that the settings name, a byte order mark is stronger.
    """
    texts: list[str | Unreadable] = []
    undecided: dict[int, Scores] = {}
    for at, data in enumerate(documents):
        known = of_mark(data) or encoding_of_settings
        try:
            text = data.decode(known or "utf-8-sig")
            refuse_binary(text)
            texts.append(text)
        except Unreadable as error:
            texts.append(error)
        except UnicodeDecodeError:
            texts.append(
                Unreadable(
                    f"not {known}"
                    if known
                    else "not UTF-8, and no other encoding fits; set documents.encoding"
                )
            )
            if known is None:
                try:
                    undecided[at] = scores_of_lines(data.splitlines(keepends=True))
                except Unreadable as error:
                    texts[at] = error
    for at, encoding in zip(undecided, choose(list(undecided.values())), strict=True):
        if encoding is not None and _decodes(documents[at], encoding):
            texts[at] = documents[at].decode(encoding)
    return texts
