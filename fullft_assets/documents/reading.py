"""Delivered files -> a table with one row a record, malformed ones included.

A file is read to its end or not at all: one that cannot be read is named with the reason, and the others are read.
"""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from fullft_assets.documents.formats import FORMATS, Delivered, Format, Reading, Record, Unreadable, encodings, ending_of, name_of_format
from fullft_assets.documents.formats.protocol import plain_rows
from fullft_assets.documents.formats.rows import Row, Wanted
from fullft_assets.documents.schema import schema
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.settings import DocumentsSettings, ExamplesSettings

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.documents.batches import Batch
    from fullft_assets.documents.sources import Source, SourceFile

T = TypeVar("T")
#: Makes something of a file's records, given the format that defines what they mean.
Take = Callable[[Iterator[tuple[int, Record]], Format, Reading], T]
#: Rows, and characters of text, that are in memory as Python objects at a time.
_PENDING_ROWS = 8192
_PENDING_CHARACTERS = 2**25
#: Objects that are fetched at a time.
_FETCHERS = 16
#: What S3 answers with (in s3fs's terms) while it is overloaded or broken.
_PASSING = (errno.EBUSY, errno.EIO, errno.EREMOTEIO, errno.ETIMEDOUT)


@dataclass(frozen=True)
class ReadBatch:
    """What a batch's files contain: a table of `schema()`; the files that cannot be read, and why; encodings other than UTF-8."""

    table: pa.Table
    unreadable: dict[str, str]
    encodings: dict[str, str]


