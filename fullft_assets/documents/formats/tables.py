"""Rows of fields -> the header's names and the rows below them, alike for CSV and spreadsheets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from fullft_assets.documents.formats.delivered import Unreadable
from fullft_assets.settings.documents import HeaderRow

#: (Number of the row, its fields). None: an empty cell.
Numbered = tuple[int, Sequence[str | None]]
TWICE = "two columns have the same name"


def below_header(rows: Iterator[Numbered], header: HeaderRow) -> tuple[list[str], Iterator[Numbered]]:
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
