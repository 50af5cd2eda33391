"""Which encoding a text is in: its byte order mark, UTF-8 where that fits, else what is likeliest."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from fullft_assets.documents.formats.delivered import Delivered, Unreadable

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
#: Bytes with characters outside ASCII that an encoding is told from.
SAMPLE_BYTES = 2**16
#: Fewer bytes outside ASCII tell nothing; the most widespread encoding is meant.
_FEW_BYTES = 4
#: Characters at the start of a text that tell text from binary data.
CHECKED_CHARACTERS = 2**16
_CONTROLS = [chr(code) for code in (*range(9), 11, *range(14, 32), 127)]
MAX_CONTROL_SHARE = 0.01


def of_mark(head: bytes) -> str | None:
    """Return the encoding that a byte order mark names, or None."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def refuse_binary(text: str) -> None:
    """Raise `Unreadable` where the start of a text is mostly no text: NULs and other control characters."""
    start = text[:CHECKED_CHARACTERS]
    controls = sum(start.count(character) for character in _CONTROLS)
    if controls > 2 and controls > MAX_CONTROL_SHARE * len(start):
        raise Unreadable("binary data, not text; if it is UTF-16 without a byte order mark, set documents.encoding")


def refuse_binary_file(file: Delivered) -> None:
    """Raise `Unreadable` where a file, decoded, is no text."""
    with file.text() as text:
        refuse_binary(text.read(CHECKED_CHARACTERS))


def detect(lines: Iterable[bytes]) -> str | None:
    """Return the likeliest encoding of lines that are not UTF-8, or None where none is likely.

    Text that is UTF-8 but for damaged bytes has no other encoding: decoded by one, every other letter would be wrong.

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
    if _is_damaged_utf8(sample):
        return None
    if sum(byte > 127 for byte in sample) < _FEW_BYTES and _decodes(sample, "cp1252"):
        return "cp1252"
    matches = list(charset_normalizer.from_bytes(bytes(sample), cp_isolation=_CANDIDATES))
    if not matches:
        return None
    best = matches[0]
    equals = [match for match in matches if (match.chaos, match.coherence) == (best.chaos, best.coherence)]
    # A few accents fit many encodings alike; the most widespread of them is meant.
    western = any("cp1252" in match.could_be_from_charset for match in equals)
    return "cp1252" if western else best.encoding


def _is_damaged_utf8(sample: bytes) -> bool:
    text = sample.decode("utf-8", "surrogateescape")
    broken = sum("\udc80" <= character <= "\udcff" for character in text)
    whole = sum(character > "\x7f" for character in text) - broken
    return whole >= broken


def detect_file(file: Delivered) -> str:
    """Return the encoding of a file that is not UTF-8.

    Raises:
        Unreadable: none fits.
    """
    with file.binary() as lines:
        encoding = detect(lines)
    if encoding is None:
        raise Unreadable(complaint(file, "utf-8-sig"))
    return encoding


def complaint(file: Delivered, encoding: str) -> str:
    """Return what is wrong with a file that an encoding does not decode: the first bad line, where lines can be told before decoding."""
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


def decode(data: bytes, given: str | None = None, declared: str | None = None) -> tuple[str, str]:
    """Return a whole document's text, and its encoding.

    Args:
        data: the document.
        given: the encoding that the settings name; a byte order mark is stronger.
        declared: the encoding that the document itself names; wrong often enough that UTF-8 is tried first.

    Raises:
        Unreadable: no encoding fits, or it is binary data.
    """
    fixed = of_mark(data) or given
    for encoding in (fixed,) if fixed else ("utf-8-sig", declared):
        try:
            text = data.decode(encoding or "utf-8-sig")
        except UnicodeDecodeError:
            continue
        refuse_binary(text)
        return text, encoding or "utf-8-sig"
    found = None if fixed else detect(data.splitlines(keepends=True))
    try:
        if found is not None:
            return data.decode(found), found
    except UnicodeDecodeError:
        pass
    raise Unreadable(f"not {fixed}" if fixed else "not UTF-8, and no other encoding fits; set documents.encoding")
