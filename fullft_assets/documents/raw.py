"""documents: delivered files -> batches -> raw documents, traceable to file and row; unchanged, but for
personal data that is masked.

A *batch* is a bounded set of files, cut once and recorded in the store; what is in no batch is new,
whatever its name or time. The same ledger cuts production documents into *windows*.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fullft_assets.artifacts import DOCUMENTS_FILE, PRODUCTION_DOCUMENTS, RAW_DOCUMENTS
from fullft_assets.documents.batches import Batch, Kind, read_batch
from fullft_assets.documents.delivery import source_of
from fullft_assets.documents.erasure import without_erased
from fullft_assets.documents.formats import FORMATS, encodings, name_of_format
from fullft_assets.documents.names import alias, shown_path
from fullft_assets.documents.reading import RawMetadata, ReadBatch, read_documents, schema
from fullft_assets.documents.sources import Source, SourceFile
from fullft_assets.errors import DataError
from fullft_assets.personal_data.entities import pipeline_key
from fullft_assets.personal_data.search import mask_documents, search_of
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store, digest
from fullft_assets.store.checks import CheckSpec

VERSION = "16"
READABLE = CheckSpec("files_are_readable", "Every file could be read.")
PAGES_HAVE_TEXT = CheckSpec("pages_have_text", "Every page of the PDFs has text.")
ENCODINGS_AGREE = CheckSpec(
    "encodings_agree", "The files whose encoding was detected are in the encoding of most files of the batch."
)
#: A window is one file, or a few of one feed: their encodings have none, or only each other, to agree with.
WINDOW_CHECKS = (READABLE, PAGES_HAVE_TEXT)
CHECKS = (*WINDOW_CHECKS, ENCODINGS_AGREE)
_CHANGED = "its newer state comes in a batch of its own"
_OF_EXAMPLES = ("task", "label", "label_separator", "group", "domain", "slice_by")
#: Settings that may be removed without reading again: their column of rows that were read before is emptied.
_DROPPABLE = ("group", "domain", "slice_by")


def keep(store: Store, use_case: UseCase, name: str, kind: Kind = "batch") -> Manifest:
    """Write a batch's raw documents (a window's production documents) as an artifact.

    A file counts as it was when the batch was cut. If it was deleted or rewritten since, the rows read at its
    delivery are used, provided that they have what today's settings ask for; else the file is excluded and
    named. So a batch that was read once never blocks the
    others: at worst it is empty.

    Raises:
        DataError: no such batch was cut; or not one of its files can be read, and none ever was.
    """
    batch = read_batch(store, use_case.name, name, kind)
    source = source_of(use_case, kind)
    pinned = {"version": VERSION, "settings": key_settings(use_case, kind), "seed": use_case.settings.seed}
    plan = _Plan(
        source,
        batch,
        lambda: [
            _EarlierReading(manifest, pinned["settings"])
            for manifest in _read_before(store, use_case.name, name, kind)
        ],
    )

    def write(draft: Draft) -> Outcome:
        read = plan.read(store, use_case)
        table, num_erased = without_erased(read.table, store, use_case.name)
        table, num_masked = _masked(table, use_case)
        pq.write_table(table, draft.path / DOCUMENTS_FILE)
        metadata = RawMetadata(
            batch=name,
            # What was carried over came from where it was cut, wherever the documents are today.
            uri=batch.uri or source.uri,
            num_files=len(batch.files),
            num_bytes=batch.num_bytes,
            num_rows=len(table),
            num_malformed=len(table) - table["problem"].null_count,
            num_erased=num_erased,
            num_masked=num_masked,
            files={
                file.path: file.mtime_ns
                for file in batch.files
                if shown_path(file.path) not in read.unreadable
            },
            encodings=read.encodings,
            num_files_by_encoding=dict(read.num_files_by_encoding.most_common()),
            taken_away=plan.taken_away or None,
        )
        checks = [
            _readable_check(source, batch, read.unreadable, plan.changed),
            _pages_check(source, read.pages_without_text),
        ]
        return metadata.as_dict(), [*checks, _encodings_check(source, read)] if kind == "batch" else checks

    inputs = {
        "batch": name,
        "files": plan.digests(),
        **_format_versions(batch, use_case.settings.documents.format),
    }
    manifest = store.ensure(use_case.name, _stage(kind), write, inputs=inputs, **pinned)
    _remember(store, manifest, name)
    return manifest


def _format_versions(batch: Batch, format_: str) -> dict[str, Any]:
    # Those of our formats are part of this stage's `VERSION`.
    names = {format_} if format_ != "auto" else {name_of_format(file.path) for file in batch.files}
    versions = {name: FORMATS.get(name).version for name in sorted(filter(None, names))}
    registered_versions = {name: version for name, version in versions.items() if version}
    return {"formats": registered_versions} if registered_versions else {}


def _stage(kind: Kind) -> str:
    return RAW_DOCUMENTS if kind == "batch" else PRODUCTION_DOCUMENTS


def _remember(store: Store, manifest: Manifest, name: str) -> None:
    def add(pointer: dict[str, Any] | None) -> dict[str, Any] | None:
        keys = (pointer or {"keys": []})["keys"]
        return (
            None
            if manifest.key in keys[:1]
            # Only so many are searched for a file that was deleted.
            else {"keys": [manifest.key, *(key for key in keys if key != manifest.key)][:20]}
        )

    if RawMetadata.of(manifest).files:
        store.change_pointer(f"{manifest.case}/read/{manifest.stage}/{name}", add)


def _read_before(store: Store, case: str, name: str, kind: Kind) -> list[Manifest]:
    keys = (store.read_pointer(f"{case}/read/{_stage(kind)}/{name}") or {"keys": []})["keys"]
    return [manifest for key in keys if (manifest := store.find(case, _stage(kind), key)) is not None]


@dataclass(frozen=True)
class _EarlierReading:
    manifest: Manifest
    settings: Mapping[str, Any]

    @cached_property
    def files(self) -> frozenset[str]:
        """Paths of the files that were read."""
        return frozenset(RawMetadata.of(self.manifest).files)

    @property
    def wanting(self) -> list[str]:
        """The settings that ask for something that these rows do not have."""
        was = _under_todays_keys(self.manifest.settings)
        changed_settings = [
            # Settings that define how a file is read, not what its rows mean.
            name
            for name, value in self.settings.items()
            if was.get(name) != value and name not in ("format", "encoding", "masked")
        ]
        return [
            name for name in changed_settings if name not in _DROPPABLE or self.settings[name] is not None
        ]

    def pin(self, path: str) -> str:
        """Return the pin of a file's rows: the digest of the file, with the version and settings that it was
        read with if they are not today's.
        """
        file_digest: str = self.manifest.inputs["files"][path]
        return (
            file_digest
            if (self.manifest.version, self.manifest.settings) == (VERSION, self.settings)
            else f"{file_digest}, read with {digest([self.manifest.version, self.manifest.settings])[:12]}"
        )

    def rows(self, store: Store, paths: list[str], columns: pa.Schema) -> pa.Table:
        """Return the rows of some files in these columns; columns that today's settings do not name are
        empty.
        """

        table = pq.read_table(
            store.folder(self.manifest) / DOCUMENTS_FILE,
            filters=[("source", "in", paths)],
            schema=columns,
        )
        for name in _DROPPABLE:
            if self.settings[name] is None:
                table = table.set_column(
                    table.column_names.index(name), columns.field(name), pa.nulls(len(table), pa.string())
                )
        return table


def _under_todays_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of raw documents that an earlier release read, under the keys of this release."""
    csv = dict(settings.get("csv", {}))
    header = csv.pop("header", None)
    records = settings.get("xml", {}).get("record") or settings.get("records")
    return {"header": header, **settings, "csv": csv, "records": records}


