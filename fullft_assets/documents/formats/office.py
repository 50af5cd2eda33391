"""DOCX, RTF, PDF, and what the package kreuzberg reads: one document a file.

DOCX: the body with tables and notes in their order, with all changes accepted. Headers and footers, deleted
text, the old place of moved text, comments and the codes of fields are excluded. Word computes the numbers of
lists, so the file does not contain them. (ECMA-376, part 1, WordprocessingML)

PDF: the text layer.

Kreuzberg: presentations, OpenDocument, EPUB, messages of Outlook, old files of Office. It has no ending of
its own: `documents.format: kreuzberg` has every file read by it.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.documents.formats.delivered import (
    Delivered,
    Record,
    Unreadable,
    archive_of,
    parsing,
    whole_characters,
)
from fullft_assets.documents.formats.registered import Format, Reading
from fullft_assets.documents.formats.rows import PAGES_WITHOUT_TEXT

if TYPE_CHECKING:
    from docx.document import Document

MAX_DOCX_BYTES = 64 * 2**20
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
#: The variant for an older program, beside the same content.
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_DROPPED = {
    _FALLBACK,
    *(
        _W + name
        for name in (
            "del",
            "moveFrom",
            "instrText",
            "delText",
            "delInstrText",
            "pPr",
            "rPr",
            "tblPr",
            "sectPr",
        )
    ),
}
_TEXTS = {f"{_W}t", f"{_M}t"}
_MARKS = {f"{_W}tab": "\t", f"{_W}ptab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}
_NOTES = {f"{_W}footnoteReference": "footnotes", f"{_W}endnoteReference": "endnotes"}


def _docx_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    import docx

    with archive_of(file.path, "DOCX"), file.path.open("rb") as data:
        document = docx.Document(data)
        text = "\n".join(_Body(_notes(document)).lines(document.element.body))
    yield 1, file.document(_without_gaps(text))


def _without_gaps(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", whole_characters(text)).strip()


def _notes(document: "Document") -> dict[tuple[str, str], Any]:
    from lxml import etree

    elements = {}
    for related in document.part.rels.values():
        if (kind := related.reltype.rpartition("/")[2]) in _NOTES.values() and not related.is_external:
            root = etree.fromstring(
                related.target_part.blob, etree.XMLParser(resolve_entities=False, no_network=True)
            )
            elements |= {(kind, note.get(f"{_W}id")): note for note in root}
    return elements


class _Body:
    def __init__(self, notes: dict[tuple[str, str], Any]):
        self._notes = notes

    def lines(self, parent: Any) -> Iterator[str]:
        """Yield the lines of the paragraphs and tables below an element."""
        for child in _kept(parent):
            if child.tag == f"{_W}p":
                yield from self._paragraph(child)
            elif child.tag == f"{_W}tbl":
                yield from self._rows(child)
            else:
                yield from self.lines(child)

    def _rows(self, table: Any) -> Iterator[str]:
        for row in table.iter(f"{_W}tr"):
            if next(row.iterancestors(f"{_W}tbl")) is table and row.find(f"{_W}trPr/{_W}del") is None:
                cells = [cell for cell in row.iter(f"{_W}tc") if next(cell.iterancestors(f"{_W}tr")) is row]
                yield "\t".join(
                    " ".join(line.strip() for line in self.lines(cell) if line.strip()) for cell in cells
                )

    def _paragraph(self, paragraph: Any) -> Iterator[str]:
        pieces: list[str] = []
        later: list[Any] = []
        self._add(paragraph, pieces, later)
        yield "".join(pieces)
        for element in later:
            yield from self.lines(element)

    def _add(self, parent: Any, pieces: list[str], later: list[Any]) -> None:
        for child in _kept(parent):
            if child.tag in _TEXTS:
                pieces.append(child.text or "")
            elif child.tag in _MARKS:
                pieces.append(_MARKS[child.tag])
            elif child.tag == f"{_W}txbxContent":
                later.append(child)
            elif child.tag in _NOTES:
                later.append(self._notes[_NOTES[child.tag], child.get(f"{_W}id")])
            else:
                self._add(child, pieces, later)


def _kept(parent: Any) -> Iterable[Any]:
    return (child for child in parent if isinstance(child.tag, str) and child.tag not in _DROPPED)


DOCX = Format(_docx_records, endings=(".docx",), is_whole_file=True, max_bytes=MAX_DOCX_BYTES, is_slow=True)


MAX_RTF_BYTES = 32 * 2**20
RTF_MAGIC = "{\\rtf"


def _rtf_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    with file.text(newline="") as text:
        yield 1, file.document(rtf_text(text.read()))


def rtf_text(source: str) -> str:
    """Return the text of an RTF document.

    Raises:
        Unreadable: it is damaged or cut off.
    """
    from striprtf.striprtf import rtf_to_text

    if not (source := source.lstrip()).startswith(RTF_MAGIC):
        raise Unreadable("not RTF")
    if not re.search(r"\\bin\d", source) and not _is_closed(source):
        raise Unreadable("not a complete RTF file (cut off: a group is not closed)")
    with parsing("RTF file"):
        text = rtf_to_text(source)
    return _without_gaps(text)


def _is_closed(source: str) -> bool:
    depth = 0
    for brace in re.finditer(r"\\[\\{}]|[{}]", source):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return True
    return False


RTF = Format(
    _rtf_records, endings=(".rtf",), is_whole_file=True, is_text=True, max_bytes=MAX_RTF_BYTES, is_slow=True
)


MAX_KREUZBERG_BYTES = 128 * 2**20


def _kreuzberg_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    from kreuzberg import ExtractionConfig, extract_file_sync

    with parsing("document"):
        # Its cache would keep texts outside of the store.
        text = extract_file_sync(
            str(file.path), config=ExtractionConfig(use_cache=False, enable_quality_processing=False)
        ).content
    yield 1, file.document(whole_characters(text).strip())


KREUZBERG = Format(_kreuzberg_records, is_whole_file=True, max_bytes=MAX_KREUZBERG_BYTES, is_slow=True)


_RECOGNISE = "recognise the text, such as with ocrmypdf, and deliver again"
MAX_PAGES = 20_000
#: Bytes at the end that must contain the end mark, as Acrobat requires.
_TAIL_BYTES = 1024


def _pdf_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    with parsing("PDF"):
        pages = [page.strip() for page in _pages(file.path, reading.advance)]
    num_without_text = pages.count("")
    # A font's table may map a glyph to half of a surrogate pair, which is no character.
    if not (text := _without_gaps("\n\n".join(pages))):
        yield 1, f"no text layer (scanned pages?); {_RECOGNISE}"
    elif num_without_text and reading.documents.pdf.pages_without_text == "quarantine":
        yield 1, f"{num_without_text:,} of {len(pages):,} pages have no text (scanned?); {_RECOGNISE}"
    else:
        yield 1, {**file.document(text), PAGES_WITHOUT_TEXT: num_without_text}


def _pages(path: Path, advance: Callable[[], None]) -> list[str]:
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
        if (reader := pypdf.PdfReader(file)).is_encrypted and not reader.decrypt(""):
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


PDF = Format(_pdf_records, endings=(".pdf",), is_whole_file=True, is_slow=True)
