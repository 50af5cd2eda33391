"""CSV and XLSX: a header, then one record a row.

The delimiter of CSV is `documents.csv.delimiter`, the one in a line `sep=;` before the header, or the one of
comma, semicolon, tab and bar that is in the header outside of quotes and gives the first rows as many fields
as the header. Fields in quotes may contain line ends.

Of XLSX values are as the spreadsheet shows them: text stays text, so `00012` keeps its zeros, and so does a
number whose format pads it. Dates are ISO. A cell that is merged over several rows has its value in each of
them. (ECMA-376, part 1, SpreadsheetML)
"""

import csv
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from datetime import date, datetime
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from fullft_assets.documents.formats.delivered import (
    MAX_LINE_CHARACTERS,
    Delivered,
    Record,
    Unreadable,
    archive_of,
    ending_of,
)
from fullft_assets.documents.formats.registered import Format, Reading
from fullft_assets.escaping import from_cell
from fullft_assets.settings import DocumentsSettings
from fullft_assets.settings.documents import HeaderRow

#: (Number of the row, its fields). None: an empty cell.
Numbered = tuple[int, Sequence[str | None]]
TWICE = "two columns have the same name"


def _below_header(rows: Iterator[Numbered], header: HeaderRow) -> tuple[list[str], Iterator[Numbered]]:
    """Return the columns' names and the rows below the header; no names where no row has a field.

    Args:
        rows: each row with its number.
        header: the number of the header's row, None for the first row that is not empty, `none` for names
            made of the column's number.

    Raises:
        Unreadable: two columns have the same name, or the given row is not there.
    """
    for number, fields in rows:
        if not any(fields) or (isinstance(header, int) and number < header):
            continue
        if header == "none":
            return [f"column_{at}" for at in range(1, len(fields) + 1)], chain([(number, fields)], rows)
        if isinstance(header, int) and number > header:
            break
        names = [name or "" for name in fields]
        named = [name for name in names if name]  # columns without a name are a spreadsheet's margin
        if len(set(named)) != len(named):
            raise Unreadable(TWICE)
        return names, rows
    if isinstance(header, int):
        raise Unreadable(f"no header in row {header}")
    return [], rows


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


def csv_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
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
            rows = islice(_csv_rows(lines, delimiter, documents.csv.quoting), _LEARNED_ROWS)
            return _few_values([fields for _, fields in rows])

    with file.lines(newline="") as text:
        lines, delimiter = _lines_and_delimiter(text, file.name, documents)
        header, rows = _below_header(_csv_rows(lines, delimiter, documents.csv.quoting), documents.header)
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


def _csv_rows(lines: Iterator[str], delimiter: str, quoting: str) -> Iterator[tuple[int, list[str]]]:
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


CSV = Format(csv_records, endings=(".csv", ".tsv"), is_text=True, is_streamed=True, may_be_compressed=True)


MAX_XLSX_BYTES = 128 * 2**20
#: Rows of a sheet, by the specification of Excel.
MAX_ROWS = 2**20
#: Significant digits of a number that Excel keeps and shows.
_DIGITS = 15
_MERGED = re.compile(rb'<(?:\w+:)?mergeCell\s[^>]*?ref="([A-Z]{1,3})(\d{1,7}):[A-Z]{1,3}(\d{1,7})"')
_PADDED = re.compile(r"0{2,}")
#: How the format writes a tab and line ends.
_ESCAPED = re.compile(r"_x000([9AaDd])_")


def _xlsx_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record or problem) of each row that is not empty; rows of later sheets are numbered
    on.

    Of several sheets, those with the header of the first one are read; where there are no names, the first
    one. The sheet's name is in the field `sheet`.

    Raises:
        Unreadable: it is damaged, encrypted or has no header.
    """
    first: list[str] = []
    last = 0
    for title, rows in _sheets(file.path, reading.advance):
        try:
            header, below = _below_header(rows, reading.documents.header)
        except Unreadable:
            if not first:
                raise
            continue
        if not header or (first and (header != first or reading.documents.header == "none")):
            continue
        first = header
        before = last
        for number, fields in below:
            last = before + number
            if any(fields):
                yield last, _sheet_record(header, fields, title)
    if not first:
        raise Unreadable("no sheet has a header")


def _sheet_record(header: list[str], fields: Sequence[str | None], title: str) -> Record:
    if any(fields[len(header) :]):
        return "has more fields than the header"
    padded = [*fields, *[None] * (len(header) - len(fields))]
    return {"sheet": title, **dict(zip(header, padded, strict=True))}


def _sheets(path: Path, advance: Callable[[], None]) -> Iterator[tuple[str, Iterator[Numbered]]]:
    import openpyxl

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of extensions that hold no values
        archive = stack.enter_context(archive_of(path, "XLSX"))
        advance()
        # Opened here: openpyxl refuses a path with another ending.
        data = stack.enter_context(path.open("rb"))
        book: Any = stack.enter_context(
            closing(openpyxl.load_workbook(data, read_only=True, data_only=True, keep_links=False))
        )
        advance()
        for sheet in book.worksheets:
            if sheet.sheet_state != "visible":
                continue
            raw = archive.read(sheet._worksheet_path.lstrip("/"))
            yield sheet.title, _filled_down(_sheet_rows(sheet), _merged(raw))


def _sheet_rows(sheet: Any) -> Iterator[tuple[int, list[str | None]]]:
    sheet.reset_dimensions()  # some programs write too few rows or columns there
    for number, cells in enumerate(sheet, start=1):
        if number > MAX_ROWS:
            raise Unreadable(f"a sheet has more than {MAX_ROWS:,} rows")
        yield number, [_shown(cell) for cell in cells]


def _shown(cell: Any) -> str | None:
    value = cell.value
    if value is None or value == "" or cell.data_type == "e":
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return _number(value, cell.number_format or "")
    if isinstance(value, datetime) and value.time() == datetime.min.time():
        value = value.date()
    if isinstance(value, date) or not isinstance(value, str):
        return value.isoformat() if hasattr(value, "isoformat") else str(value)
    return _ESCAPED.sub(lambda escape: chr(int(escape[1], 16)), value)


def _number(value: float, shown_as: str) -> str:
    if value == int(value) and abs(value) < 10**_DIGITS:
        return f"{int(value):0{len(shown_as)}d}" if _PADDED.fullmatch(shown_as) else str(int(value))
    return f"{value:.{_DIGITS}g}"


def _merged(raw: bytes) -> list[tuple[int, int, int]]:
    from openpyxl.utils import column_index_from_string

    ranges = (
        (column_index_from_string(column.decode()) - 1, int(start), int(end))
        for column, start, end in _MERGED.findall(raw)
    )
    return [(column, start, end) for column, start, end in ranges if end > start]


def _filled_down(
    rows: Iterator[tuple[int, list[str | None]]], merged: list[tuple[int, int, int]]
) -> Iterator[Numbered]:
    held: dict[int, tuple[int, str | None]] = {}
    starts: dict[int, list[tuple[int, int]]] = {}
    for column, start, end in merged:
        starts.setdefault(start, []).append((column, end))
    for number, row in rows:
        is_empty = not any(row)
        for column, (end, value) in held.items() if not is_empty else ():
            if number <= end:
                row.extend([None] * (column + 1 - len(row)))
                row[column] = row[column] or value
        held |= {
            column: (end, row[column] if column < len(row) else None)
            for column, end in starts.get(number, ())
        }
        yield number, row


XLSX = Format(_xlsx_records, endings=(".xlsx",), max_bytes=MAX_XLSX_BYTES)
