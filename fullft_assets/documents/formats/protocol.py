"""The protocol of a format: its endings, its limits, and how its files become records and rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fullft_assets.documents.formats.delivered import Delivered, Record
from fullft_assets.documents.formats.rows import Row, Wanted, rows
from fullft_assets.settings import DocumentsSettings

T = TypeVar("T")
#: Longest time for one record (of a PDF, for one page), and for all of a file.
STEP_SECONDS = 20.0
FILE_SECONDS = 600.0


class Shared(Protocol):
    """Opens something once for all files that are read together, such as a process; it is closed after the
    last one.
    """

    def __call__(self, kind: Callable[[], AbstractContextManager[T]]) -> T:
        """Return what `kind()` opened when it was first asked for."""
        ...


@dataclass(frozen=True)
class Reading:
    """What a format may use beside the file that it reads."""

    #: The fields that the settings name, and what the task needs of them.
    wanted: Wanted
    #: Fields that may be read of a record, for a format that can leave the others out. None: all.
    fields: Collection[str] | None
    #: Returns the text that each reference in the file names (a path relative to it, or s3://), or why it
    #: cannot be read.
    fetch: Callable[[list[str]], list[str | OSError]]
    shared: Shared
    #: The settings of the formats, and the encoding of text.
    documents: DocumentsSettings
    #: Rows that are wanted of a table, from all over it. None: all.
    table_rows: int | None = None
    #: Reports that reading goes on: the time for one step begins anew. Each record does so, too.
    advance: Callable[[], None] = lambda: None


def plain_rows(records: Iterable[tuple[int, Record]], reading: Reading) -> Iterator[tuple[int, Row]]:
    """Yield (row number, row) of records whose fields are plain."""
    return rows(records, reading.wanted)


@dataclass(frozen=True)
class Format:
    """How files of one format are read. The module that defines it is imported to list endings: heavy
    libraries belong into its functions.

    Most formats give `records` and `endings` alone. An export of an annotation tool gives `rows` instead, for
    what its records mean, and `written_as`, for the formats that its files come in.
    """

    #: Yields (number, record or problem) of each row of a file, or of the one document that the file is (see
    #: `Delivered.document`). Raises Unreadable where the file cannot be read to its end.
    records: Callable[[Delivered, Reading], Iterator[tuple[int, Record]]] | None = None
    #: Yields (number, row) of records.
    rows: Callable[[Iterable[tuple[int, Record]], Reading], Iterator[tuple[int, Row]]] = plain_rows
    #: Endings in lower case, with the dot. A format without any is named by `documents.format`.
    endings: tuple[str, ...] = ()
    #: A file is one document.
    is_whole_file: bool = False
    #: Files are text: read through `Delivered.text`, which decodes them.
    is_text: bool = False
    #: Files may have a second ending of a compression; `Delivered` unpacks them.
    may_be_compressed: bool = False
    #: Records come one after the other, in time and memory that grow with the file's size alone. Files of all
    #: other formats are read by a process of its own, within bounds of time and memory (see `bounded`):
    #: nothing but `records` runs there.
    is_streamed: bool = False
    #: The largest file that is read, in bytes.
    max_bytes: int | None = None
    #: Longest time for one record, and for all of a file.
    seconds: Callable[[DocumentsSettings], tuple[float, float]] = lambda _: (STEP_SECONDS, FILE_SECONDS)
    #: Reading takes so long that `fullft check` counts the files and reads only a few.
    is_slow: bool = False
    #: Returns the number of rows where the file contains it, so that `fullft check` need not read the rows.
    num_rows: Callable[[Path], int] | None = None
    #: Returns the encoding that the first bytes of a text declare; UTF-8 is tried before it.
    declared_encoding: Callable[[bytes], str | None] | None = None
    #: Names of the formats that an export comes in, by the file's ending; the first one for any other ending.
    written_as: tuple[str, ...] = ()
    #: Returns whether a record looks like one of this format, which distinguishes the formats of .json files.
    looks_like: Callable[[dict[str, Any], Wanted], bool] | None = None
    #: The first record of a file decides what its records mean: see `looks_like`.
    is_recognised_by_content: bool = False
    #: The field that contains the text where `documents.text` names none.
    text: str = "text"
    #: Version of what it reads. A format of another package raises it when rows change, so that files are
    #: read again.
    version: str = ""