def read_documents(
    source: Source, batch: Batch, documents: DocumentsSettings, examples: ExamplesSettings, may_be_empty: bool = False
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
        SettingsError: `documents.encoding` is no encoding.
    """
    import pyarrow as pa

    if documents.encoding is not None and not encodings.is_encoding(documents.encoding):
        raise SettingsError(f"documents.encoding: `{documents.encoding}` is no encoding; give one such as cp1252, or leave it out")
    batches: list[pa.RecordBatch] = []
    unreadable: dict[str, str] = {}
    found: dict[str, str] = {}
    with FileReader(source, documents, examples) as reader:
        for file in batch.files:

            def collect(records: Iterator[tuple[int, Record]], meaning: Format, reading: Reading, file: SourceFile = file):
                return _collect(meaning.rows(records, reading), file)

            try:
                with source.local(file.path) as path:
                    file_batches, encoding = reader.read(Delivered(path, file.path), collect)
            except Unreadable as error:
                unreadable[file.path] = str(error)
            except OSError as error:
                unreadable[file.path] = error.strerror or type(error).__name__
            else:
                batches += file_batches
                if encoding is not None and encoding != "utf-8-sig":
                    found[file.path] = encoding
    if unreadable and len(unreadable) == len(batch.files) and not may_be_empty:
        path, why = next(iter(unreadable.items()))
        raise DataError(f"{source.uri.rstrip('/')}/{path}: cannot be read ({why}); fix the file and deliver it again")
    return ReadBatch(pa.Table.from_batches(batches, schema=schema()), unreadable, found)


class FileReader:
    """Reads files of a source one after the other. A context: what the files of a format share is closed at its end.

    Args:
        source: where the files are delivered.
        documents: formats, encoding and field names.
        examples: the task, and the fields of label, group and domain.
        all_fields: read all fields of a record, not only those that its row needs.
    """

    def __init__(self, source: Source, documents: DocumentsSettings, examples: ExamplesSettings, *, all_fields: bool = False):
        self._source = source
        self._documents = documents
        self._wanted = Wanted.of(documents, examples)
        self._all_fields = all_fields
        self._stack = ExitStack()
        self._shared: dict[Any, Any] = {}

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._shared.clear()
        self._stack.close()

    def formats(self, name: str) -> tuple[Format, Format]:
        """Return how a file's records are written, and the format that defines what they mean.

        Raises:
            Unreadable: no format has the file's ending.
        """
        by_ending = name_of_format(name)
        chosen = by_ending if self._documents.format == "auto" else self._documents.format
        if chosen is None:
            raise Unreadable(f"no format has the ending {ending_of(name) or name}; install the package that registers it")
        meaning = FORMATS.get(chosen)
        if meaning.records is not None:
            return meaning, meaning
        return FORMATS.get(by_ending if by_ending in meaning.written_as else meaning.written_as[0]), meaning

    def read(self, file: Delivered, take: Take[T]) -> tuple[T, str | None]:
        """Return what `take` makes of a file's records, and the encoding of its text (None where it is no text).

        `take` is called again where the text turns out to be in another encoding.

        Raises:
            Unreadable: the file cannot be read to its end.
            OSError: it cannot be opened.
        """
        with file.path.open("rb"):  # a folder, a dangling link or a missing right is reported alike for all formats
            written, meaning = self.formats(file.name)
        if written.max_bytes is not None and file.path.stat().st_size > written.max_bytes:
            raise Unreadable(f"larger than {written.max_bytes // 2**20:,} MiB; split it")
        reading = Reading(
            wanted=self._wanted,
            fields=self._wanted.fields if meaning.rows is plain_rows and not self._all_fields else None,
            fetch=lambda references: self._fetch(file.name, references),
            shared=self._open_shared,
        )

        def read(file: Delivered) -> T:
            assert written.records is not None, "an export names formats that have records"
            records = written.records(file, reading)
            if meaning.is_told_by_content:
                return take(*self._told_by_content(records, meaning), reading)
            return take(records, meaning, reading)

        if not written.is_text:
            return read(file), None
        return encodings.read_text(file, self._documents.encoding, written.declared_encoding, read)

    def _told_by_content(self, records: Iterator[tuple[int, Record]], otherwise: Format) -> tuple[Iterator[tuple[int, Record]], Format]:
        """Return all of the records, and the format that the first one looks like."""
        seen = []
        for numbered in records:
            seen.append(numbered)
            if not isinstance(numbered[1], str):
                break
        first = seen[-1][1] if seen else None
        meaning = otherwise
        if isinstance(first, dict):
            fitting = (each for each in FORMATS.all().values() if each.looks_like is not None and each.looks_like(first, self._wanted))
            meaning = next(fitting, otherwise)
        return chain(seen, records), meaning

    def _open_shared(self, kind: Callable[[], AbstractContextManager[T]]) -> T:
        if kind not in self._shared:
            self._shared[kind] = self._stack.enter_context(kind())
        return self._shared[kind]

    def _fetch(self, manifest: str, references: list[str]) -> list[str | OSError]:
        def fetch(reference: str) -> str | OSError:
            try:
                return encodings.decode(self._bytes(manifest, reference), self._documents.encoding)
            except OSError as error:
                return error
            except Unreadable as error:
                return OSError(str(error))

        with ThreadPoolExecutor(_FETCHERS) as pool:
            return list(pool.map(fetch, references))

    def _bytes(self, manifest: str, reference: str) -> bytes:
        """Return what a reference names: an object of S3, or a file below the delivery folder, relative to its manifest."""
        if "://" in reference:
            return _object_bytes(reference)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(manifest), reference))
        if path.startswith(("/", "../")) or "\0" in path:
            raise OSError("outside of the delivery folder")
        with self._source.local(path) as local:
            return local.read_bytes()


def _object_bytes(reference: str) -> bytes:
    if not reference.startswith("s3://"):
        raise OSError("neither a path nor an s3:// address")
    bucket, _, key = reference.removeprefix("s3://").partition("/")
    if not (bucket and key):
        raise OSError("an s3:// address without a bucket or a key")
    import fsspec
    from botocore.exceptions import BotoCoreError, ParamValidationError

    try:
        return fsspec.filesystem("s3").cat_file(f"{bucket}/{key}")
    except ParamValidationError as error:
        raise OSError("not an address that S3 knows") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object") from error
    except BotoCoreError as error:
        raise _not_reached(type(error).__name__) from error
    except OSError as error:
        # The row would have no text even once S3 answers again: the run fails instead, and a later one reads all of it.
        if error.errno in _PASSING or isinstance(error, TimeoutError):
            raise _not_reached(error.strerror or type(error).__name__) from error
        raise


def _not_reached(why: str) -> DataError:
    return DataError(f"source-ref: S3 cannot be reached ({why}); fix the credentials or the network")


def _collect(numbered: Iterable[tuple[int, Row]], file: SourceFile) -> list[pa.RecordBatch]:
    """Return the rows of a file as record batches of `schema()`."""
    batches, pending, characters = [], [], 0
    for number, row in numbered:
        pending.append((number, row))
        characters += len(row.get("text") or "")
        if len(pending) >= _PENDING_ROWS or characters >= _PENDING_CHARACTERS:
            batches.append(_batch(pending, file))
            pending, characters = [], 0
    return [*batches, _batch(pending, file)] if pending else batches


def _batch(numbered: list[tuple[int, Row]], file: SourceFile) -> pa.RecordBatch:
    import pyarrow as pa

    number_of_rows = len(numbered)
    made = {
        "id": pa.array([row.get("id") or f"{file.path}:{number}" for number, row in numbered], pa.string()),
        "source": pa.repeat(file.path, number_of_rows),
        "row": pa.array([number for number, _ in numbered], pa.int64()),
        "delivered_ns": pa.repeat(pa.scalar(file.mtime_ns, pa.int64()), number_of_rows),
    }
    # Most columns are null in most files; a look at each row's keys is cheaper than at each column's values.
    used: set[str] = set().union(*(row for _, row in numbered))
    for name in schema().names:
        if name not in made:
            type_ = schema().field(name).type
            made[name] = pa.array([row.get(name) for _, row in numbered], type_) if name in used else pa.nulls(number_of_rows, type_)
    return pa.RecordBatch.from_arrays([made[name] for name in schema().names], schema=schema())
