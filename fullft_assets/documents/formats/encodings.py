"""Which encoding a text is in: that of its byte order mark, else UTF-8 where it fits, else the likeliest."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from fullft_assets.documents.formats.delivered import Delivered, Unreadable

T = TypeVar("T")
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
#: Encodings that documents outside UTF-8 are found in, Western European first.
# fmt: off
_CANDIDATES = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874", "koi8_r", "iso8859_2", "iso8859_5",
    "iso8859_15", "mac_roman", "cp437", "cp850", "cp932", "euc_jp", "gb18030", "big5", "cp949",
]
# fmt: on
#: Bytes of lines with characters outside ASCII that an encoding is detected from.
SAMPLE_BYTES = 2**16
#: With fewer bytes outside ASCII the most widespread encoding is assumed.
_FEW_BYTES = 4
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
        raise Unreadable("binary data, not text; if it is UTF-16 without a byte order mark, set documents.encoding")


def refuse_binary_file(file: Delivered) -> None:
    """Raise `Unreadable` where a decoded file is no text."""
    with file.text() as text:
        refuse_binary(text.read(CHECKED_CHARACTERS))


def detect(lines: Iterable[bytes]) -> str | None:
    """Return the likeliest encoding of lines that are not UTF-8, or None where none is likely.

    Text that is UTF-8 except for damaged bytes has no other encoding: decoded by one, every other letter would be wrong.

    Raises:
        Unreadable: they are binary data.
    """
    import charset_normalizer

    sample = bytearray()
    for line in lines:
        if not line.isascii():
            sample += line[: SAMPLE_BYTES - len(sample)]
            if len(sample) >= SAMPLE_BYTES:
                break
    refuse_binary(sample.decode("latin-1"))
    if _is_damaged_utf8(bytes(sample)):
        return None
    if sum(byte > 127 for byte in sample) < _FEW_BYTES and _decodes(bytes(sample), "cp1252"):
        return "cp1252"
    matches = list(charset_normalizer.from_bytes(bytes(sample), cp_isolation=_CANDIDATES))
    if not matches:
        return None
    best = matches[0]
    equals = [match for match in matches if (match.chaos, match.coherence) == (best.chaos, best.coherence)]
    # A few accents fit many encodings alike; the most widespread of them is assumed.
    western = any("cp1252" in match.could_be_from_charset for match in equals)
    return "cp1252" if western else best.encoding


def _is_damaged_utf8(sample: bytes) -> bool:
    text = sample.decode("utf-8", "surrogateescape")
    broken = sum("\udc80" <= character <= "\udcff" for character in text)
    intact = sum(character > "\x7f" for character in text) - broken
    return intact >= broken


def read_text(
    file: Delivered, given: str | None, declared_by: Callable[[bytes], str | None] | None, read: Callable[[Delivered], T]
) -> tuple[T, str]:
    """Return what `read` makes of a text file in the first encoding that fits, and that encoding.

    Args:
        file: the file.
        given: the encoding that the settings name; a byte order mark is stronger.
        declared_by: returns the encoding that the first bytes of the file declare; wrong often enough that UTF-8 is tried first.
        read: reads the file in the encoding that `Delivered.encoding` names.

    Raises:
        Unreadable: no encoding fits, it is binary data, or `read` raises it.
    """
    with file.binary() as data:
        head = data.read(_HEAD_BYTES)
    known = of_mark(head) or given
    for encoding in (known,) if known else _candidates(file, declared_by(head) if declared_by is not None else None):
        decoded = replace(file, encoding=encoding)
        try:
            refuse_binary_file(decoded)
            return read(decoded), encoding
        except UnicodeError:
            continue
    raise Unreadable(complaint(file, known or "utf-8-sig"))


def _candidates(file: Delivered, declared: str | None) -> Iterator[str]:
    yield "utf-8-sig"
    if declared is not None:
        yield declared
    with file.binary() as lines:
        found = detect(lines)
    if found is not None:
        yield found


def complaint(file: Delivered, encoding: str) -> str:
    """Return what is wrong with a file that an encoding does not decode: the first bad line, where lines can be found without decoding."""
    name = "UTF-8" if encoding in _UTF_8 else encoding
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        return f"not {name}"
    # The decoder's own position counts from the start of its buffer, which helps nobody.
    with file.binary() as lines:
        number = next((number for number, line in enumerate(lines, start=1) if not _decodes(line, encoding)), 1)
    return f"not {name} on line {number}" + ("; where it has another encoding, set documents.encoding" if encoding in _UTF_8 else "")


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeError:
        return False
    return True


def decode(data: bytes, given: str | None = None) -> str:
    """Return the text of a whole document; `given` is the encoding that the settings name, a byte order mark is stronger.

    Raises:
        Unreadable: no encoding fits, or it is binary data.
    """
    known = of_mark(data) or given
    try:
        text = data.decode(known or "utf-8-sig")
    except UnicodeDecodeError:
        found = None if known else detect(data.splitlines(keepends=True))
        if found is None or not _decodes(data, found):
            raise Unreadable(f"not {known}" if known else "not UTF-8, and no other encoding fits; set documents.encoding") from None
        return data.decode(found)
    refuse_binary(text)
    return text
