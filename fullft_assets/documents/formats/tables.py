"""CSV and XLSX: a header, then one record a row.

The delimiter of CSV is `documents.csv.delimiter`, or the one of comma, semicolon, tab and bar that is in the
header outside of quotes and gives the first rows as many fields as the header. Fields in quotes may contain
line ends.

Of XLSX values are as the spreadsheet shows them: text stays text, so `00012` keeps its zeros, and so does a
number whose format pads it. Dates are ISO. (ECMA-376, part 1, SpreadsheetML)
"""

import csv
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import date, datetime
from itertools import chain, islice, zip_longest
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
from fullft_assets.escaping import from_cells
from fullft_assets.settings import DocumentsSettings
from fullft_assets.settings.documents import HeaderRow

#: (Number of the row, its fields). None: an empty cell; of XLSX, "": a formula that no program has computed.
Numbered = tuple[int, Sequence[str | None]]


def _below_header(rows: Iterator[Numbered], header: HeaderRow) -> tuple[list[str], Iterator[Numbered]]:
    """Return the columns' names and the rows below the header; no names where no row has a field,
    or the given one is not there.

    Args:
        rows: each row with its number.
        header: the number of the header's row, None for the first row that is not empty, `none` for names
            made of the column's number.

    Raises:
        Unreadable: two columns have the same name.
    """
    for number, fields in rows:
        if not any(fields) or (isinstance(header, int) and number < header):
            continue
        if header == "none":
            return [f"column_{at}" for at in range(1, len(fields) + 1)], chain([(number, fields)], rows)
        if isinstance(header, int) and number > header:
            break
        names = [name or "" for name in fields]
        columns = [name for name in names if name]  # one without a name is a spreadsheet's margin
        if len(set(columns)) != len(columns):
            raise Unreadable("two columns have the same name")
        return names, rows
    return [], rows


csv.field_size_limit(MAX_LINE_CHARACTERS)
_SWALLOWED = "a quoted field has rows in it: close its quote, or set documents.csv.quoting to none"


def csv_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number of the line that the row starts on, record or problem) of each row.

    Raises:
        Unreadable: the quoting is broken, or the header is unusable.
    """
    documents = reading.documents
    with file.lines(newline="") as text:
        lines, delimiter = _lines_and_delimiter(text, file.name, documents)
        header, rows = _below_header(_csv_rows(lines, delimiter, documents.csv.quoting), documents.header)
        if not header and isinstance(documents.header, int):
            raise Unreadable(f"no header in row {documents.header}")
        for number, fields in rows:
            if any(_has_rows(field, delimiter, len(header)) for field in fields):
                yield number, _SWALLOWED
            elif len(fields) != len(header):
                yield number, f"has {'more' if len(fields) > len(header) else 'fewer'} fields than the header"
            else:
                yield number, from_cells(dict(zip(header, fields, strict=True)))


def _has_rows(field: str | None, delimiter: str, num_columns: int) -> bool:
    """Return whether rows were swallowed by a quote that was not closed, as far as their delimiters tell."""
    lines = (field or "").splitlines()[1:-1]
    num_fitting = sum(line.count(delimiter) == num_columns - 1 for line in lines)
    # So many whole lines, of which most have as many delimiters as a row.
    return num_columns > 1 and len(lines) >= 3 and num_fitting >= 0.8 * len(lines)


def _csv_rows(lines: Iterator[str], delimiter: str, quoting: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        strict=True,
        quoting=(csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL),
    )
    line = 1
    try:
        for fields in reader:
            # A record is named by the line that it starts on, where a person looks for it.
            start = line
            line = reader.line_num + 1
            if fields:
                yield start, fields
    except csv.Error as error:
        raise Unreadable(
            f"not CSV: {error}, in the row that starts on line {line}: fix its quotes, or set"
            " documents.csv.quoting to none"
        ) from error


def _lines_and_delimiter(
    lines: Iterator[str], name: str, documents: DocumentsSettings
) -> tuple[Iterator[str], str]:
    if documents.csv.delimiter is not None:
        return lines, documents.csv.delimiter
    above = documents.header - 1 if isinstance(documents.header, int) else 0
    # Lines after the header that its delimiter is tried on.
    first_lines = list(islice(lines, above + 50))
    trial_lines = [line for line in first_lines[above:] if not line.isspace()]
    return chain(first_lines, lines), _delimiter(
        trial_lines, "\t" if ending_of(name) == ".tsv" else ",", documents.csv.quoting
    )


def _delimiter(lines: Sequence[str], usual: str, quoting: str) -> str:
    """Return the delimiter of rows: of the marks in the header, outside of quotes, the one that splits most
    of the first rows into as many fields. Of marks that fit alike, and where the header has none, the usual
    one of the file's ending.
    """
    header = lines[0] if lines else ""
    outside = header if quoting == "none" else re.sub(r'"(?:[^"]|"")*"', "", header)
    return max(
        [mark for mark in (usual, *",;\t|") if mark in outside],
        key=lambda mark: _share_that_fits(lines, mark),
        default=usual,
    )


def _share_that_fits(lines: Sequence[str], delimiter: str) -> float:
    rows: list[list[str]] = []
    with suppress(csv.Error):  # the last row may be cut in its middle
        rows.extend(filter(None, csv.reader(lines, delimiter=delimiter, strict=True)))
    return sum(len(row) == len(rows[0]) for row in rows) / len(rows) if rows else 0.0


CSV = Format(csv_records, endings=(".csv", ".tsv"), is_text=True, is_streamed=True, may_be_compressed=True)


MAX_XLSX_BYTES = 128 * 2**20
#: Rows of a sheet, by the specification of Excel.
MAX_ROWS = 2**20
#: Significant digits of a number that Excel keeps and shows.
_DIGITS = 15
#: In the XML of a sheet, a cell with a formula and without its value (a text may be empty, though), and the
#: first and the last row of merged cells.
_MARKS = re.compile(
    rb"<(?:\w+:)?(?:"
    rb'c\s(?=[^<>]*>\s*<(?:\w+:)?f\b)(?![^<>]*\bt="str")[^<>]*?\br="([A-Z]{1,3}\d{1,7})"[^<>]*>\s*'
    rb"<(?:\w+:)?f\b(?:[^<>]*/>|[^<>]*>[^<]*</(?:\w+:)?f>)\s*"
    rb"(?:<(?:\w+:)?v\s*(?:/>|>\s*</(?:\w+:)?v>)\s*)?</"
    rb'|mergeCell\s[^<>]*?\bref="[A-Z]{1,3}(\d{1,7}):[A-Z]{1,3}(\d{1,7})")'
)
_PADDED = re.compile(r"0{2,}")
#: How the format writes a tab and line ends.
_ESCAPED = re.compile(r"_x000([9AaDd])_")


def _xlsx_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record or problem) of each row that is not empty; rows of later sheets are numbered
    on. A row is malformed if a field that is read is a formula that no program has computed.

    Of several sheets, those with the header of the first one that has one in its row are read; where there
    are no names, the first one. The sheet's name is in the field `sheet`.

    Raises:
        Unreadable: it is damaged, encrypted or has no header, or rows of a sheet that is read are merged.
    """
    first: list[str] = []
    last = 0
    names = reading.row_settings.fields
    for title, rows, is_merged in _sheets(file.path, reading):
        try:
            header, below = _below_header(rows, reading.documents.header)
        except Unreadable:
            if not first:
                raise
            continue
        if not header or (first and (header != first or reading.documents.header == "none")):
            continue
        if is_merged:
            raise Unreadable("has cells that are merged over several rows; split them")
        first = header
        num_before = last
        for number, fields in below:
            last = num_before + number
            record = _sheet_record(header, fields, title, names)
            if any(fields) or isinstance(record, str):
                yield last, record
    if not first:
        row = reading.documents.header
        raise Unreadable(f"no sheet has a header{f' in row {row}' if isinstance(row, int) else ''}")


