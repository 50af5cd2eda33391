"""The protocol of a format, and the registered formats, found by name and by a file's ending.

A format has its endings, its limits, and how its files become records and rows.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from fullft_assets.documents.formats.delivered import Delivered, Record, compression_of, ending_of
from fullft_assets.documents.formats.rows import Row, RowSettings, row_of, rows
from fullft_assets.errors import SettingsError
from fullft_assets.registry import Registry
from fullft_assets.settings import DocumentsSettings


def _no_step() -> None:
    pass


@dataclass(frozen=True)
class Reading:
    """What a format may use beside the file that it reads."""

    #: The fields that the settings name, and what the task needs of them.
    row_settings: RowSettings
    #: Fields that may be read of a record, for a format that can leave the others out. None: all.
    fields: Collection[str] | None
    #: The settings of the formats, and the encoding of text.
    documents: DocumentsSettings
    #: Reports that reading goes on: the time for one step begins anew. Each record does so, too.
    advance: Callable[[], None] = _no_step


def plain_rows(records: Iterable[tuple[int, Record]], reading: Reading) -> Iterator[tuple[int, Row]]:
    """Yield (row number, row) of records whose fields are plain."""
    return rows(records, partial(row_of, settings=reading.row_settings))


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
    #: Reading takes so long that `fullft check` reads only a few files.
    is_slow: bool = False
    #: Returns the encoding that the first bytes of a text declare; UTF-8 is tried before it.
    declared_encoding: Callable[[bytes], str | None] | None = None
    #: Names of the formats that an export comes in, by the file's ending; the first one for any other ending.
    written_as: tuple[str, ...] = ()
    #: Returns whether a record looks like one of this format, which distinguishes the formats of .json files.
    looks_like: Callable[[dict[str, Any], RowSettings], bool] | None = None
    #: The first record of a file decides what its records mean: see `looks_like`.
    is_recognised_by_content: bool = False
    #: The field that contains the text where `documents.text` names none.
    text: str = "text"
    #: Version of what it reads. A format of another package raises it when rows change, so that files are
    #: read again.
    version: str = ""


_HERE = "fullft_assets.documents.formats"
#: Of a .json file the first format whose `looks_like` fits is taken.
FORMATS: Registry[Format] = Registry(
    "format",
    "fullft_assets.formats",
    {
        "label_studio": f"{_HERE}.annotations:LABEL_STUDIO",
        "argilla": f"{_HERE}.annotations:ARGILLA",
        "ground_truth": f"{_HERE}.annotations:GROUND_TRUTH",
        "jsonl": f"{_HERE}.json_records:JSON_LINES",
        "json": f"{_HERE}.json_records:JSON",
        "csv": f"{_HERE}.tables:CSV",
        "parquet": f"{_HERE}.columnar:PARQUET",
        "text": f"{_HERE}.markup:TEXT",
        "html": f"{_HERE}.markup:HTML",
        "pdf": f"{_HERE}.office:PDF",
        "docx": f"{_HERE}.office:DOCX",
        "xlsx": f"{_HERE}.tables:XLSX",
        "eml": f"{_HERE}.mail:EML",
        "mbox": f"{_HERE}.mail:MBOX",
        "rtf": f"{_HERE}.office:RTF",
        "xml": f"{_HERE}.markup:XML",
        "kreuzberg": f"{_HERE}.office:KREUZBERG",
    },
)


@cache
def formats_by_ending() -> dict[str, str]:
    """Return the name of the format by ending.

    Raises:
        SettingsError: two formats have the same ending, or another package's format cannot be imported.
    """
    names: dict[str, str] = {}
    for name, format_ in FORMATS.all().items():
        for ending in format_.endings:
            if ending in names:
                raise SettingsError(
                    f"format {name}: {ending} is an ending of the format {names[ending]} too; remove one of"
                    " the two packages"
                )
            names[ending] = name
    return names


def name_of_format(name: str) -> str | None:
    """Return the name of the format of a file by its ending, or None."""
    return formats_by_ending().get(ending_of(name))


def format_of(name: str) -> Format | None:
    """Return the format of a file by its ending, or None."""
    return None if (format_name := name_of_format(name)) is None else FORMATS.get(format_name)


def is_readable(name: str) -> bool:
    """Return whether files of such a name are read: by its ending, packed or not."""
    format_ = format_of(name)
    return format_ is not None and (compression_of(name) is None or format_.may_be_compressed)


def reads_any_ending(format_: str) -> bool:
    """Return whether a value of `documents.format` names a format whose files are one document each: then
    every file is read, whatever its ending.
    """
    return format_ in FORMATS and FORMATS.get(format_).is_whole_file


def is_whole_file(name: str) -> bool:
    """Return whether a file of such a name is one document."""
    return (format_ := format_of(name)) is not None and format_.is_whole_file


def known_endings() -> str:
    """Return all endings in words, for a message."""
    return ", ".join(formats_by_ending())
