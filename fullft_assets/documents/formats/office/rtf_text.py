"""RTF: the text, one document a file; without formatting, pictures and hidden destinations."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.parsing import parsing, whole_characters
from fullft_assets.documents.formats.protocol import Format, Reading

MAX_BYTES = 32 * 2**20
MAGIC = "{\\rtf"
_BRACE = re.compile(r"\\[\\{}]|[{}]")
_PICTURES_IN_BINARY = re.compile(r"\\bin\d")


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield the document that an RTF file is."""
    with file.text(newline="") as text:
        yield 1, file.document(text_of(text.read()))


def text_of(source: str) -> str:
    """Return the text of an RTF document.

    Raises:
        Unreadable: it is damaged or cut off.
    """
    from striprtf.striprtf import rtf_to_text

    source = source.lstrip()
    if not source.startswith(MAGIC):
        raise Unreadable("not RTF")
    if not _PICTURES_IN_BINARY.search(source) and not _is_closed(source):
        raise Unreadable("not a complete RTF file (cut off: a group is not closed)")
    with parsing("RTF file"):
        text = rtf_to_text(source)
    return re.sub(r"\n{3,}", "\n\n", whole_characters(text)).strip()


def _is_closed(source: str) -> bool:
    depth = 0
    for brace in _BRACE.finditer(source):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return True
    return False


FORMAT = Format(
    records, endings=(".rtf",), is_whole_file=True, is_text=True, max_bytes=MAX_BYTES, is_slow=True
)
