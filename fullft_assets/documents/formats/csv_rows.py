"""CSV: a header, then one record a row; fields in quotes may contain line ends.

The delimiter is `documents.csv.delimiter`, the one in a line `sep=;` before the header, or the one of comma,
semicolon, tab and bar that is in the header outside of quotes and gives the first rows as many fields as the
header.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import chain, islice

from fullft_assets.documents.formats.delivered import MAX_LINE_CHARACTERS, Delivered, Record, Unreadable
from fullft_assets.documents.formats.endings import ending_of
from fullft_assets.documents.formats.protocol import Format, Reading
from fullft_assets.documents.formats.tables import below_header
from fullft_assets.escaping import from_cell
from fullft_assets.settings import DocumentsSettings

csv.field_size_limit(MAX_LINE_CHARACTERS)
#: A line that Excel reads as the delimiter, not as a row.
_SEPARATOR = re.compile(r"\ufeff?\"?sep=(.)\"?\s*", re.IGNORECASE)
_DELIMITERS = ",;\t|"
_IN_QUOTES = re.compile(r'"(?:[^"]|"")*"')
#: Lines after the header that its delimiter is tried on.
_TRIED_LINES = 50
_LINE_END = re.compile(r"\r\n|\r|\n")
#: A field of several lines has rows in it, as its quote was not closed, if this share of its lines have as
#: many delimiters as a row, and this share of their values in columns with few values (labels) are such
#: values. If no column has few values, this number of lines is needed.
_ROWS_SHARE, _MANY_LINES = 0.8, 8
#: First rows that the values of columns are learned from. A column has few if most of them occur again.
_LEARNED_ROWS, _FEW_SHARE = 1_000, 0.5


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number of the line that the row starts on, record or problem) of each row.

    Raises:
        Unreadable: the quoting is broken, or the header is unusable.
    """
    documents = reading.documents

    @cache
    def few_values() -> list[set[str] | None]:
        # Rarely needed: a second look at the first rows, so that the others are read without one.
        with replace(file, head=None).lines(newline="") as text:
            lines, delimiter = _lines_and_delimiter(text, file.name, documents)
            rows = islice(_rows(lines, delimiter, documents.csv.quoting), _LEARNED_ROWS)
            return _few_values([fields for _, fields in rows])

    with file.lines(newline="") as text:
        lines, delimiter = _lines_and_delimiter(text, file.name, documents)
        header, rows = below_header(_rows(lines, delimiter, documents.csv.quoting), documents.header)
        for number, fields in rows:
            hidden = max(
                (_lines_of_rows(fields, at, delimiter, few_values) for at in range(len(fields))), default=0
            )
            if hidden:
                last = number + len(_LINE_END.findall("".join(map(str, fields))))
                why = (
                    f"a quoted field that begins in the row of line {number} has rows in it, to line {last}:"
                    " close the quote there, or set documents.csv.quoting to none"
                )
                if hidden >= _MANY_LINES:
                    raise Unreadable(why)
                yield number, why
            elif len(fields) != len(header):
                yield number, f"has {'more' if len(fields) > len(header) else 'fewer'} fields than the header"
            else:
                yield number, dict(zip(header, map(from_cell, fields), strict=True))


