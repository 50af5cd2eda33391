"""documents: delivered files -> batches -> raw documents, unchanged and traceable to file and row.

A *batch* is a bounded set of files, cut once and recorded in the store; what is in no batch is new,
whatever its name or time. The same ledger cuts production documents into *windows*.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from fullft_assets.errors import DataError
from fullft_assets.settings import DocumentsSettings
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.use_case import UseCase

VERSION = "2"
#: Columns of `documents.parquet`, one row a delivered row. `problem` says why a row is malformed.
COLUMNS = ("id", "text", "label", "confidence", "group", "source", "row", "problem")
FORMATS = {".manifest": "ground_truth", ".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv"}
Kind = Literal["batch", "window"]

csv.field_size_limit(2**31 - 1)


class SourceFile(BaseModel):
    """One delivered file as it stood when its batch was cut."""

    model_config = ConfigDict(frozen=True)

    path: str
    bytes: int
    mtime_ns: int


class Batch(BaseModel):
    """A bounded set of files that goes through the data stages together."""

    model_config = ConfigDict(frozen=True)

    name: str
    files: list[SourceFile]


def scan(folder: Path) -> list[SourceFile]:
    """Return the readable-by-ending files below a folder, sorted by path; hidden and partial ones are left out.

    Linked folders are followed. A dangling link is a file as well: reading it says what is wrong.

    Raises:
        DataError: there is no such folder, or one below it cannot be listed.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: folder not found; deliver the documents there or mend documents.path")
    found = []
    seen = {folder.resolve()}
    for directory, subfolders, names in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        subfolders[:] = [name for name in sorted(subfolders) if not name.startswith(".") and _is_new_folder(Path(directory, name), seen)]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in FORMATS:
                path = Path(directory, name)
                try:
                    status = path.stat() if path.exists() else path.lstat()
                except FileNotFoundError:  # removed since the folder was listed
                    continue
                relative = path.relative_to(folder).as_posix()
                found.append(SourceFile(path=relative, bytes=status.st_size, mtime_ns=status.st_mtime_ns))
    return sorted(found, key=lambda file: file.path)


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename}: folder cannot be listed ({error.strerror}); mend its permissions") from error


def _is_new_folder(path: Path, seen: set[Path]) -> bool:
    # A link to a folder above would be walked for ever.
    real = path.resolve()
    if real in seen:
        return False
    seen.add(real)
    return True


def list_batches(store: Store, case: str, kind: Kind = "batch") -> list[Batch]:
    """Return every batch (or window) that was ever cut for a case, oldest first."""
    folder = f"{case}/{kind}"
    return [Batch.model_validate(store.read_pointer(f"{folder}/{name}")) for name in store.list_pointers(folder)]


def read_batch(store: Store, case: str, name: str, kind: Kind = "batch") -> Batch:
    """Return one batch.

    Raises:
        DataError: no such batch was cut.
    """
    data = store.read_pointer(f"{case}/{kind}/{name}")
    if data is None:
        raise DataError(f"{case}: no {kind} `{name}` was cut; let the new-documents sensor cut it")
    return Batch.model_validate(data)


def cut_batches(store: Store, case: str, folder: Path, settings: DocumentsSettings, kind: Kind = "batch") -> list[Batch]:
    """Cut the new and changed files into batches, record them in the store, and return those just cut.

    A file is known by path, size and time, so a late file with a lower name or an equal time is
    found, and a rewritten one comes again. Cutting twice cuts nothing the second time.
    """
    batches = list_batches(store, case, kind)
    known = {(file.path, file.bytes, file.mtime_ns) for batch in batches for file in batch.files}
    new = [file for file in scan(folder) if (file.path, file.bytes, file.mtime_ns) not in known]
    cut = []
    for files in _bounded(new, settings):
        # The number keeps the order of delivery, the digest tells batches of different stores apart.
        content = hashlib.sha256("\n".join(file.model_dump_json() for file in files).encode()).hexdigest()
        batch = Batch(name=f"{len(batches) + len(cut) + 1:05d}-{content[:8]}", files=files)
        store.write_pointer(f"{case}/{kind}/{batch.name}", batch.model_dump())
        cut.append(batch)
    return cut


