"""DOCX: the text as a reader sees it with all changes accepted: headers, body with tables and notes in their
order, footers.

Deleted text, the old place of moved text, comments and the codes of fields are excluded. Word computes the
numbers of lists, so the file does not contain them. (ECMA-376, part 1, WordprocessingML)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.parsing import archive_of, check_members, parsing
from fullft_assets.documents.formats.protocol import Format, Reading

if TYPE_CHECKING:
    from docx.document import Document

MAX_BYTES = 64 * 2**20
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


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield the document that a DOCX is.

    Raises:
        Unreadable: it is damaged, encrypted, or no DOCX.
    """
    import docx

    with archive_of(file.path, "DOCX") as archive:
        check_members(archive)
    with parsing("DOCX"):
        with file.path.open("rb") as data:
            document = docx.Document(data)
        text = _text_of(document)
    yield 1, file.document(text)


def _text_of(document: Document) -> str:
    headers, footers = _furniture(document)
    body = _Body(_notes(document)).lines(document.element.body)
    parts = ("\n".join(lines).strip("\n") for lines in (headers, body, footers))
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(part for part in parts if part))


def _furniture(document: Document) -> tuple[list[str], list[str]]:
    """Return the lines of all headers and of all footers, each text once."""
    headers_and_footers: tuple[list[str], list[str]] = ([], [])
    for section in document.sections:
        for lines, kinds in zip(
            headers_and_footers,
            (("first_page_header", "header"), ("first_page_footer", "footer")),
            strict=True,
        ):
            for kind in kinds if section.different_first_page_header_footer else kinds[1:]:
                part = getattr(section, kind)
                text = "" if part.is_linked_to_previous else "\n".join(_Body({}).lines(part._element)).strip()
                if text and text not in lines:
                    lines.append(text)
    return headers_and_footers


def _notes(document: Document) -> dict[tuple[str, str], Any]:
    """Return the elements of foot- and endnotes by kind and id."""
    from lxml import etree

    elements = {}
    for related in document.part.rels.values():
        kind = related.reltype.rpartition("/")[2]
        if kind in _NOTES.values() and not related.is_external:
            root = etree.fromstring(
                related.target_part.blob, etree.XMLParser(resolve_entities=False, no_network=True)
            )
            elements |= {(kind, note.get(f"{_W}id")): note for note in root}
    return elements


class _Body:
    """Reads blocks; a note follows the paragraph that refers to it."""

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
        """Yield a line a row, its cells separated by tabs; a row whose deletion is tracked is excluded."""
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
        """Add the text of a paragraph's content, and what is read after it: text boxes and notes."""
        for child in _kept(parent):
            if child.tag in _TEXTS:
                pieces.append(child.text or "")
            elif child.tag in _MARKS:
                pieces.append(_MARKS[child.tag])
            elif child.tag == f"{_W}txbxContent":
                later.append(child)
            elif child.tag in _NOTES:
                later.append(self._note(_NOTES[child.tag], child.get(f"{_W}id")))
            else:
                self._add(child, pieces, later)

    def _note(self, kind: str, name: str) -> Any:
        if (kind, name) not in self._notes:
            raise Unreadable("not a complete DOCX (a note is missing)")
        return self._notes[kind, name]


def _kept(parent: Any) -> Iterable[Any]:
    return (child for child in parent if isinstance(child.tag, str) and child.tag not in _DROPPED)


FORMAT = Format(records, endings=(".docx",), is_whole_file=True, max_bytes=MAX_BYTES, is_slow=True)