def _rows(lines: Iterator[str], delimiter: str, quoting: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the line that it starts on, fields) of each row that is not a blank line."""
    quotes = csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quotes)
    line = 1
    try:
        for fields in reader:
            # A record is named by the line that it starts on, where a person looks for it.
            start = line
            line = reader.line_num + 1
            if fields:
                yield start, fields
    except csv.Error as error:
        fix = "fix its quotes, or set documents.csv.quoting to none"
        raise Unreadable(f"not CSV: {error}, in the row that starts on line {line}: {fix}") from error


def _few_values(rows: list[list[str]]) -> list[set[str] | None]:
    """Return the values of each column that has few, None for another one; the first row has the names."""
    [(number, _)] = Counter(map(len, rows)).most_common(1)
    columns = list(zip(*(row for row in rows[1:] if len(row) == number), strict=True))
    sets = [set(column) for column in columns] or [set() for _ in range(number)]
    return [values if len(values) <= _FEW_SHARE * (len(rows) - 1) else None for values in sets]


def _lines_of_rows(
    fields: Sequence[str | None], at: int, delimiter: str, few_values: Callable[[], list[set[str] | None]]
) -> int:
    """Return how many lines a field has if they are rows: the end of the one that it begins in, whole ones,
    and the beginning of the last one; 0 if they are none.
    """
    field = fields[at] or ""
    if delimiter not in field or not _LINE_END.search(field):
        return 0
    lines = [line.split(delimiter) for line in _LINE_END.split(field) if line.strip()]
    known = few_values()
    # The column that the field ends in has as many after it as its row.
    last = len(known) - (len(fields) - at)
    starts = [at, *[0] * (len(lines) - 1)]
    ends = [*[len(known)] * (len(lines) - 1), last + 1]
    num_fitting = 0
    are_known: list[bool] = []
    for line, start, end in zip(lines, starts, ends, strict=True):
        if len(line) != end - start or not line[0].strip():
            continue
        num_fitting += 1
        for column, value in enumerate(line, start):
            is_whole = (line is not lines[0] or column > at) and (line is not lines[-1] or column < last)
            if is_whole and (values := known[column]) is not None:
                are_known.append(value in values)
    has_rows = sum(are_known) >= _ROWS_SHARE * len(are_known) if are_known else len(lines) >= _MANY_LINES
    return len(lines) if has_rows and num_fitting >= max(2, _ROWS_SHARE * len(lines)) else 0


def _lines_and_delimiter(
    lines: Iterable[str], name: str, documents: DocumentsSettings
) -> tuple[Iterator[str], str]:
    """Return a file's lines and their delimiter."""
    remaining = iter(lines)
    seen: list[str] = []
    delimiter = documents.csv.delimiter
    first = documents.header if isinstance(documents.header, int) else 1
    for number, line in enumerate(remaining, start=1):
        if not any(map(str.strip, seen)) and (match := _SEPARATOR.fullmatch(line)) is not None:
            # A blank line in its place is skipped, and the lines after it keep their numbers.
            delimiter = delimiter or match[1]
            line = "\n"
        seen.append(line)
        if number >= first and not line.isspace():
            break
    if delimiter is None:
        tried = list(islice(remaining, _TRIED_LINES))
        usual = "\t" if ending_of(name) == ".tsv" else ","
        delimiter = _delimiter([*seen[-1:], *tried], usual, documents.csv.quoting)
        seen += tried
    return chain(seen, remaining), delimiter


def _delimiter(lines: Sequence[str], usual: str, quoting: str) -> str:
    """Return the delimiter of rows: of the marks in the header, outside of quotes, the one that splits most
    of the first rows into as many fields. Of marks that fit alike, and where the header has none, the usual
    one of the file's ending.
    """
    header = lines[0] if lines else ""
    outside = header if quoting == "none" else _IN_QUOTES.sub("", header)
    candidates = [mark for mark in (usual, *_DELIMITERS) if mark in outside]
    return max(candidates, key=lambda mark: _share_that_fits(lines, mark), default=usual)


def _share_that_fits(lines: Sequence[str], delimiter: str) -> float:
    rows: list[list[str]] = []
    with suppress(csv.Error):  # the last row may be cut in its middle
        rows.extend(csv.reader(lines, delimiter=delimiter, strict=True))
    rows = [row for row in rows if row]
    return sum(len(row) == len(rows[0]) for row in rows) / len(rows) if rows else 0.0


FORMAT = Format(records, endings=(".csv", ".tsv"), is_text=True, is_streamed=True, may_be_compressed=True)
