"""The ledger: which delivered files were cut into which batch (or window), recorded in the store.

A file is known by path, size and time (on S3 also by its ETag). What is in no batch is new, whatever its name
or time, so nothing is cut twice and nothing is missed: the ledger alone remembers, and a tick that dies has
either recorded a batch or not.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from fullft_assets.documents.erasure import erased_digest
from fullft_assets.documents.names import alias, shown_path
from fullft_assets.documents.sources import Folder, Source, SourceFile
from fullft_assets.errors import DataError
from fullft_assets.settings import DocumentsSettings
from fullft_assets.store import Store

Kind = Literal["batch", "window"]
#: Most batches that one look records: each is a synced write, and a sensor has a minute. The next look goes
#: on.
MAX_CUTS = 500
#: Most ingest runs that a sensor asks for in one tick; later ticks ask for the rest.
MAX_RUNS_A_TICK = 50
#: Columns of the lines of a recorded batch; a path may contain spaces, so it is the last one.
_COLUMNS = "mtime_ns bytes etag path"


@dataclass(frozen=True)
class Batch:
    """A bounded set of files that goes through the data stages together.

    `erased` has digests of the files whose documents were all erased, in place of their names (see `forget`);
    `uri` is the source that they were cut from.
    """

    name: str
    files: list[SourceFile]
    erased: frozenset[str] = frozenset()
    uri: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.bytes for file in self.files)


def list_batches(store: Store, case: str, kind: Kind = "batch") -> list[Batch]:
    """Return every batch (or window) that was ever cut for a case, oldest first."""
    keys = [(store.url, case, kind, name) for name in store.list_pointers(f"{case}/{kind}")]
    # Of a bucket, a process's first look reads thousands.
    unread = [key for key in keys if key not in _memory]
    batches = store.each(lambda key: read_batch(store, case, key[3], kind), unread)
    _memory.update(zip(unread, batches, strict=True))
    return [_memory[key] for key in keys]


def named_files(store: Store, case: str) -> list[tuple[str, str, str]]:
    """Return each delivered file as its name outside of the store (see `names`), its batch or window, and its
    path.
    """
    return [
        (alias(file.path), batch.name, shown_path(file.path))
        for kind in get_args(Kind)
        for batch in list_batches(store, case, kind)
        for file in batch.files
    ]


def read_batch(store: Store, case: str, name: str, kind: Kind = "batch") -> Batch:
    """Return one batch.

    Raises:
        DataError: no such batch was cut.
    """
    if (data := store.read_pointer(f"{case}/{kind}/{name}")) is None:
        raise DataError(f"{case}: no {kind} `{name}` was cut; let the new-documents sensor cut it")
    return Batch(
        data["name"],
        [file_of(line) for line in data["files"]],
        frozenset(data.get("erased", ())),
        data["uri"],
    )


def cut_batches(
    store: Store,
    case: str,
    where: Source | Path,
    settings: DocumentsSettings,
    kind: Kind = "batch",
    *,
    now: float | None = None,
) -> list[Batch]:
    """Cut the new and changed files of a source into batches, record them in the store, and return them.

    A late file with a lower name or an equal time is found, and a rewritten one comes again. Cutting twice
    cuts nothing the second time.

    Args:
        store: where the ledger is kept.
        case: name of the use case.
        where: the source, or its folder.
        settings: bounds of a batch, and `settle_seconds`.
        kind: what is cut.
        now: seconds since the epoch: a file written to within `settle_seconds` of it waits. Default: none
            waits.
    """
    source = Folder(where) if isinstance(where, Path) else where
    return record(store, case, settled(source, settings, now)[0], settings, kind, uri=source.uri)


def settled(
    source: Source, settings: DocumentsSettings, now: float | None
) -> tuple[list[SourceFile], list[SourceFile]]:
    """Return a source's files in two lists: the complete ones, and those written to within `settle_seconds`
    of `now`.
    """
    files = source.files()
    if now is None or not source.may_be_growing:
        return files, []
    # A time in the future (another machine's clock, a restored file) must not block a file for ever.
    now_ns = int(now * 10**9)
    least_ns = int(settings.settle_seconds * 10**9)
    young = [file for file in files if abs(now_ns - file.mtime_ns) < least_ns]
    return [file for file in files if abs(now_ns - file.mtime_ns) >= least_ns], young


def num_new(store: Store, case: str, files: Sequence[SourceFile], kind: Kind = "batch") -> int:
    """Return how many of these files are in no batch yet."""
    return len(_new_files(case, files, list_batches(store, case, kind))) if files else 0


def record(
    store: Store,
    case: str,
    files: Iterable[SourceFile],
    settings: DocumentsSettings,
    kind: Kind = "batch",
    *,
    uri: str,
    group: Callable[[list[SourceFile]], Iterator[list[SourceFile]]] | None = None,
) -> list[Batch]:
    """Record the files of the source at `uri` that are in no batch yet, and return the new batches.

    Args:
        store: where the ledger is kept.
        case: name of the use case.
        files: with `group`, iterated while nobody else records.
        settings: bounds of a batch.
        kind: what is cut.
        uri: of the source.
        group: yields the files of each batch from the new ones; each batch is recorded before the next is
            asked for. Default: batches bounded by bytes and count.
    """
    if group is None:
        files = list(files)
        if not num_new(store, case, files, kind):
            return []
    with store.alone(f"{case}/{kind}") as lease:
        batches = list_batches(store, case, kind)
        new_files = _new_files(case, files, batches)
        number = max(
            (int(digits) for batch in batches if (digits := batch.name.partition("-")[0]).isdecimal()),
            default=0,
        )
        groups = bounded(new_files, settings) if group is None else group(new_files)
        new_batches: list[Batch] = []
        for batch_files in islice(groups, MAX_CUTS):
            # The number keeps the order of delivery, the digest distinguishes batches of different stores.
            lines = [line_of(file) for file in batch_files]
            content = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
            batch = Batch(f"{number + len(new_batches) + 1:05d}-{content[:8]}", batch_files, uri=uri)
            lease.require()
            store.write_pointer(f"{case}/{kind}/{batch.name}", _recorded(batch, lines))
            new_batches.append(batch)
    return new_batches


def _new_files(case: str, files: Iterable[SourceFile], batches: list[Batch]) -> list[SourceFile]:
    recorded_files = {file for batch in batches for file in batch.files}
    digests = frozenset().union(*(batch.erased for batch in batches))
    return [
        file
        for file in files
        if file not in recorded_files and not (digests and _digest(case, file) in digests)
    ]


def forget(store: Store, case: str, paths: Collection[str], kind: Kind = "batch") -> int:
    """Take names of files out of the ledger and return from how many batches.

    A keyed digest of each stays, so that a file which is still delivered is not taken for a new one.
    """
    num_changed = 0
    if not paths:
        return num_changed
    with store.alone(f"{case}/{kind}") as lease:
        for batch in list_batches(store, case, kind):
            if forgotten_files := [file for file in batch.files if file.path in paths]:
                remaining_files = [file for file in batch.files if file.path not in paths]
                changed_batch = Batch(
                    batch.name,
                    remaining_files,
                    batch.erased | {_digest(case, file) for file in forgotten_files},
                    batch.uri,
                )
                pointer = store.read_pointer(f"{case}/{kind}/{batch.name}") or {}
                new_pointer = _recorded(changed_batch, [line_of(file) for file in remaining_files])
                lease.require()
                store.write_pointer(
                    f"{case}/{kind}/{batch.name}",
                    {**new_pointer, "cut_at": pointer.get("cut_at", new_pointer["cut_at"])},
                )
                _memory.pop((store.url, case, kind, batch.name), None)
                num_changed += 1
    return num_changed


def _digest(case: str, file: SourceFile) -> str:
    return erased_digest(case, line_of(file), "file")


def _recorded(batch: Batch, lines: list[str]) -> dict[str, Any]:
    return {
        "name": batch.name,
        "cut_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_files": len(batch.files),
        "num_bytes": batch.num_bytes,
        "uri": batch.uri,
        "columns": _COLUMNS,
        "files": lines,
        **({"erased": sorted(batch.erased)} if batch.erased else {}),
    }


def line_of(file: SourceFile) -> str:
    """Return the line of the ledger that describes a file."""
    return f"{file.mtime_ns} {file.bytes} {file.etag or '-'} {file.path}"


def file_of(line: str) -> SourceFile:
    """Return the file that a line of `line_of` describes."""
    mtime_ns, size, etag, path = line.split(" ", 3)
    return SourceFile(path, int(size), int(mtime_ns), "" if etag == "-" else etag)


#: Batches that this process has read, by store, case, kind and name: about 250 bytes a file. A batch only
#: ever loses files (see `forget`) once it is recorded, and a tick over a store on S3 must not fetch thousands
#: of them again.
_memory: dict[tuple[str, str, str, str], Batch] = {}


def bounded(files: list[SourceFile], settings: DocumentsSettings) -> Iterator[list[SourceFile]]:
    """Yield files in groups that keep the bounds of a batch."""
    group: list[SourceFile] = []
    size = 0
    for file in files:
        if group and (len(group) >= settings.max_batch_files or size + file.bytes > settings.max_batch_bytes):
            yield group
            group = []
            size = 0
        group.append(file)
        size += file.bytes
    if group:
        yield group


def is_delivered(source: Source, batch: Batch) -> bool:
    """Return whether any file of a batch is still there as it was cut: a rewritten one is in a newer
    batch.
    """
    if not batch.files:
        return False
    # Nearly always the first file is still there; only otherwise are the others looked up, many at a time.
    first, *other_files = batch.files
    if source.status(first.path) == first:
        return True
    current = source.statuses(file.path for file in other_files)
    return any(current[file.path] == file for file in other_files)
