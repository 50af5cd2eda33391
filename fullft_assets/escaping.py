"""What delivered names (labels above all) look like outside of the store.

Nothing in them acts on a terminal, a log, a browser or a spreadsheet.

An image in a label would be fetched by the browser of whoever opens the page; a right-to-left mark turns
around what follows it.
"""

import re
import unicodedata
from typing import Any

#: Control and format characters, halves of pairs, and ends of lines and paragraphs.
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
#: What begins code, a link, an image, a tag or a table's cell in Markdown or HTML.
_MARKUP = re.compile(r"[\\`\[\]!|<]")
#: A column of every table that is exported, and of no delivery that people make themselves.
EXPORT_COLUMN = "fullft_window"
#: What makes a spreadsheet take a cell for a formula (OWASP, CSV injection), perhaps behind apostrophes.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def visible(text: str) -> str:
    """Return a text with each character that is not seen (control, right-to-left mark, end of a line) as
    `\\uXXXX`.
    """
    return (
        text
        if text.isascii() and text.isprintable()
        else "".join(_code(c) if unicodedata.category(c) in _INVISIBLE else c for c in text)
    )


def quoted(text: str) -> str:
    """Return a name between backticks for a sentence that may be shown as plain text, as Markdown or
    as HTML.
    """
    escaped = (_code(c) if _MARKUP.match(c) or unicodedata.category(c) in _INVISIBLE else c for c in text)
    return f"`{''.join(escaped)}`"


def to_cell(value: Any) -> Any:
    """Return a value for a CSV file: before a text that a spreadsheet would take for a formula is an
    apostrophe.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def from_cells(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of an exported table with the texts that `to_cell` was given; a row of any other table
    as it is, since a text may begin with an apostrophe of its own.
    """
    return (
        {
            name: cell[1:] if cell and cell[0] == "'" and _FORMULA.match(cell) else cell
            for name, cell in row.items()
        }
        if EXPORT_COLUMN in row
        else row
    )


def _code(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