def _bounded(files: list[SourceFile], settings: DocumentsSettings) -> Iterator[list[SourceFile]]:
    group: list[SourceFile] = []
    size = 0
    for file in files:
        if group and (len(group) >= settings.max_batch_files or size + file.bytes > settings.max_batch_bytes):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.bytes
    if group:
        yield group


def is_delivered(folder: Path, batch: Batch) -> bool:
    """Return whether any file of a batch still lies there as it was cut: a rewritten one is in a newer batch."""
    for file in batch.files:
        try:
            found = (folder / file.path).stat()
        except OSError:
            continue
        if (found.st_size, found.st_mtime_ns) == (file.bytes, file.mtime_ns):
            return True
    return False


def keep(store: Store, use_case: UseCase, name: str, kind: Kind = "batch") -> Manifest:
    """Write a batch's raw documents (a window's production documents) as an artifact.

    Of files that were since taken away or rewritten, what was read at their delivery counts.

    Raises:
        DataError: no such batch was cut, or not one of its files can be read.
    """
    settings, batch = use_case.settings, read_batch(store, use_case.name, name, kind)
    path = settings.documents.path if kind == "batch" else settings.monitoring.path
    folder = use_case.resolve(path)
    stage = "raw_documents" if kind == "batch" else "production_documents"
    pinned = {"version": VERSION, "settings": key_settings(use_case), "seed": settings.seed}
    if not is_delivered(folder, batch):
        before = kept(store, use_case.name, name, kind)
        if before is not None and before.version == VERSION and before.settings == pinned["settings"]:
            return before

    def write(draft: Draft) -> Outcome:
        import pyarrow.parquet as pq

        table, unreadable = read_documents(folder, batch, settings.documents, label=settings.examples.label, group=settings.examples.group)
        pq.write_table(table, draft.path / "documents.parquet")
        malformed = len(table) - table["problem"].null_count
        metadata = {
            "batch": name,
            "num_files": len(batch.files),
            "num_bytes": sum(file.bytes for file in batch.files),
            "num_rows": len(table),
            "num_malformed_rows": malformed,
            "files": [file.path for file in batch.files if file.path not in unreadable],
        }
        return metadata, [_readable_check(folder, batch, unreadable)]

    return store.ensure(use_case.name, stage, write, inputs={"batch": name, "files": file_digests(folder, batch)}, **pinned)


def key_settings(use_case: UseCase) -> dict[str, Any]:
    """Return the settings that shape the raw documents."""
    settings = use_case.settings
    chosen = settings.documents.model_dump(include={"format", "text", "id"})
    return {**chosen, "label": settings.examples.label, "group": settings.examples.group}


def kept(store: Store, case: str, name: str, kind: Kind = "batch") -> Manifest | None:
    """Return the raw documents of a batch as they were materialised last, or None."""
    stage = "raw_documents" if kind == "batch" else "production_documents"
    pointer = store.read_pointer(f"latest/{case}/{stage}/{name}")
    return None if pointer is None else store.load(pointer["ref"])


def _readable_check(folder: Path, batch: Batch, unreadable: dict[str, str]) -> CheckOutcome:
    places = "; ".join(f"{folder / path}: {why}" for path, why in list(unreadable.items())[:5])
    return CheckOutcome(
        name="files_are_readable",
        passed=not unreadable,
        severity="warn",
        description=f"{places}; mend and deliver again" if unreadable else "",
        metadata={"num_files": len(batch.files), "num_unreadable": len(unreadable)},
    )


def file_digests(folder: Path, batch: Batch) -> dict[str, str]:
    """Return the sha256 of each file of a batch by relative path, or `unreadable: why`."""
    digests = {}
    for file in batch.files:
        try:
            with (folder / file.path).open("rb") as handle:
                digests[file.path] = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            digests[file.path] = f"unreadable: {error.strerror}"
    return digests


