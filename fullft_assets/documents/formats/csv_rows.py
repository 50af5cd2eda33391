"""CSV: a header, then one record a row; fields in quotes may contain line ends.

The delimiter is `documents.csv.delimiter`, the one in a line `sep=;` before the header, or a tab by the
ending .tsv if the header has one or no other delimiter fits; else the one of comma, semicolon, tab and bar
that is in the header outside of quotes and gives the first rows as many fields as the header.
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
from fullft_assets.documents.formats.tables import Numbered, below_header
from fullft_assets.escaping import from_cell
from fullft_assets.settings.documents import CsvSettings

csv.field_size_limit(MAX_LINE_CHARACTERS)
#: A line that Excel reads as the delimiter, not as a row.
_SEPARATOR = re.compile(r"\ufeff?\"?sep=(.)\"?\s*", re.IGNORECASE)
_DELIMITERS = ",;\t|"
_IN_QUOTES = re.compile(r'"(?:[^"]|"")*"')
#: Lines after the header that its delimiter is tried on.
_TRIED_LINES = 50
#: Share of these lines that another delimiter must fit for a .tsv file whose header has no tab to be read by
#: it.
_FITTING_SHARE = 0.9
_LINE_END = re.compile(r"\r\n|\r|\n")
#: Share of the lines inside of a field that have as many delimiters as a row, and of the values in them that
#: are like those of their columns, from which on they are rows and the quote of the field counts as not
#: closed.
_ROWS_SHARE = 0.8
#: Number of such values, or of such lines where no column tells rows from prose, from which on this is
#: certain. Below it, the row alone is excluded.
_CERTAIN_VALUES = 3
_CERTAIN_LINES = 8
#: First rows that the values of each column are learned from.
_LEARNED_ROWS = 1_000
_WORDS = re.compile(r"[^\W\d_]+")
_DIGITS = re.compile(r"\d+")
#: Share of values met once up to which the values (or their shapes) of a column count as known: about so much
#: of it is still to come. (I. J. Good, The population frequencies of species, Biometrika 40, 1953)
_UNKNOWN_SHARE = 0.1
_PROSE = "a b"


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number of the line that the row starts on, record or problem) of each row.

    Raises:
        Unreadable: the quoting is broken, or the header is unusable.
    """
    chosen = reading.documents.csv

    @cache
    def columns() -> list[_Column]:
        # Rarely needed: a second look at the first rows, so that the others are read without one.
        with replace(file, head=None).lines(newline="") as text:
            return _columns(
                fields
                for _, fields in islice(
                    _rows(*_lines_and_delimiter(text, file.name, chosen), chosen), _LEARNED_ROWS
                )
            )

    doubtful: dict[int, str] = {}
    with file.lines(newline="") as text:
        lines, delimiter = _lines_and_delimiter(text, file.name, chosen)
        header, rows = below_header(
            _checked(_rows(lines, delimiter, chosen), delimiter, columns, doubtful), chosen.header
        )
        if doubtful:
            raise Unreadable(next(iter(doubtful.values())))
        for number, fields in rows:
            if number in doubtful:
                yield number, doubtful.pop(number)
            elif len(fields) != len(header):
                yield number, f"has {'more' if len(fields) > len(header) else 'fewer'} fields than the header"
            else:
                yield number, dict(zip(header, map(from_cell, fields), strict=True))


