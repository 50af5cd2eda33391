"""Delivered files -> a table with one row a record, malformed ones included.

A file is read to its end or not at all: one that cannot be read is named with the reason, and the others are
read.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from typing import Annotated, Self, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from fullft_assets.documents.batches import Batch
from fullft_assets.documents.formats import (
    FORMATS,
    Delivered,
    Format,
    Reading,
    Record,
    Unreadable,
    encodings,
    ending_of,
    name_of_format,
)
from fullft_assets.documents.formats.bounded import ReaderProcess
from fullft_assets.documents.formats.encodings import Scores
from fullft_assets.documents.formats.registered import plain_rows
from fullft_assets.documents.formats.rows import PAGES_WITHOUT_TEXT, Row, RowSettings
from fullft_assets.documents.names import alias
from fullft_assets.documents.sources import Source, SourceFile
from fullft_assets.errors import DataError
from fullft_assets.settings import DocumentsSettings, ExamplesSettings
from fullft_assets.store.metadata import Metadata, Private

#: `problem` is why a row is malformed; `delivered_ns` is its file's time: of two deliveries the later one is
#: newer.
COLUMNS = (
    "id",
    "text",
    "messages",
    "label",
    "labels",
    "spans",
    "annotations",
    "group",
    "domain",
    "slice_by",
    "confidence",
    "annotator",
    "human_annotated",
    "time",
    "source",
    "row",
    "delivered_ns",
    "problem",
)


@cache
def schema() -> pa.Schema:
    """Return the schema of `documents.parquet`; its names are `COLUMNS`."""

    types = {
        "messages": pa.list_(
            pa.struct(
                [(name, pa.string()) for name in ("role", "content", "extras")] + [("weight", pa.int8())]
            )
        ),
        "labels": pa.list_(pa.string()),
        "spans": pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())])),
        "annotations": pa.list_(pa.struct([("annotator", pa.string()), ("label", pa.string())])),
        "confidence": pa.float64(),
        "human_annotated": pa.bool_(),
        "row": pa.int64(),
        "delivered_ns": pa.int64(),
    }
    return pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])


class RawMetadata(Metadata):
    """Metadata of `raw_documents` and `production_documents`."""

    batch: str
    #: The source that the batch was cut from.
    uri: str
    num_files: int
    num_bytes: int
    num_rows: int
    num_malformed: int
    num_erased: int
    #: Rows in which personal data was masked as they were read.
    num_masked: int = 0
    #: Times of the files that were read, in nanoseconds, by path.
    files: Annotated[dict[str, int], Private.FILES]
    #: Encodings other than UTF-8, by path.
    encodings: Annotated[dict[str, str], Private.BY_FILE]
    #: Text files by encoding.
    num_files_by_encoding: dict[str, int]
    #: Files that were read once and are gone, without what today's settings ask for.
    taken_away: Annotated[list[str] | None, Private.FILES] = None


T = TypeVar("T")
#: Makes something of a file's records, given the format that defines what they mean.
Take = Callable[[Iterator[tuple[int, Record]], Format, Reading], T]
#: What the rows of a batch may take in memory, or twice its size as delivered, whichever is more: each of its
#: archives alone is bounded too.
MAX_BATCH_BYTES = 4 * 2**30


@dataclass(frozen=True)
class ReadBatch:
    """What a batch's files contain."""

    #: Of `schema()`.
    table: pa.Table
    #: Why a file cannot be read, by path.
    unreadable: dict[str, str] = field(default_factory=dict)
    #: Encodings of the text files that are neither UTF-8 nor ASCII, by path.
    encodings: dict[str, str] = field(default_factory=dict)
    #: Those of them that were detected: neither a byte order mark nor a setting nor the file itself names
    #: them.
    detected: frozenset[str] = frozenset()
    #: Text files by encoding.
    num_files_by_encoding: Counter[str] = field(default_factory=Counter)
    #: Pages without text of the PDFs that have such pages, by path.
    pages_without_text: dict[str, int] = field(default_factory=dict)

    def without(self, unreadable: Mapping[str, str]) -> Self:
        """Return the batch without some of its files, which are given with the reasons."""

        if not unreadable:
            return self
        return replace(
            self,
            table=self.table.filter(~pc.field("source").isin(list(unreadable))),
            unreadable={**self.unreadable, **unreadable},
            encodings={path: name for path, name in self.encodings.items() if path not in unreadable},
            pages_without_text={
                path: number for path, number in self.pages_without_text.items() if path not in unreadable
            },
        )


