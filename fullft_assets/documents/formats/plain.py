"""Plain text and Markdown: one document a file, with the fields `text`, `file` and `folder`."""

from __future__ import annotations

from collections.abc import Iterator

from fullft_assets.documents.formats.delivered import MAX_TEXT_BYTES, Delivered, Record
from fullft_assets.documents.formats.protocol import Format, Reading


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield the document that a file is."""
    yield 1, file.document(file.whole_text(MAX_TEXT_BYTES))


FORMAT = Format(
    records,
    endings=(".txt", ".md", ".markdown"),
    is_whole_file=True,
    is_text=True,
    may_be_compressed=True,
    is_streamed=True,
    max_bytes=MAX_TEXT_BYTES,
)
