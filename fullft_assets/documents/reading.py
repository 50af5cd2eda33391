"""Delivered files -> a table with one row a record, malformed ones included.

A file counts whole or not at all: one that cannot be read to its end is named with the reason, and the rest goes on.
"""

from __future__ import annotations

import codecs
import errno
import posixpath
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from fullft_assets.documents.formats import (
    ENDINGS,
    argilla,
    arrow,
    csv_rows,
    encodings,
    ending_of,
    ground_truth,
    html_text,
    json_arrays,
    json_lines,
    label_studio,
    parquet,
    pdf,
    plain,
)
from fullft_assets.documents.formats.delivered import Delivered, Unreadable
from fullft_assets.documents.formats.json_lines import Record
from fullft_assets.documents.formats.rows import Row, Wanted, rows
from fullft_assets.documents.schema import schema
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.settings import DocumentsSettings, ExamplesSettings

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.documents.batches import Batch
    from fullft_assets.documents.sources import Source, SourceFile

#: Rows, and characters of text, that stand in memory as Python objects at a time.
_PENDING_ROWS = 8192
_PENDING_CHARACTERS = 2**25
#: Objects that are fetched at a time.
_FETCHERS = 16
#: What S3 answers with (as s3fs tells it) while it is overloaded or broken.
_PASSING = (errno.EBUSY, errno.EIO, errno.EREMOTEIO, errno.ETIMEDOUT)


@dataclass(frozen=True)
class ReadBatch:
    """What a batch's files hold: a table of `schema()`; the files that cannot be read, and why; encodings other than UTF-8."""

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

    _check_encoding(documents)
    batches: list[pa.RecordBatch] = []
    unreadable: dict[str, str] = {}
    found: dict[str, str] = {}
    with pdf.TextLayers() as layers:
        reader = _Reader(source, documents, Wanted.of(documents, examples), layers)
        for file in batch.files:
            try:
                with source.local(file.path) as path:
                    file_batches, encoding = reader.read(file, path)
            except Unreadable as error:
                unreadable[file.path] = str(error)
            except OSError as error:
                unreadable[file.path] = error.strerror or type(error).__name__
            else:
                batches += file_batches
                if encoding not in (None, "utf-8-sig"):
                    found[file.path] = encoding
    if unreadable and len(unreadable) == len(batch.files) and not may_be_empty:
        path, why = next(iter(unreadable.items()))
        raise DataError(f"{source.uri.rstrip('/')}/{path}: cannot be read ({why}); mend the file and deliver it again")
    return ReadBatch(pa.Table.from_batches(batches, schema=schema()), unreadable, found)


def _check_encoding(documents: DocumentsSettings) -> None:
    if documents.encoding is None:
        return
    try:
        codecs.lookup(documents.encoding)
    except LookupError as error:
        raise SettingsError(
            f"documents.encoding: `{documents.encoding}` is no encoding; give one such as cp1252, or leave it out"
        ) from error