def read_documents(
    source: Source,
    batch: Batch,
    documents: DocumentsSettings,
    examples: ExamplesSettings,
    may_be_empty: bool = False,
) -> ReadBatch:
    """Read a batch's files.

    Args:
        source: where they are delivered.
        batch: the files to read.
        documents: formats, encoding and field names.
        examples: the task, and the fields of label, group and domain.
        may_be_empty: it is no error if not one file can be read.

    Returns:
        A row for each delivered record, malformed ones included, file by file in the batch's order.

    Raises:
        DataError: not one file of the batch could be read, and `may_be_empty` is false.
    """
    read: dict[str, str | None] = {}
    unreadable: dict[str, str] = {}
    undecided: dict[SourceFile, Scores] = {}
    pages: Counter[str] = Counter()
    room = bound = max(MAX_BATCH_BYTES, 2 * batch.num_bytes)
    columns = schema()
    rows = _Rows(columns)
    with FileReader(documents, examples) as reader:

        def read_file(file: SourceFile, decide: Callable[[Scores], str | None]) -> None:
            nonlocal room

            def collect(
                records: Iterator[tuple[int, Record]], meaning: Format, reading: Reading
            ) -> list[pa.RecordBatch]:
                return _collect(meaning.rows(records, reading), file, columns, pages, room, bound)

            try:
                with source.local(file.path) as path:
                    record_batches, read[file.path] = reader.read(Delivered(path, file.path), collect, decide)
                room -= rows.add(file.path, record_batches)
            except _Undecided as waiting:
                (undecided[file],) = waiting.args
            except Unreadable as error:
                unreadable[file.path] = str(error)
            except OSError as error:
                unreadable[file.path] = error.strerror or type(error).__name__

        for file in batch.files:
            read_file(file, _wait)
        for file, encoding in zip(undecided, encodings.choose(list(undecided.values())), strict=True):
            read_file(file, lambda _, encoding=encoding: encoding)
    if unreadable and len(unreadable) == len(batch.files) and not may_be_empty:
        path, why = next(iter(unreadable.items()))
        raise DataError(
            f"{source.uri.rstrip('/')}: {alias(path)} cannot be read ({why}); fix the file and deliver it"
            " again"
        )
    in_order = {file.path: read[file.path] for file in batch.files if file.path in read}
    names = {
        path: "utf-8" if name == "utf-8-sig" else name for path, name in in_order.items() if name is not None
    }
    return ReadBatch(
        rows.table(in_order),
        unreadable,
        {path: name for path, name in names.items() if name not in ("utf-8", encodings.ASCII)},
        frozenset(file.path for file in undecided),
        Counter(names.values()),
        {path: number for path, number in pages.items() if number and path in read},
    )


class _Rows:
    """The rows of files, joined a thousand record batches at a time: one of a small file takes 17 KB beside
    its rows.
    """

    def __init__(self, columns: pa.Schema) -> None:
        self._columns = columns
        self._joined: list[pa.Table] = []
        self._pending: list[pa.RecordBatch] = []
        #: First row and number of rows of each file, in the order of reading.
        self._places: dict[str, tuple[int, int]] = {}
        self._num_rows = 0

    def add(self, path: str, batches: list[pa.RecordBatch]) -> int:
        """Keep the rows of a file, and return how many bytes they take."""
        num_rows = sum(map(len, batches))
        self._places[path] = self._num_rows, num_rows
        self._num_rows += num_rows
        self._pending += batches
        if len(self._pending) >= 1_000:
            self._join()
        return sum(batch.nbytes for batch in batches)

    def _join(self) -> None:
        self._joined.append(pa.Table.from_batches(self._pending, schema=self._columns).combine_chunks())
        self._pending = []

    def table(self, paths: Collection[str]) -> pa.Table:
        """Return the rows of all files, file by file in the order of these paths."""
        self._join()
        table = pa.concat_tables(self._joined)
        return (
            table
            if list(paths) == list(self._places)
            else pa.concat_tables(
                [self._columns.empty_table(), *(table.slice(*self._places[path]) for path in paths)]
            )
        )


class _Undecided(Exception):
    """The code page of a text is not known yet: all files of the batch decide it together, by the scores of
    each file, which this has.
    """


def _wait(scores: Scores) -> str | None:
    raise _Undecided(scores)