def read_documents(
    folder: Path, batch: Batch, settings: DocumentsSettings, *, label: str | None, group: str | None
) -> tuple[pa.Table, dict[str, str]]:
    """Read a batch's files.

    Args:
        folder: the delivery folder that the batch's paths are relative to.
        batch: the files to read.
        settings: formats and field names.
        label: field with the label, or None where labels are not expected.
        group: field with the group, or None.

    Returns:
        A table with `COLUMNS`, one row for each delivered row, malformed ones included; and the
        files that could not be read at all, with the reason.

    Raises:
        DataError: not one file of the batch could be read.
    """
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    for file in batch.files:
        try:
            # A file counts whole or not at all: what stands before the broken byte is no delivery.
            rows.extend(list(_read_file(folder / file.path, file.path, settings, label, group)))
        except OSError as error:
            unreadable[file.path] = error.strerror or type(error).__name__
        except UnicodeDecodeError:
            unreadable[file.path] = f"not UTF-8 on line {_first_bad_line(folder / file.path)}"
        except csv.Error as error:
            unreadable[file.path] = f"not CSV: {error}"
    if unreadable and len(unreadable) == len(batch.files):
        path, why = next(iter(unreadable.items()))
        raise DataError(f"{folder / path}: cannot be read ({why}); mend the file and deliver it again")
    schema = pa.schema([(name, pa.float64() if name == "confidence" else pa.int64() if name == "row" else pa.string()) for name in COLUMNS])
    return pa.Table.from_pylist(rows, schema=schema), unreadable


def _first_bad_line(path: Path) -> int:
    # The decoder's own position counts from the start of its buffer, which helps nobody.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return number


def _read_file(path: Path, relative: str, settings: DocumentsSettings, label: str | None, group: str | None) -> Iterator[dict[str, Any]]:
    form = settings.format if settings.format != "auto" else FORMATS[path.suffix.lower()]
    records = _csv_records(path) if form == "csv" else _json_records(path)
    text_field = settings.text or ("source" if form == "ground_truth" else "text")
    for number, record in records:
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"id": f"{relative}:{number}", "source": relative, "row": number}
        if isinstance(record, str):
            yield row | {"problem": record}
            continue
        text = record.get(text_field)
        if text is not None and not isinstance(text, str):
            row["problem"] = f"field `{text_field}` is not text"
        elif text_field not in record:
            hint = " (source-ref is not read)" if "source-ref" in record else ""
            row["problem"] = f"no field `{text_field}`{hint}"
        else:
            row["text"] = text
        if record.get(settings.id) not in (None, ""):
            row["id"] = str(record[settings.id])
        if group is not None and record.get(group) not in (None, ""):
            row["group"] = str(record[group])
        if label is not None:
            row |= _label_of(record, label, form)
        yield row


def _label_of(record: dict[str, Any], field: str, form: str) -> dict[str, Any]:
    value = record.get(field)
    confidence = record.get("confidence")
    if form == "ground_truth" and field in record:
        # An attribute is an index or a name; its metadata holds the class name.
        about = record.get(f"{field}-metadata")
        about = about if isinstance(about, dict) else {}
        value = about.get("class-name", value)
        confidence = about.get("confidence")
    found: dict[str, Any] = {"label": None if value is None or value == "" or isinstance(value, list | dict) else str(value)}
    if confidence is not None and confidence != "":
        try:
            found["confidence"] = float(confidence)  # CSV has nothing but text
        except (TypeError, ValueError):
            found["problem"] = "confidence is not a number"
    return found


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, f"not JSON: {str(error).splitlines()[0]}"
                continue
            if not isinstance(record, dict):
                yield number, "not a JSON object"
            elif "\\ud" in line.lower() and not _is_unicode(record):
                yield number, "not Unicode: half of a surrogate pair"
            else:
                yield number, record


def _is_unicode(record: dict[str, Any]) -> bool:
    # JSON may escape half of a UTF-16 pair, which is no character and cannot be stored as UTF-8.
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] = []
        line = 1
        try:
            for fields in reader:
                # A record is named by the line that it starts on, where a person looks for it.
                line, start = reader.line_num + 1, line
                if not fields:
                    continue
                if not header:
                    header = fields
                elif len(fields) != len(header):
                    yield start, f"has {'more' if len(fields) > len(header) else 'fewer'} fields than the header"
                else:
                    yield start, dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise csv.Error(f"{error}, in the row that starts on line {line}") from error
