"""HTML -> the text that a reader sees, its blocks on lines of their own."""

from __future__ import annotations

import codecs
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.protocol import Format, Reading

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

MAX_BYTES = 32 * 2**20
_DROPPED = {"script", "style", "template"}
#: Line ends before and after an element's text.
# fmt: off
_BREAKS = dict.fromkeys((
    "address", "article", "aside", "body", "caption", "dd", "div", "dl", "dt", "fieldset", "figcaption",
    "figure", "footer", "form", "head",
    "header", "hr", "html", "legend", "li", "main", "nav", "ol", "option", "section", "summary", "tbody",
    "tfoot", "thead", "title", "tr", "ul",
), 1) | dict.fromkeys(("blockquote", "details", "h1", "h2", "h3", "h4", "h5", "h6", "p", "pre", "table"), 2)
# fmt: on
_CELLS = {"td", "th"}
_PREFORMATTED = {"pre", "textarea"}
_SPACE = re.compile(r"[ \t\r\n\f]+")
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


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield the document that a page is."""
    yield 1, file.document(text_of(file.whole_text(MAX_BYTES)))


def declared_encoding(head: bytes) -> str | None:
    """Return the encoding that a page's first bytes declare, or None where there is none or it is unknown."""
    declaration = _CHARSET.search(head)
    if declaration is None:
        return None
    try:
        name = codecs.lookup(declaration[1].decode("ascii")).name
    except LookupError:
        return None
    return _MEANT.get(name, name)


def text_of(page: str) -> str:
    """Return a page's text: scripts, styles and comments dropped, spaces collapsed outside of `pre`.

    Raises:
        Unreadable: no HTML parser makes sense of it.
    """
    pieces: list[str] = []
    breaks, in_space = 0, True
    for piece in _pieces(page):
        if isinstance(piece, int):
            breaks = breaks + 1 if piece == 0 else max(breaks, piece)
            continue
        text, is_preformatted = piece
        if not is_preformatted:
            text = _SPACE.sub(" ", text)
            if (breaks or in_space) and text.startswith(" "):
                text = text[1:]
        if not text:
            continue
        if breaks and pieces:
            pieces[-1] = pieces[-1].rstrip(" ")
            pieces.append("\n" * min(breaks, 2))
        pieces.append(text)
        breaks, in_space = 0, text.endswith((" ", "\n"))
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
        node = next(children, None)
        if node is None:
            stack.pop()
            num_preformatted -= name in _PREFORMATTED
        elif type(node) in (NavigableString, CData):
            yield str(node), num_preformatted > 0
            continue
        elif not isinstance(node, Tag) or (name := node.name.lower()) in _DROPPED:
            continue
        else:
            stack.append((name, iter(node.contents)))
            num_preformatted += name in _PREFORMATTED
            if name == "br":
                yield 0
        if name in _BREAKS:
            yield _BREAKS[name]
        elif name in _CELLS:
            yield " ", False


def _parse(page: str) -> BeautifulSoup:
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a page that looks like a file name or like XML is still a page
            return BeautifulSoup(page, "lxml")
    except (ParserRejectedMarkup, RecursionError) as error:
        raise Unreadable(f"not HTML ({type(error).__name__})") from error


FORMAT = Format(
    records,
    endings=(".html", ".htm"),
    is_whole_file=True,
    is_text=True,
    may_be_compressed=True,
    max_bytes=MAX_BYTES,
    is_slow=True,
    declared_encoding=declared_encoding,
)