class FileReader(AbstractContextManager["FileReader"]):
    """Reads files one after the other. A context: the process that reads most formats ends with it.

    Args:
        documents: formats, encoding and field names.
        examples: the task, and the fields of label, group and domain.
        all_fields: read all fields of a record, not only those that its row needs.
    """

    def __init__(
        self,
        documents: DocumentsSettings,
        examples: ExamplesSettings,
        *,
        all_fields: bool = False,
    ):
        self._documents = documents
        self._row_settings = RowSettings.of(documents, examples)
        self._all_fields = all_fields
        self._process = ReaderProcess()

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def formats(self, file: Delivered) -> tuple[Format, Format]:
        """Return how a file's records are written, and the format that defines what they mean.

        Raises:
            Unreadable: no format has the file's ending.
        """
        by_ending = name_of_format(file.name)
        name = by_ending if self._documents.format == "auto" else self._documents.format
        if name is None:
            raise Unreadable(
                f"no format has its ending {ending_of(file.name)}; install the package that registers it"
            )
        return (
            (meaning, meaning)
            if (meaning := FORMATS.get(name)).records is not None
            else (
                FORMATS.get(by_ending if by_ending in meaning.written_as else meaning.written_as[0]),
                meaning,
            )
        )

    def read(
        self, file: Delivered, take: Take[T], decide: Callable[[Scores], str | None] = encodings.alone
    ) -> tuple[T, str | None]:
        """Return the result of `take` on a file's records, and the encoding of its text, or None if it is no
        text.

        `take` is called again where the text turns out to be in another encoding. `decide` returns the code
        page of a text that is neither UTF-8 nor declared, by the score of each.

        Raises:
            Unreadable: the file cannot be read to its end.
            OSError: it cannot be opened.
        """
        # A folder, a dangling link or a missing right is reported alike for all formats.
        with file.path.open("rb"):
            syntax, meaning = self.formats(file)
        if syntax.max_bytes is not None and file.path.stat().st_size > syntax.max_bytes:
            raise Unreadable(f"larger than {syntax.max_bytes // 2**20:,} MiB; split it")
        reading = Reading(
            row_settings=self._row_settings,
            fields=self._row_settings.fields if meaning.rows is plain_rows and not self._all_fields else None,
            documents=self._documents,
        )

        def read(file: Delivered) -> T:
            assert syntax.records is not None, "an export names formats that have records"
            records = (
                syntax.records(file, reading)
                if syntax.is_streamed
                else self._process.records(syntax.records, file, reading)
            )
            return (
                take(*self._told_by_content(records, meaning), reading)
                if meaning.is_recognised_by_content
                else take(records, meaning, reading)
            )

        return (
            (read(file), None)
            if not syntax.is_text
            else encodings.read_text(file, self._documents.encoding, syntax.declared_encoding, read, decide)
        )

    def _told_by_content(
        self, records: Iterator[tuple[int, Record]], default: Format
    ) -> tuple[Iterator[tuple[int, Record]], Format]:
        first_records: list[tuple[int, Record]] = []
        for number, record in records:
            first_records.append((number, record))
            if isinstance(record, dict):
                for format_ in FORMATS.all().values():
                    if format_.looks_like is not None and format_.looks_like(record, self._row_settings):
                        return chain(first_records, records), format_
                break
        return chain(first_records, records), default


def _collect(
    rows: Iterable[tuple[int, Row]],
    file: SourceFile,
    columns: pa.Schema,
    pages: Counter[str],
    room: int,
    bound: int,
) -> list[pa.RecordBatch]:
    batches: list[pa.RecordBatch] = []
    for part in _parts(rows):
        pages[file.path] += sum(row.get(PAGES_WITHOUT_TEXT, 0) for _, row in part)
        batches.append(_batch(part, file, columns))
        room -= batches[-1].nbytes
        if room < 0:
            raise Unreadable(
                f"the rows of its batch take more than {bound // 2**20:,} MiB; lower"
                " documents.max_batch_files, and deliver it again"
            )
    return batches


def _parts(rows: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    part: list[tuple[int, Row]] = []
    characters = 0
    for number, row in rows:
        part.append((number, row))
        characters += len(row.get("text") or "")
        # Rows, and characters of text, that are in memory as Python objects at a time.
        if len(part) >= 8192 or characters >= (2**25):
            yield part
            part = []
            characters = 0
    if part:
        yield part


def _batch(rows: list[tuple[int, Row]], file: SourceFile, columns: pa.Schema) -> pa.RecordBatch:
    number_of_rows = len(rows)
    columns_by_name = {
        "id": pa.array([row.get("id") or f"{file.path}:{number}" for number, row in rows], pa.string()),
        "source": pa.repeat(file.path, number_of_rows),
        "row": pa.array([number for number, _ in rows], pa.int64()),
        "delivered_ns": pa.repeat(pa.scalar(file.mtime_ns, pa.int64()), number_of_rows),
    }
    # Most columns are null in most files; a look at each row's keys is cheaper than at each column's values.
    row_keys: set[str] = set().union(*(row for _, row in rows))
    for name in columns.names:
        if name not in columns_by_name:
            type_ = columns.field(name).type
            columns_by_name[name] = (
                pa.array([row.get(name) for _, row in rows], type_)
                if name in row_keys
                else pa.nulls(number_of_rows, type_)
            )
    return pa.RecordBatch.from_arrays([columns_by_name[name] for name in columns.names], schema=columns)
