"""CSV: a header, then one record a row; fields in quotes may contain line ends.

Fields are separated by commas or, as spreadsheets write them in other countries, by semicolons or tabs, or by bars: the delimiter is found
in the header, in a line `sep=;` before it, or by the ending .tsv.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.endings import ending_of
from fullft_assets.documents.formats.protocol import Format, Reading

csv.field_size_limit(2**31 - 1)
#: A line that Excel reads as the delimiter, not as a row.
_SEPARATOR = re.compile(r"\ufeff?\"?sep=(.)\"?\s*", re.IGNORECASE)


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number of the line that the row starts on, record or problem) of each row.

    Raises:
        Unreadable: the quoting is broken, or two columns have the same name.
    """
    with file.text(newline="") as text:
        lines, delimiter = _lines_and_delimiter(text, file.name)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] = []
        line = 1
        try:
            for fields in reader:
                # A record is named by the line that it starts on, where a person looks for it.
                line, start = reader.line_num + 1, line
                if not fields:
                    continue
                if not header:
                    header = fields
                    named = [name for name in header if name]  # columns without a name are a spreadsheet's margin
                    if len(set(named)) != len(named):
                        raise Unreadable("two columns have the same name")
                elif len(fields) != len(header):
                    yield start, f"has {'more' if len(fields) > len(header) else 'fewer'} fields than the header"
                else:
                    yield start, dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise Unreadable(f"not CSV: {error}, in the row that starts on line {line}") from error


def _lines_and_delimiter(lines: Iterable[str], name: str) -> tuple[Iterator[str], str]:
    """Return a file's lines and their delimiter: comma, else semicolon, tab or bar, whichever the header has first."""
    remaining, seen = iter(lines), []
    named: str | None = "\t" if ending_of(name) == ".tsv" else None
    for line in remaining:
        if not any(map(str.strip, seen)) and (match := _SEPARATOR.fullmatch(line)) is not None:
            # A blank line in its place is skipped, and the lines after it keep their numbers.
            named, line = match[1], "\n"
        seen.append(line)
        if not line.isspace():
            break
    header = seen[-1] if seen else ""
    delimiter = named or next((mark for mark in ",;\t|" if mark in header), ",")
    return chain(seen, remaining), delimiter


FORMAT = Format(records, endings=(".csv", ".tsv"), is_text=True, may_be_compressed=True)