class _Plan:
    """The plan for a batch's files: which are read now, and which are taken from earlier raw documents.

    Args:
        source: where the files are.
        batch: the files.
        read_before: returns the batch's raw documents as they were read before, the last ones first.
    """

    def __init__(self, source: Source, batch: Batch, read_before: Callable[[], list[_EarlierReading]]):
        self.source = source
        self.columns = schema()
        #: Of files that are not, where their rows are taken from, by path.
        self.carried: dict[str, _EarlierReading] = {}
        #: Paths that another batch reads as they are by now: nothing is wrong with them.
        self.changed: set[str] = set()
        #: Paths that were read once, but not with what is asked for today, and are no longer there.
        self.taken_away: list[str] = []
        #: Files that are not there and never were read.
        self.missing: list[SourceFile] = []
        #: Files that are excluded without being read, and why.
        self.unreadable = {
            shown_path(file.path): "its name is not UTF-8; rename it"
            for file in batch.files
            if shown_path(file.path) != file.path
        }
        files = [file for file in batch.files if shown_path(file.path) == file.path]
        current = source.statuses(file.path for file in files)
        #: Files that are there as they were cut.
        self.as_cut = [file for file in files if current[file.path] == file]
        other_files = [file for file in files if current[file.path] != file]
        all_readings = read_before() if other_files else []
        for file in other_files:
            readings = [reading for reading in all_readings if file.path in reading.files]
            self._decide(file, readings, is_there=current[file.path] is not None)

    def _decide(self, file: SourceFile, readings: list[_EarlierReading], *, is_there: bool) -> None:
        if (complete := next((reading for reading in readings if not reading.wanting), None)) is not None:
            self.carried[file.path] = complete
        elif is_there:
            self.changed.add(file.path)
            self.unreadable[file.path] = f"changed since it was cut; {_CHANGED}"
        elif readings:
            self.taken_away.append(file.path)
            keys = ", ".join(
                f"{'examples' if name in _OF_EXAMPLES else 'documents'}.{name}"
                for name in readings[0].wanting
            )
            self.unreadable[file.path] = f"taken away since it was read with another {keys}; deliver it again"
        else:
            self.missing.append(file)

    def digests(self) -> dict[str, str]:
        """Return by path the value that identifies each file's content: an input of the artifact's key."""
        digests = {file.path: self.source.digest(file) for file in self.as_cut}
        digests |= {path: reading.pin(path) for path, reading in self.carried.items()}
        return digests | {file.path: "missing" for file in self.missing} | self.unreadable

    def read(self, store: Store, use_case: UseCase) -> ReadBatch:
        """Return the rows of the batch's files; files that are excluded without being read are among the
        unreadable ones.

        Raises:
            DataError: not one of the files can be read.
        """
        read = ReadBatch(self.columns.empty_table())
        if files := self.as_cut + self.missing:
            with self.source.fetched(files):
                read = self._read_files(files, use_case)
        tables = [read.table]
        for ref in dict.fromkeys(reading.manifest.ref for reading in self.carried.values()):
            paths = [path for path, reading in self.carried.items() if reading.manifest.ref == ref]
            tables.append(self.carried[paths[0]].rows(store, paths, self.columns))
        return replace(read, table=pa.concat_tables(tables), unreadable=self.unreadable | read.unreadable)

    def _read_files(self, files: list[SourceFile], use_case: UseCase) -> ReadBatch:
        try:
            documents_read = read_documents(
                self.source,
                Batch("", files),
                use_case.settings.documents,
                use_case.settings.examples,
                bool(self.carried or self.taken_away),
            )
        except DataError:
            # Half a file that was being rewritten may look like anything; what it has become is read by
            # itself.
            if len(changed_files := self._changed()) < len(files):
                raise
            return ReadBatch(self.columns.empty_table(), changed_files)
        return documents_read.without(self._changed())

    def _changed(self) -> dict[str, str]:
        current = self.source.statuses(file.path for file in self.as_cut)
        changed_files = {
            file.path: f"changed while it was read; {_CHANGED}"
            for file in self.as_cut
            if current[file.path] != file
        }
        self.changed |= changed_files.keys()
        return changed_files


