"""Plain text and Markdown, HTML and XML: one document a file, with the fields `text`, `file` and `folder`.

Of XML, `documents.records` names the element of a record (default: the whole file). A field of the settings
is a path below that element (`front//article-id`, `@id`; namespaces do not matter); `text` is all of the
element's text. Entities of a DTD are not expanded: one in the text is an error.
"""

import codecs
import html.entities
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fullft_assets.documents.formats.delivered import MAX_TEXT_BYTES, Delivered, Record, Unreadable, parsing
from fullft_assets.documents.formats.registered import Format, Reading

if TYPE_CHECKING:
    from bs4 import BeautifulSoup


def _text_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    yield 1, file.document(file.whole_text(MAX_TEXT_BYTES))


TEXT = Format(
    _text_records,
    endings=(".txt", ".md", ".markdown"),
    is_whole_file=True,
    is_text=True,
    may_be_compressed=True,
    is_streamed=True,
    max_bytes=MAX_TEXT_BYTES,
)


MAX_HTML_BYTES = 32 * 2**20
#: Line ends before and after an element's text.
# fmt: off
_BREAKS = dict.fromkeys((
    "address", "article", "aside", "body", "caption", "dd", "div", "dl", "dt", "fieldset", "figcaption",
    "figure", "footer", "form", "head",
    "header", "hr", "html", "legend", "li", "main", "nav", "ol", "option", "section", "summary", "tbody",
    "tfoot", "thead", "title", "tr", "ul",
), 1) | dict.fromkeys(("blockquote", "details", "h1", "h2", "h3", "h4", "h5", "h6", "p", "pre", "table"), 2)
# fmt: on
_PREFORMATTED = {"pre", "textarea"}
_CHARSET = re.compile(
    rb"<meta[^>]{0,200}?charset\s{0,9}=\s{0,9}[\"']?\s{0,9}([a-zA-Z0-9_:.-]{1,40})", re.IGNORECASE
)
#: What browsers take these names for (WHATWG Encoding Standard).
_MEANT = {
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}


def _html_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    yield 1, file.document(html_text(file.whole_text(MAX_HTML_BYTES)))


def declared_encoding(head: bytes) -> str | None:
    """Return the encoding that a page's first bytes declare, or None where there is none or it is unknown."""
    if (declaration := _CHARSET.search(head)) is None:
        return None
    try:
        name = codecs.lookup(declaration[1].decode("ascii")).name
    except LookupError:
        return None
    return _MEANT.get(name, name)


def html_text(page: str) -> str:
    """Return a page's text: scripts, styles and comments dropped, spaces collapsed outside of `pre`.

    Raises:
        Unreadable: no HTML parser makes sense of it.
    """
    pieces: list[str] = []
    breaks = 0
    for piece in _pieces(page):
        if isinstance(piece, int):
            breaks = breaks + 1 if piece == 0 else max(breaks, piece)
            continue
        text, is_preformatted = piece
        if not is_preformatted:
            text = re.sub(r"[ \t\r\n\f]+", " ", text)
            if breaks or not pieces or pieces[-1].endswith((" ", "\n")):
                text = text.removeprefix(" ")
        if not text:
            continue
        if breaks and pieces:
            pieces[-1] = pieces[-1].rstrip(" ")
            pieces.append("\n" * min(breaks, 2))
        pieces.append(text)
        breaks = 0
    return "".join(pieces).strip()


