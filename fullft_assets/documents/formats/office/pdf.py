"""PDF: the text layer, one document a file; the text of scanned pages is recognised where the settings ask
for it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.office import recognition
from fullft_assets.documents.formats.parsing import parsing, whole_characters
from fullft_assets.documents.formats.protocol import FILE_SECONDS, STEP_SECONDS, Format, Reading
from fullft_assets.documents.formats.rows import PAGES_WITHOUT_TEXT
from fullft_assets.settings import DocumentsSettings

NO_TEXT_LAYER = "no text layer (scanned pages?); recognise the text (OCR) and deliver again"
MAX_PAGES = 20_000
#: Bytes at the end that must contain the end mark, as Acrobat requires.
_TAIL_BYTES = 1024


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield the document that a PDF is, its pages separated by a blank line.

    Raises:
        Unreadable: it is damaged or encrypted.
    """
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    with parsing("PDF"):
        pages = [page.strip() for page in _pages(file.path, reading.advance)]
    num_without_text = pages.count("")
    if num_without_text and reading.documents.pdf.recognises:
        with parsing("PDF"):
            pages = recognition.recognised(
                file.path, pages, reading.shared(recognition.engine), reading.advance
            )
    # A font's table may map a glyph to half of a surrogate pair, which is no character.
    text = re.sub(r"\n{3,}", "\n\n", whole_characters("\n\n".join(pages))).strip()
    if not text:
        yield 1, NO_TEXT_LAYER
    elif num_without_text and reading.documents.pdf.pages_without_text == "quarantine":
        yield (
            1,
            (
                f"{num_without_text:,} of {len(pages):,} pages have no text (scanned?); recognise the text"
                " (OCR) and deliver again"
            ),
        )
    else:
        yield 1, {**file.document(text), PAGES_WITHOUT_TEXT: num_without_text}


def _seconds(settings: DocumentsSettings) -> tuple[float, float]:
    # A scanned page takes 5 s and more of a CPU, and a file has hundreds.
    return (6 * STEP_SECONDS, 6 * FILE_SECONDS) if settings.pdf.recognises else (STEP_SECONDS, FILE_SECONDS)


def _pages(path: Path, advance: Callable[[], None]) -> list[str]:
    """Return the text of each page."""
    import pypdf
    from pypdf.generic import DictionaryObject

    # Half of a damaged stream is half of a page; better none of it.
    pypdf.overwrite_configuration(zlib_maximum_recovery_input_length=0)
    with path.open("rb") as file:
        head = file.read(_TAIL_BYTES)
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        if b"%PDF-" not in head:
            raise Unreadable("not a PDF")
        if b"%%EOF" not in file.read():
            raise Unreadable("not a complete PDF (cut off: no end mark)")
        file.seek(0)
        reader = pypdf.PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("encrypted; deliver it without a password")
        num_pages = len(reader.pages)
        pages_object = reader.root_object["/Pages"].get_object()
        if not isinstance(pages_object, DictionaryObject) or pages_object.get("/Count") != num_pages:
            raise Unreadable("not a complete PDF (pages are missing)")
        if num_pages > MAX_PAGES:
            raise Unreadable(f"has more than {MAX_PAGES:,} pages")
        pages = []
        for page in reader.pages:
            advance()
            pages.append(page.extract_text())
    return pages


FORMAT = Format(records, endings=(".pdf",), is_whole_file=True, is_slow=True, seconds=_seconds)