def _sheet_record(
    header: list[str], fields: Sequence[str | None], title: str, names: Collection[str]
) -> Record:
    if any(fields[len(header) :]):
        return "has more fields than the header"
    record = {"sheet": title, **dict(zip_longest(header, fields[: len(header)]))}
    formulas = [name for name, value in record.items() if value == "" and name in names]
    return (
        f"a formula in `{formulas[0]}` that no program has computed; open and save the file"
        if formulas
        else from_cells(record)
    )


def _sheets(path: Path, reading: Reading) -> Iterator[tuple[str, Iterator[Numbered], bool]]:
    """Yield the title of each visible sheet, its rows, and whether cells below its header are merged over
    several rows.
    """
    import openpyxl

    first_row = header if isinstance((header := reading.documents.header), int) else 1

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of extensions that hold no values
        archive = stack.enter_context(archive_of(path, "XLSX"))
        reading.advance()
        # Opened here: openpyxl refuses a path with another ending.
        data = stack.enter_context(path.open("rb"))
        book: Any = stack.enter_context(
            closing(openpyxl.load_workbook(data, read_only=True, data_only=True, keep_links=False))
        )
        for sheet in book.worksheets:
            reading.advance()
            if sheet.sheet_state != "visible":
                continue
            marks = _MARKS.findall(archive.read(sheet._worksheet_path.lstrip("/")))
            formulas = {cell.decode() for cell, _, _ in marks if cell}
            # Only the first of these rows has the value: of a group, the others might be on another side.
            is_merged = any(end and int(end) > max(int(start), first_row) for _, start, end in marks)
            yield sheet.title, _sheet_rows(sheet, formulas), is_merged


def _sheet_rows(sheet: Any, formulas: Collection[str]) -> Iterator[tuple[int, list[str | None]]]:
    sheet.reset_dimensions()  # some programs write too few rows or columns there
    for number, cells in enumerate(sheet, start=1):
        if number > MAX_ROWS:
            raise Unreadable(f"a sheet has more than {MAX_ROWS:,} rows")
        yield number, [_shown(cell, formulas) for cell in cells]


def _shown(cell: Any, formulas: Collection[str]) -> str | None:
    if (value := cell.value) is None or value == "" or cell.data_type == "e":
        # Where the file has no cell, there is one without coordinates.
        return "" if formulas and getattr(cell, "coordinate", None) in formulas else None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return _number(value, cell.number_format or "")
    if isinstance(value, datetime) and value.time() == datetime.min.time():
        value = value.date()
    return (
        (value.isoformat() if hasattr(value, "isoformat") else str(value))
        if isinstance(value, date) or not isinstance(value, str)
        else _ESCAPED.sub(lambda escape: chr(int(escape[1], 16)), value)
    )


def _number(value: float, shown_as: str) -> str:
    return (
        (f"{int(value):0{len(shown_as)}d}" if _PADDED.fullmatch(shown_as) else str(int(value)))
        if value == int(value) and abs(value) < 10**_DIGITS
        else f"{value:.{_DIGITS}g}"
    )


XLSX = Format(_xlsx_records, endings=(".xlsx",), max_bytes=MAX_XLSX_BYTES)