def key_settings(use_case: UseCase, kind: Kind = "batch") -> dict[str, Any]:
    """Return the settings that shape the raw documents, or a window's production documents."""
    documents = use_case.settings.documents.model_dump(
        include={
            "format",
            "records",
            "text",
            "id",
            "annotator",
            "encoding",
            "header",
            "csv",
            "mail",
            "pdf",
        }
    )
    masked = {"masked": kinds} if (kinds := masked_kinds(use_case)) else {}
    return {
        **documents,
        **use_case.settings.examples.model_dump(include={*_OF_EXAMPLES}),
        **masked,
    }


def masked_kinds(use_case: UseCase) -> list[str] | None:
    """Return the kinds of personal data that are masked in the raw rows that are kept, and what pins the
    pipeline where one finds some.

    None: the rows are kept as delivered.
    """
    examples = use_case.settings.examples
    return (
        None
        if examples.pii != "mask" or not use_case.settings.documents.mask_raw
        else [*sorted(examples.pii_kinds), *pipeline_key(use_case).values()]
    )


def _masked(table: pa.Table, use_case: UseCase) -> tuple[pa.Table, int]:
    if masked_kinds(use_case) is None:
        return table, 0
    pieces_by_row = search_of(use_case).find_in(table)
    return mask_documents(table, pieces_by_row), len(pieces_by_row)