def _rows(lines: Iterator[str], delimiter: str, chosen: CsvSettings) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the line that it starts on, fields) of each row that is not a blank line."""
    quoting = csv.QUOTE_NONE if chosen.quoting == "none" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    line = 1
    try:
        for fields in reader:
            # A record is named by the line that it starts on, where a person looks for it.
            line, start = reader.line_num + 1, line
            if fields:
                yield start, fields
    except csv.Error as error:
        fix = "fix its quotes, or set documents.csv.quoting to none"
        raise Unreadable(f"not CSV: {error}, in the row that starts on line {line}: {fix}") from error


def _checked(
    rows: Iterable[tuple[int, list[str]]],
    delimiter: str,
    columns: Callable[[], list[_Column]],
    doubtful: dict[int, str],
) -> Iterator[Numbered]:
    """Yield rows; before one that may have others in it, put its number and what is wrong into `doubtful`.

    Raises:
        Unreadable: a field certainly has rows in it.
    """
    for start, fields in rows:
        for at, field in enumerate(fields):
            if ("\n" in field or "\r" in field) and (
                is_certain := _has_rows(field, at, len(fields), delimiter, columns)
            ) is not None:
                what = (
                    f"a quoted field that begins in the row of line {start}"
                    f" {'has whole' if is_certain else 'seems to have'} rows in it"
                )
                last = start + len(_LINE_END.findall("".join(fields)))
                why = f"{what}, to line {last}: close the quote there, or set documents.csv.quoting to none"
                if is_certain:
                    raise Unreadable(why)
                doubtful[start] = why
        yield start, fields


class _Column:
    """What the values of a column look like, where that tells them from prose: they recur, or their shapes
    do, or they are no words in a row.
    """

    def __init__(self, values: Sequence[str]):
        for look in (str, _shape):
            numbers = Counter(map(look, values))
            if sum(number == 1 for number in numbers.values()) <= _UNKNOWN_SHARE * len(values):
                self._look, self._known = look, set(numbers)
                return
        numbers = Counter(map(_kind, values))
        self._look, self._known = (
            _kind,
            {kind for kind, number in numbers.items() if number >= _UNKNOWN_SHARE * len(values)},
        )

    def fits(self, value: str) -> bool | None:
        """Return whether a value is like those of the column; None where the column does not tell."""
        return None if _PROSE in self._known or not self._known else self._look(value) in self._known


def _shape(value: str) -> str:
    """Return what distinguishes identifiers, numbers and dates from each other; prose is returned as
    it is.
    """
    return (
        value if len(_WORDS.findall(value)) > 1 and " " in value else _DIGITS.sub("0", _WORDS.sub("a", value))
    )


def _kind(value: str) -> str:
    """Return whether a value is prose, one word or anything else, such as an identifier."""
    return _PROSE if not value or " " in value else "word" if value.isalpha() else "other"


def _columns(rows: Iterable[Sequence[str]]) -> list[_Column]:
    """Return the columns of rows, of which the first one has the names; fields of several lines are no
    examples.
    """
    found = list(rows)
    [(number, _)] = Counter(map(len, found)).most_common(1)
    full = [row for row in found[1:] if len(row) == number]
    return [_Column([row[at] for row in full if _LINE_END.search(row[at]) is None]) for at in range(number)]


def _has_text(line: Sequence[str], at: int, number: int) -> bool:
    """Return whether a line is no whole row, or has something in a column; an indented line of text
    has not.
    """
    return len(line) != number or bool(line[at].strip())


def _has_rows(
    field: str, at: int, num_fields: int, delimiter: str, columns: Callable[[], list[_Column]]
) -> bool | None:
    """Return whether it is certain that the lines of a field are rows: the rest of the one that it begins in,
    whole ones, the beginning of the last. None: they are none.

    Args:
        field: a field of several lines.
        at: its column.
        num_fields: fields of the row that it is in.
        delimiter: the delimiter.
        columns: returns what the values of each column look like.
    """
    if delimiter not in field:
        return None
    lines = [line.split(delimiter) for line in _LINE_END.split(field) if line.strip()]
    known = columns()
    number = len(known)
    # The column that the field ends in has as many after it as its row.
    last = number - (num_fields - at)
    expected = [number - at, *[number] * (len(lines) - 2), last + 1]
    fitting = (
        [
            line
            for line in zip(lines, expected, strict=True)
            if len(line[0]) == line[1] and _has_text(line[0], at, number)
        ]
        if len(lines) > 1 and number > 1
        else []
    )
    if len(fitting) < max(2, _ROWS_SHARE * len(lines)):
        return None
    starts = [at, *[0] * (len(lines) - 1)]
    fits_known = [
        fits
        for line, start, length in zip(lines, starts, expected, strict=True)
        if len(line) == length
        for column, value in enumerate(line, start=start)
        # Of the first line the beginning is the field itself, of the last one the end.
        if (line is not lines[0] or column > at)
        and (line is not lines[-1] or column < last)
        and (fits := known[column].fits(value)) is not None
    ]
    if sum(fits_known) < _ROWS_SHARE * len(fits_known):
        return None
    return len(fits_known) >= _CERTAIN_VALUES or len(lines) >= _CERTAIN_LINES


def _lines_and_delimiter(lines: Iterable[str], name: str, chosen: CsvSettings) -> tuple[Iterator[str], str]:
    """Return a file's lines and their delimiter."""
    remaining, seen = iter(lines), []
    named = chosen.delimiter
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
    is_tsv = ending_of(name) == ".tsv"
    if is_tsv and "\t" in header:
        return chain(seen, remaining), "\t"
    tried = list(islice(remaining, _TRIED_LINES))
    found = _delimiter([header, *tried], chosen)
    # A table of one column has no delimiter, but marks within its texts.
    is_lie = not is_tsv or (found in header and _share_that_fits([header, *tried], found) >= _FITTING_SHARE)
    return chain(seen, tried, remaining), found if is_lie else "\t"


def _delimiter(lines: Sequence[str], chosen: CsvSettings) -> str:
    """Return the delimiter of rows: of those in the header, outside of quotes, the one that fits most of the
    first rows.
    """
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
