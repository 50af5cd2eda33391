"""Files that kreuzberg reads, one document a file: presentations, OpenDocument, EPUB, old files of Office.

It has no ending of its own: `documents.format: kreuzberg` has every file read by it.
"""

from __future__ import annotations

from collections.abc import Iterator

from fullft_assets.documents.formats.delivered import Delivered, Record
from fullft_assets.documents.formats.parsing import parsing, whole_characters
from fullft_assets.documents.formats.protocol import Format, Reading

MAX_BYTES = 128 * 2**20


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield the document that a file is.

    Raises:
        Unreadable: it is damaged, or of a kind that kreuzberg does not read.
    """
    from kreuzberg import ExtractionConfig, extract_file_sync

    # Its cache would keep texts outside of the store.
    config = ExtractionConfig(use_cache=False, enable_quality_processing=False)
    with parsing("document"):
        text = extract_file_sync(str(file.path), config=config).content
    yield 1, file.document(whole_characters(text).strip())


FORMAT = Format(records, is_whole_file=True, max_bytes=MAX_BYTES, is_slow=True)
