"""XLSX: a header, then one record a row, with values as the spreadsheet shows them.

Text stays text, so `00012` keeps its zeros, and so does a number whose format pads it. Dates are ISO. A cell
that is merged over several rows has its value in each of them. (ECMA-376, part 1, SpreadsheetML)
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import date, datetime
from pathlib import Path
from typing import Any, BinaryIO

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.parsing import archive_of, check_members
from fullft_assets.documents.formats.protocol import Format, Reading
from fullft_assets.documents.formats.tables import Numbered, below_header

MAX_BYTES = 128 * 2**20
#: Rows of a sheet, by the specification of Excel.
MAX_ROWS = 2**20
#: Significant digits of a number that Excel keeps and shows.
_DIGITS = 15
_FORMULA = re.compile(rb"<(?:\w+:)?f[\s/>]")
_MERGED = re.compile(rb'<(?:\w+:)?mergeCell\s[^>]*?ref="([A-Z]{1,3})(\d{1,7}):[A-Z]{1,3}(\d{1,7})"')
_PADDED = re.compile(r"0{2,}")
#: How the format writes a tab and line ends.
_ESCAPED = re.compile(r"_x000([9AaDd])_")


class _Fault(str):
    """Placeholder for the value of a cell that has none, with the reason."""


_ERROR = _Fault("an error in place of its value")
_NOT_COMPUTED = _Fault("a formula without its value; open the file in a spreadsheet program and save it")


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record or problem) of each row that is not empty; rows of later sheets are numbered
    on.

    Of several sheets, those with the header of the first one are read; where there are no names, the first
    one. The sheet's name is in the field `sheet`.

    Raises:
        Unreadable: it is damaged, encrypted or has no header.
    """
    fields_read = reading.wanted.fields
    first: list[str] = []
    last = 0
    for title, rows in _sheets(file.path, reading.advance):
        try:
            header, below = below_header(rows, reading.documents.header)
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
                yield last, _record(header, fields, title, fields_read)
    if not first:
        raise Unreadable("no sheet has a header")


def _record(header: list[str], fields: Any, title: str, fields_read: set[str]) -> Record:
    if any(fields[len(header) :]):
        return "has more fields than the header"
    record = {
        "sheet": title,
        **dict(zip(header, [*fields, *[None] * (len(header) - len(fields))], strict=True)),
    }
    faults = [
        f"field `{name}` is {record[name]}"
        for name in header
        if name in fields_read and isinstance(record[name], _Fault)
    ]
    return "; ".join(faults) or {
        name: None if isinstance(value, _Fault) else value for name, value in record.items()
    }


def _sheets(path: Path, advance: Callable[[], None]) -> Iterator[tuple[str, Iterator[Numbered]]]:
    """Yield the title and the rows of each sheet that is not hidden."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of extensions that hold no values
        archive = stack.enter_context(archive_of(path, "XLSX"))
        check_members(archive)
        advance()
        # Opened here: openpyxl refuses a path with another ending.
        data = stack.enter_context(path.open("rb"))
        values, formulas = stack.enter_context(_book(data, data_only=True)), None
        advance()
        for at, sheet in enumerate(values.worksheets):
            if sheet.sheet_state != "visible":
                continue
            raw = archive.read(sheet._worksheet_path.lstrip("/"))
            if _FORMULA.search(raw) and formulas is None:
                formulas = stack.enter_context(_book(stack.enter_context(path.open("rb")), data_only=False))
            rows = _rows(
                sheet, formulas.worksheets[at] if formulas is not None and _FORMULA.search(raw) else None
            )
            yield sheet.title, _filled_down(rows, _merged(raw))


def _book(data: BinaryIO, *, data_only: bool) -> Any:
    import openpyxl

    return closing(openpyxl.load_workbook(data, read_only=True, data_only=data_only, keep_links=False))


def _rows(sheet: Any, formulas: Any | None) -> Iterator[tuple[int, list[str | None]]]:
    for each in (sheet, formulas):
        if each is not None:
            each.reset_dimensions()  # some programs write too few rows or columns there
    beside = iter(formulas) if formulas is not None else None
    for number, cells in enumerate(sheet, start=1):
        if number > MAX_ROWS:
            raise Unreadable(f"a sheet has more than {MAX_ROWS:,} rows")
        row = [_shown(cell) for cell in cells]
        if beside is not None:
            for at, formula in enumerate(next(beside)):
                if formula.data_type == "f" and row[at] is None:
                    row[at] = _NOT_COMPUTED
        yield number, row


def _shown(cell: Any) -> str | None:
    """Return a cell's value as the spreadsheet shows it, dates in ISO; None where it is empty."""
    value = cell.value
    if value is None or value == "":
        return None
    if cell.data_type == "e":
        return _ERROR
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
    """Return (column from 0, first row, last row) of each cell that is merged over several rows."""
    from openpyxl.utils import column_index_from_string

    ranges = (
        (column_index_from_string(column.decode()) - 1, int(start), int(end))
        for column, start, end in _MERGED.findall(raw)
    )
    return [(column, start, end) for column, start, end in ranges if end > start]


def _filled_down(
    rows: Iterator[tuple[int, list[str | None]]], merged: list[tuple[int, int, int]]
) -> Iterator[Numbered]:
    """Yield the rows, with a merged cell's value in each of its rows that has a value of its own."""
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


FORMAT = Format(records, endings=(".xlsx",), max_bytes=MAX_BYTES)