def was_kept(store: Store, case: str, name: str, kind: Kind = "batch") -> bool:
    """Return whether the raw documents of a batch were ever materialised."""
    return store.read_pointer(f"latest/{case}/{_stage(kind)}/{name}") is not None


def _first(lines: list[str]) -> str:
    return "; ".join(lines[:5]) + (f" and {len(lines) - 5:,} more" if len(lines) > 5 else "")


def _readable_check(
    source: Source, batch: Batch, unreadable: dict[str, str], changed_files: set[str]
) -> CheckOutcome:
    wrong = [path for path in unreadable if path not in changed_files]
    paths = [*wrong, *(path for path in unreadable if path in changed_files)]
    reasons = _first([f"{alias(path)}: {unreadable[path]}" for path in paths])
    return CheckOutcome(
        name=READABLE.name,
        passed=not wrong,
        severity="warn",
        description=(f"{source.uri}: {reasons}{'; fix and deliver again' if wrong else ''}" if paths else ""),
        metadata={
            "num_files": len(batch.files),
            "num_unreadable": len(wrong),
            "num_changed": len(changed_files),
        },
    )


def _encodings_check(source: Source, read: ReadBatch) -> CheckOutcome:
    # What is ASCII fits the others.
    numbers = Counter(
        {name: number for name, number in read.num_files_by_encoding.items() if name != encodings.ASCII}
    )
    usual = max(numbers.values(), default=0)
    rare = {
        path: name for path, name in read.encodings.items() if path in read.detected and numbers[name] < usual
    }
    by_name = {
        name: [path for path, encoding in rare.items() if encoding == name]
        for name in sorted(set(rare.values()))
    }
    counts = "; ".join(f"{len(paths):,} in {name} ({alias(paths[0])})" for name, paths in by_name.items())
    return CheckOutcome(
        name=ENCODINGS_AGREE.name,
        passed=not rare,
        severity="warn",
        description=(
            f"detected in few files: {counts}; look at these rows, and set documents.encoding where it is"
            " wrong"
            if rare
            else ""
        ),
        metadata={"num_files": len(rare)},
    )


def _pages_check(source: Source, pages: dict[str, int]) -> CheckOutcome:
    counts = _first([f"{alias(path)}: {number:,} page(s)" for path, number in pages.items()])
    return CheckOutcome(
        name=PAGES_HAVE_TEXT.name,
        passed=not pages,
        severity="warn",
        description=(
            f"{source.uri}: {counts} without text, perhaps scanned; recognise the text, such as with ocrmypdf"
            if pages
            else ""
        ),
        metadata={"num_files_with_such_pages": len(pages), "num_pages_without_text": sum(pages.values())},
    )
