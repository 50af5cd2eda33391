"""CSV: a header, then one record a row; fields in quotes may contain line ends.

The delimiter is `documents.csv.delimiter`, the one in a line `sep=;` before the header, or a tab by the ending .tsv; else the one of comma,
semicolon, tab and bar that is in the header outside of quotes and gives the first rows as many fields as the header.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.endings import ending_of
from fullft_assets.documents.formats.protocol import Format, Reading
from fullft_assets.documents.formats.tables import Numbered, below_header
from fullft_assets.settings.documents import CsvSettings

csv.field_size_limit(2**31 - 1)
#: A line that Excel reads as the delimiter, not as a row.
_SEPARATOR = re.compile(r"\ufeff?\"?sep=(.)\"?\s*", re.IGNORECASE)
_DELIMITERS = ",;\t|"
_IN_QUOTES = re.compile(r'"(?:[^"]|"")*"')
#: Lines after the header that its delimiter is tried on.
_TRIED_LINES = 50
#: Number of lines inside one field, each with as many delimiters as a row, from which on the field's quote counts as not closed.
#: A comma is in prose as well, so that more lines are needed where a row has only one.
_ROWS_IN_FIELD = 2
_ROWS_OF_ONE_COMMA = 8


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number of the line that the row starts on, record or problem) of each row.

    Raises:
        Unreadable: the quoting is broken, or the header is unusable.
    """
    chosen = reading.documents.csv
    with file.text(newline="") as text:
        lines, delimiter = _lines_and_delimiter(text, file.name, chosen)
        header, rows = below_header(_rows(lines, delimiter, chosen), chosen.header)
        for number, fields in rows:
            if len(fields) != len(header):
                yield number, f"has {'more' if len(fields) > len(header) else 'fewer'} fields than the header"
            else:
                yield number, dict(zip(header, fields, strict=True))


def _rows(lines: Iterator[str], delimiter: str, chosen: CsvSettings) -> Iterator[Numbered]:
    """Yield (number of the line that it starts on, fields) of each row that is not a blank line."""
    quoting = csv.QUOTE_NONE if chosen.quoting == "none" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    line, num_columns = 1, 0
    try:
        for fields in reader:
            # A record is named by the line that it starts on, where a person looks for it.
            line, start = reader.line_num + 1, line
            num_columns = num_columns or len(fields)
            if line - start > _ROWS_IN_FIELD and any(_has_rows(field, delimiter, num_columns) for field in fields):
                raise Unreadable(
                    f"a quoted field that begins in the row of line {start} has whole rows in it, to line {line - 1}: close the quote there, "
                    "or set documents.csv.quoting to none"
                )
            if fields:
                yield start, fields
    except csv.Error as error:
        raise Unreadable(f"not CSV: {error}, in the row that starts on line {line}") from error


def _has_rows(field: str, delimiter: str, num_columns: int) -> bool:
    """Return whether the whole lines inside of a field all look like rows."""
    inner = [line for line in field.splitlines()[1:-1] if line.strip()]
    least = _ROWS_OF_ONE_COMMA if num_columns == 2 and delimiter == "," else _ROWS_IN_FIELD
    return num_columns > 1 and len(inner) >= least and all(line.count(delimiter) == num_columns - 1 for line in inner)


def _lines_and_delimiter(lines: Iterable[str], name: str, chosen: CsvSettings) -> tuple[Iterator[str], str]:
    """Return a file's lines and their delimiter."""
    remaining, seen = iter(lines), []
    named = chosen.delimiter or ("\t" if ending_of(name) == ".tsv" else None)
    first = chosen.header if isinstance(chosen.header, int) else 1
    for number, line in enumerate(remaining, start=1):
        if not any(map(str.strip, seen)) and (match := _SEPARATOR.fullmatch(line)) is not None:
            # A blank line in its place is skipped, and the lines after it keep their numbers.
            named, line = chosen.delimiter or match[1], "\n"
        seen.append(line)
        if number >= first and not line.isspace():
            break
    if named is not None:
        return chain(seen, remaining), named
    header = seen[-1] if seen else ""
    tried = list(islice(remaining, _TRIED_LINES))
    return chain(seen, tried, remaining), _delimiter([header, *tried], chosen)


def _delimiter(lines: Sequence[str], chosen: CsvSettings) -> str:
    """Return the delimiter of rows: of those in the header, outside of quotes, the one that fits most of the first rows."""
    header = lines[0] if chosen.quoting == "none" else _IN_QUOTES.sub("", lines[0])
    candidates = [mark for mark in _DELIMITERS if mark in header]
    if len(candidates) < 2:
        return candidates[0] if candidates else ","
    return max(candidates, key=lambda mark: _share_that_fits(lines, mark))


def _share_that_fits(lines: Sequence[str], delimiter: str) -> float:
    rows: list[list[str]] = []
    with suppress(csv.Error):  # the last row may be cut in its middle
        rows.extend(csv.reader(lines, delimiter=delimiter, strict=True))
    rows = [row for row in rows if row]
    return sum(len(row) == len(rows[0]) for row in rows) / len(rows) if rows else 0.0


FORMAT = Format(records, endings=(".csv", ".tsv"), is_text=True, is_streamed=True, may_be_compressed=True)
