"""XML: the text of a document's content, each block on lines of its own; known by their root: JATS, PubMed,
Akoma Ntoso and TEI.

A file is one document, or has one record for each element that `documents.records` names. A field of the
settings is a path below that element (`front//article-id`, `@id`; namespaces do not matter). Entities of a
DTD are not expanded: one in the text is an error.
"""

from __future__ import annotations

import html.entities
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.parsing import parsing
from fullft_assets.documents.formats.protocol import Format, Reading


class _Dialect(NamedTuple):
    """Paths of the parts of a document, relative to its record; the text is read in this order."""

    text: tuple[str, ...]
    title: str | None = None
    id: str | None = None


_JATS = _Dialect(
    ("front/article-meta/title-group", "front/article-meta/abstract", "body"),
    "front/article-meta/title-group/article-title",
)
#: By the local name of the record's element.
_DIALECTS = {
    "article": _JATS,
    "PubmedArticle": _Dialect(
        ("MedlineCitation/Article/ArticleTitle", "MedlineCitation/Article/Abstract"),
        "MedlineCitation/Article/ArticleTitle",
        "MedlineCitation/PMID",
    ),
    "akomaNtoso": _Dialect(
        tuple(
            f"*/{part}"
            for part in (
                "coverPage",
                "preface",
                "preamble",
                "body",
                "mainBody",
                "judgmentBody",
                "debateBody",
                "conclusions",
            )
        )
    ),
    "TEI": _Dialect(("text",), "teiHeader/fileDesc/titleStmt/title"),
}
#: Elements that hold many documents, by the local name of their root.
_RECORDS = {"PubmedArticleSet": "PubmedArticle", "teiCorpus": "TEI", "pmc-articleset": "article"}
_DROPPED = {"meta", "teiHeader", "tex-math", "annotation", "style", "script"}
#: Elements that never begin a line, though nothing but elements may be around them.
# fmt: off
_INLINE = {
    "italic", "bold", "sup", "sub", "sc", "underline", "monospace", "xref", "ext-link", "named-content",
    "styled-content", "email", "uri",
    "b", "i", "u", "em", "strong", "span", "a", "hi", "ref", "emph", "w", "c", "pc", "persName", "placeName",
    "name", "surname", "given-names",
    "date", "term", "def", "num", "mref", "rref", "pb", "lb", "fn", "mi", "mo", "mn", "mrow", "msub", "msup",
    "inline-formula",
}
# fmt: on
_CELLS = {"td", "th", "cell"}
_LINE_ENDS = {"lb", "break", "br", "eol"}
_SPACE = re.compile(r"[ \t\r\n]+")
_ATTRIBUTE = re.compile(r"(?:^|/)@([^/@\[\]]+)$")
#: Marks of an end of a line and of a cell: characters that XML cannot contain.
_BLOCK, _CELL = "\0", "\1"
_CELL_EDGE = re.compile(r" ?\x01 ?")


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number, record or problem) of each document.

    Raises:
        Unreadable: it is not well-formed, or the element of a record does not occur.
    """
    from lxml import etree

    chosen = reading.documents.records
    number = 0
    with parsing("XML file"), file.binary() as data:
        try:
            parser = etree.iterparse(
                data,
                events=("start", "end"),
                resolve_entities=False,
                no_network=True,
                load_dtd=False,
                remove_pis=True,
            )
            name = None
            depth = 0
            inside = 0
            for event, element in parser:
                local = etree.QName(element).localname
                if event == "start":
                    if depth == 0:
                        name = chosen or _RECORDS.get(local, local)
                    inside += local == name
                    depth += 1
                    continue
                depth -= 1
                inside -= local == name
                if local == name and not inside:
                    number += 1
                    yield number, _record(file, element, reading)
                    _forget(element)
        except etree.XMLSyntaxError as error:
            raise Unreadable(
                f"not XML: broken on line {error.lineno or 1}; the file may be cut off"
            ) from error
        if not number:
            raise Unreadable(f"no element `{name}`; see documents.records")


def _forget(element: Any) -> None:
    """Free an element that was read: the file may be larger than the memory."""
    element.clear(keep_tail=True)
    while element.getprevious() is not None and element.getparent() is not None:
        del element.getparent()[0]


def _record(file: Delivered, element: Any, reading: Reading) -> Record:
    from lxml import etree

    dialect = _DIALECTS.get(etree.QName(element).localname)
    fields: dict[str, Any] = {}
    try:
        parts = [part for path in dialect.text for part in _elements(element, path)] if dialect else [element]
        text = "\n\n".join(filter(None, (text_of(part) for part in parts or [element])))
        fields = {"title": dialect.title, "id": dialect.id} if dialect else {}
        fields = {name: _value(element, path) for name, path in fields.items() if path is not None}
        for field in reading.wanted.fields - {"text"}:
            if (value := _value(element, field)) is not None:
                fields[field] = value
    except _Undeclared:
        return "an entity is defined outside of the file or in its DTD, which is not read"
    return {**file.document(text), **fields}


class _Undeclared(Exception):
    """An entity that is not known without a DTD."""


def _value(element: Any, path: str) -> str | None:
    """Return the text (or the attribute) that a path names, several separated by blank lines; None where
    there is none.
    """
    attribute = _ATTRIBUTE.search(path)
    if attribute is not None:
        path = path[: attribute.start()]
    elements = _elements(element, path) if path else [element]
    texts = [text_of(each) if attribute is None else each.get(attribute[1]) for each in elements]
    return "\n\n".join(text for text in texts if text) or None


def _elements(element: Any, path: str) -> list[Any]:
    """Return the elements that a path names, in any namespace."""
    steps = [
        step if step in ("", ".", "..", "*") or step.startswith(("{", "*")) else f"{{*}}{step}"
        for step in path.split("/")
    ]
    try:
        return element.findall("/".join(steps))
    except (SyntaxError, KeyError, ValueError):
        return []  # a name of another format's field may be no path


def text_of(element: Any) -> str:
    """Return an element's text: spaces collapsed, blocks and rows of tables on lines of their own, cells
    separated by tabs.
    """
    pieces: list[str] = []
    _add(element, pieces, "")
    lines = (_SPACE.sub(" ", line) for line in "".join(pieces).split(_BLOCK))
    return "\n".join(line for line in (_CELL_EDGE.sub("\t", line).strip() for line in lines) if line)


def _add(element: Any, pieces: list[str], cell: str) -> None:
    """Add an element's text, with marks where a line or a cell ends. `cell` is a space inside of a cell,
    where no line ends.
    """
    from lxml import etree

    children = list(element)
    # Where text and elements are mixed, the elements are part of a line; else each is a block.
    is_mixed = any(
        text and not text.isspace() for text in (element.text, *(child.tail for child in children))
    )
    if etree.QName(element).localname == "alternatives":
        children = children[:1]
    pieces.append(element.text or "")
    for child in children:
        if child.tag is etree.Entity:
            pieces.append(_character(child.name))
        elif isinstance(child.tag, str) and (name := etree.QName(child).localname) not in _DROPPED:
            edge = "" if is_mixed or name in _INLINE else cell or _BLOCK
            before, after = ("", _CELL) if name in _CELLS else (edge, edge)
            pieces.append(before)
            _add(child, pieces, " " if name in _CELLS else cell)
            pieces.append((cell or _BLOCK) if name in _LINE_ENDS else after)
        pieces.append(child.tail or "")


def _character(name: str) -> str:
    try:
        return html.entities.html5[f"{name};"]
    except KeyError:
        raise _Undeclared from None


FORMAT = Format(records, endings=(".xml", ".nxml", ".akn"), may_be_compressed=True)