def _pieces(page: str) -> Iterator[int | tuple[str, bool]]:
    """Yield a page's texts as (text, whether preformatted), line ends as their least number; 0 is one line
    end more.
    """
    from bs4 import Tag
    from bs4.element import CData, NavigableString

    # With a stack of its own: pages may nest deeper than Python's.
    stack: list[tuple[str, Iterator]] = [("", iter(_parse(page).contents))]
    num_preformatted = 0
    while stack:
        name, children = stack[-1]
        if (node := next(children, None)) is None:
            stack.pop()
            num_preformatted -= name in _PREFORMATTED
        elif type(node) in (NavigableString, CData):
            yield str(node), num_preformatted > 0
            continue
        elif not isinstance(node, Tag) or (name := node.name.lower()) in {"script", "style", "template"}:
            continue
        else:
            stack.append((name, iter(node.contents)))
            num_preformatted += name in _PREFORMATTED
            if name == "br":
                yield 0
        if name in _BREAKS:
            yield _BREAKS[name]
        elif name in {"td", "th"}:
            yield " ", False


def _parse(page: str) -> "BeautifulSoup":
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a page that looks like a file name or like XML is still a page
            return BeautifulSoup(page, "lxml")
    except (ParserRejectedMarkup, RecursionError) as error:
        raise Unreadable(f"not HTML ({type(error).__name__})") from error


HTML = Format(
    _html_records,
    endings=(".html", ".htm"),
    is_whole_file=True,
    is_text=True,
    may_be_compressed=True,
    max_bytes=MAX_HTML_BYTES,
    is_slow=True,
    declared_encoding=declared_encoding,
)


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
#: Marks of an end of a line and of a cell: characters that XML cannot contain.
_BLOCK = "\0"


def _xml_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number, record or problem) of each document.

    Raises:
        Unreadable: it is not well-formed, or the element of a record does not occur.
    """
    from lxml import etree

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
            name = reading.documents.records
            inside = 0
            for event, element in parser:
                local = etree.QName(element).localname
                if event == "start":
                    name = name or local
                    inside += local == name
                    continue
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
    element.clear(keep_tail=True)
    while element.getprevious() is not None and element.getparent() is not None:
        del element.getparent()[0]


def _record(file: Delivered, element: Any, reading: Reading) -> Record:
    try:
        return file.document(_xml_text(element)) | {
            field: value
            for field in reading.row_settings.fields - {"text"}
            if (value := _value(element, field)) is not None
        }
    except KeyError:
        return "an entity is defined outside of the file or in its DTD, which is not read"


def _value(element: Any, path: str) -> str | None:
    if (attribute := re.search(r"(?:^|/)@([^/@\[\]]+)$", path)) is not None:
        path = path[: attribute.start()]
    elements = _elements(element, path) if path else [element]
    texts = [_xml_text(node) if attribute is None else node.get(attribute[1]) for node in elements]
    return "\n\n".join(text for text in texts if text) or None


def _elements(element: Any, path: str) -> list[Any]:
    steps = [
        step if step in ("", ".", "..", "*") or step.startswith(("{", "*")) else f"{{*}}{step}"
        for step in path.split("/")
    ]
    try:
        return element.findall("/".join(steps))
    except (SyntaxError, KeyError, ValueError):
        return []  # a name of another format's field may be no path


def _xml_text(element: Any) -> str:
    pieces: list[str] = []
    _add(element, pieces, "")
    lines = (re.sub(r"[ \t\r\n]+", " ", line) for line in "".join(pieces).split(_BLOCK))
    return "\n".join(line for line in (re.sub(r" ?\x01 ?", "\t", line).strip() for line in lines) if line)


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
    pieces.append(element.text or "")
    for child in children:
        if child.tag is etree.Entity:
            pieces.append(html.entities.html5[f"{child.name};"])
        elif isinstance(child.tag, str) and (name := etree.QName(child).localname) not in _DROPPED:
            edge = "" if is_mixed or name in _INLINE else cell or _BLOCK
            before, after = ("", "\1") if name in _CELLS else (edge, edge)
            pieces.append(before)
            _add(child, pieces, " " if name in _CELLS else cell)
            pieces.append((cell or _BLOCK) if name in {"lb", "break", "br", "eol"} else after)
        pieces.append(child.tail or "")


XML = Format(_xml_records, endings=(".xml", ".nxml", ".akn"), may_be_compressed=True)