@dataclass(frozen=True)
class _Reader:
    """Reads the files of one batch."""

    source: Source
    documents: DocumentsSettings
    wanted: Wanted
    layers: pdf.TextLayers

    def read(self, file: SourceFile, path: Path) -> tuple[list[pa.RecordBatch], str | None]:
        """Return a file's rows, and the encoding of its text (None where it has none)."""
        with path.open("rb"):  # a folder, a dangling link or a missing right is told alike for all formats
            delivered = Delivered(path, file.path)
        container, shape = self._form(file.path)
        if container in ("text", "html", "pdf"):
            record, encoding = self._document(delivered, container)
            return _collect(rows([(1, record)], self.wanted), file), encoding
        if container in ("parquet", "arrow"):
            columns = self.wanted.fields if shape == "plain" else None
            records = (parquet if container == "parquet" else arrow).records(delivered, columns)
            return _collect(self._shaped(records, shape, file.path), file), None
        return self._decoded(delivered, container, shape, file)

    def _form(self, name: str) -> tuple[str, str]:
        """Return (container, shape): how records are written down, and what they mean (`json`: their own look tells)."""
        by_ending = ENDINGS.get(ending_of(name), "jsonl")
        form = by_ending if self.documents.format == "auto" else self.documents.format
        if form == "json":
            return "json", "json"
        if form in ("label_studio", "argilla"):
            return (by_ending if by_ending in ("csv", "parquet", "arrow") else "json"), form
        return ("jsonl", "ground_truth") if form == "ground_truth" else (form, "plain")

    def _document(self, delivered: Delivered, form: str) -> tuple[Record, str | None]:
        if form == "pdf":
            text = self.layers.read(delivered.path)
            return plain.document(delivered.name, text) if text else pdf.NO_TEXT_LAYER, None
        data = delivered.data()
        if form == "html" and len(data) > html_text.MAX_BYTES:
            raise Unreadable(f"an HTML page of more than {html_text.MAX_BYTES // 2**20} MiB")
        declared = html_text.declared_encoding(data) if form == "html" else None
        text, encoding = encodings.decode(data, self.documents.encoding, declared)
        return plain.document(delivered.name, html_text.text_of(text) if form == "html" else text), encoding

    def _decoded(self, delivered: Delivered, container: str, shape: str, file: SourceFile) -> tuple[list[pa.RecordBatch], str]:
        """Read text of records: in the encoding that is known, else as UTF-8, else in the one that is likeliest."""
        with delivered.binary() as data:
            known = encodings.of_mark(data.read(4)) or self.documents.encoding
        records = {"json": json_arrays, "csv": csv_rows}.get(container, json_lines).records

        def read(encoding: str) -> list[pa.RecordBatch]:
            decoded = replace(delivered, encoding=encoding)
            encodings.refuse_binary_file(decoded)
            return _collect(self._shaped(records(decoded), shape, file.path), file)

        encoding = known or "utf-8-sig"
        try:
            return read(encoding), encoding
        except UnicodeError:
            if known:
                raise Unreadable(encodings.complaint(delivered, known)) from None
        encoding = encodings.detect_file(delivered)
        try:
            return read(encoding), encoding
        except UnicodeError:
            raise Unreadable(encodings.complaint(delivered, "utf-8-sig")) from None

    def _shaped(self, records: Iterator[tuple[int, Record]], shape: str, name: str) -> Iterator[tuple[int, Row]]:
        if shape == "json":
            shape, records = self._look(records)
        if shape == "ground_truth":
            return ground_truth.rows(records, self.wanted, lambda references: self._fetch(name, references))
        if shape == "label_studio":
            return label_studio.rows(records, self.wanted)
        return argilla.rows(records, self.wanted) if shape == "argilla" else rows(records, self.wanted)

    def _look(self, records: Iterator[tuple[int, Record]]) -> tuple[str, Iterator[tuple[int, Record]]]:
        """Return what the first record looks like, and all of the records."""
        seen = []
        for numbered in records:
            seen.append(numbered)
            if not isinstance(numbered[1], str):
                break
        first = seen[-1][1] if seen else {}
        shape = "plain"
        if isinstance(first, dict):
            looks = {
                "label_studio": label_studio.is_task(first),
                "argilla": argilla.is_record(first),
                "ground_truth": ground_truth.is_manifest(first, self.wanted),
            }
            shape = next((name for name, fits in looks.items() if fits), "plain")
        return shape, chain(seen, records)

    def _fetch(self, manifest: str, references: list[str]) -> list[str | OSError]:
        def fetch(reference: str) -> str | OSError:
            try:
                return encodings.decode(self._bytes(manifest, reference), self.documents.encoding)[0]
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
        with self.source.local(path) as local:
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
        # A row would stay without its text once S3 answers again: the run fails instead, and a later one is whole.
        if error.errno in _PASSING or isinstance(error, TimeoutError):
            raise _not_reached(error.strerror or type(error).__name__) from error
        raise


def _not_reached(why: str) -> DataError:
    return DataError(f"source-ref: S3 cannot be reached ({why}); mend the credentials or the network")


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
