"""documents: delivered files -> batches -> raw documents, unchanged and traceable to file and row.

A *batch* is a bounded set of files, cut once and recorded in the store; what is in no batch is new,
whatever its name or time. The same ledger cuts production documents into *windows*.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fullft_assets.documents.batches import MAX_CUTS, Batch, Kind, cut_batches, is_delivered, list_batches, read_batch
from fullft_assets.documents.delivery import Look, look, source_of
from fullft_assets.documents.erasure import erased_digest, without_erased
from fullft_assets.documents.formats import ENDINGS
from fullft_assets.documents.reading import read_documents
from fullft_assets.documents.schema import COLUMNS, schema
from fullft_assets.documents.sources import Folder, S3Prefix, Source, SourceFile, open_source, scan
from fullft_assets.errors import DataError
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.use_case import UseCase

__all__ = [
    "COLUMNS",
    "FORMATS",
    "MAX_CUTS",
    "VERSION",
    "Batch",
    "Folder",
    "Kind",
    "Look",
    "S3Prefix",
    "Source",
    "SourceFile",
    "cut_batches",
    "erased_digest",
    "is_delivered",
    "keep",
    "kept",
    "key_settings",
    "list_batches",
    "look",
    "open_source",
    "read_batch",
    "read_documents",
    "scan",
    "schema",
    "source_of",
]

VERSION = "3"
#: Format by ending of a file's name.
FORMATS = ENDINGS
_CHANGED = "its newer state comes in a batch of its own"


def keep(store: Store, use_case: UseCase, name: str, kind: Kind = "batch") -> Manifest:
    """Write a batch's raw documents (a window's production documents) as an artifact.

    A file counts as it was cut. Of one that was since taken away or rewritten, what was read at its delivery
    counts if it was read with the same settings; else it is left out and named.

    Raises:
        DataError: no such batch was cut, or not one of its files can be read.
    """
    settings, batch = use_case.settings, read_batch(store, use_case.name, name, kind)
    source = source_of(use_case, kind)
    pinned = {"version": VERSION, "settings": key_settings(use_case), "seed": settings.seed}
    before = kept(store, use_case.name, name, kind)
    if before is not None and (before.version, before.settings) != (VERSION, pinned["settings"]):
        before = None
    plan = _Plan(source, batch, before)

    def write(draft: Draft) -> Outcome:
        import pyarrow.parquet as pq

        table, encodings, unreadable = plan.read(store, use_case)
        table, num_erased = without_erased(table, store, use_case.name)
        pq.write_table(table, draft.path / "documents.parquet")
        metadata = {
            "batch": name,
            "uri": source.uri,
            "num_files": len(batch.files),
            "num_bytes": batch.num_bytes,
            "num_rows": len(table),
            "num_malformed": len(table) - table["problem"].null_count,
            "num_erased": num_erased,
            "files": {file.path: file.mtime_ns for file in batch.files if _shown(file.path) not in unreadable},
            "encodings": encodings,
        }
        return metadata, [_readable_check(source, batch, unreadable)]

    return store.ensure(use_case.name, _stage(kind), write, inputs={"batch": name, "files": plan.digests()}, **pinned)


def _stage(kind: Kind) -> str:
    return "raw_documents" if kind == "batch" else "production_documents"


class _Plan:
    """Which files of a batch are read now, and which are taken from what was read before.

    Args:
        source: where the files lie.
        batch: the files.
        before: the batch's raw documents as they were read last, with the same settings, or None.
    """

    def __init__(self, source: Source, batch: Batch, before: Manifest | None):
        self.source, self.before = source, before
        #: What is left out unseen, and why.
        self.unreadable = {_shown(file.path): "its name is not UTF-8; rename it" for file in batch.files if not _is_unicode(file.path)}
        files = [file for file in batch.files if _is_unicode(file.path)]
        stands = source.statuses(file.path for file in files)
        read_before = before.metadata["files"] if before is not None else {}
        self.as_cut = [file for file in files if stands[file.path] == file]
        self.carried = [file for file in files if stands[file.path] != file and file.path in read_before]
        others = [file for file in files if stands[file.path] != file and file.path not in read_before]
        self.missing = [file for file in others if stands[file.path] is None]
        self.unreadable |= {file.path: f"changed since it was cut; {_CHANGED}" for file in others if stands[file.path] is not None}

    def digests(self) -> dict[str, str]:
        """Return what pins the content of each file: an input of the artifact's key."""
        found = {file.path: self.source.digest(file) for file in self.as_cut}
        found |= {file.path: self.before.inputs["files"][file.path] for file in self.carried if self.before is not None}
        return found | {file.path: "missing" for file in self.missing} | self.unreadable

    def read(self, store: Store, use_case: UseCase) -> tuple[pa.Table, dict[str, str], dict[str, str]]:
        """Return the batch's rows, the encodings that are not UTF-8 by path, and why a file was left out by path.

        Raises:
            DataError: not one of the files can be read.
        """
        import pyarrow as pa

        parts = [schema().empty_table()]
        encodings: dict[str, str] = {}
        unreadable = dict(self.unreadable)
        files = self.as_cut + self.missing
        if files:
            with self.source.fetched(files):
                table, encodings, found = self._read_files(files, use_case)
            unreadable |= found
            parts.append(table)
        if self.carried and self.before is not None:
            parts.append(_rows_of(store, self.before, [file.path for file in self.carried]))
        return pa.concat_tables(parts), encodings, unreadable

    def _read_files(self, files: list[SourceFile], use_case: UseCase) -> tuple[pa.Table, dict[str, str], dict[str, str]]:
        import pyarrow as pa

        settings = use_case.settings
        try:
            found = read_documents(self.source, Batch("", files), settings.documents, settings.examples)
        except DataError:
            # Half a file that was being rewritten may look like anything; what it has become is read by itself.
            changed = self._changed()
            if len(changed) < len(files):
                raise
            return schema().empty_table(), {}, changed
        changed = self._changed()
        unreadable = found.unreadable | changed
        table = found.table
        if changed:
            table = table.filter(pa.compute.invert(pa.compute.is_in(table["source"], pa.array(list(changed), pa.string()))))
        return table, {path: name for path, name in found.encodings.items() if path not in unreadable}, unreadable

    def _changed(self) -> dict[str, str]:
        stands = self.source.statuses(file.path for file in self.as_cut)
        return {file.path: f"changed while it was read; {_CHANGED}" for file in self.as_cut if stands[file.path] != file}


def _rows_of(store: Store, manifest: Manifest, paths: list[str]) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(store.folder(manifest) / "documents.parquet", filters=[("source", "in", paths)], schema=schema())


def key_settings(use_case: UseCase) -> dict[str, Any]:
    """Return the settings that shape the raw documents."""
    settings = use_case.settings
    chosen = settings.documents.model_dump(include={"format", "text", "id", "annotator", "time", "encoding"})
    return {**chosen, **settings.examples.model_dump(include={"task", "multi_label", "label", "group", "domain"})}


def kept(store: Store, case: str, name: str, kind: Kind = "batch") -> Manifest | None:
    """Return the raw documents of a batch as they were materialised last, or None."""
    pointer = store.read_pointer(f"latest/{case}/{_stage(kind)}/{name}")
    return None if pointer is None else store.load(pointer["ref"])


def _readable_check(source: Source, batch: Batch, unreadable: dict[str, str]) -> CheckOutcome:
    places = "; ".join(f"{source.uri}/{path}: {why}" for path, why in list(unreadable.items())[:5])
    more = f" and {len(unreadable) - 5:,} more" if len(unreadable) > 5 else ""
    return CheckOutcome(
        name="files_are_readable",
        passed=not unreadable,
        severity="warn",
        description=f"{places}{more}; mend and deliver again" if unreadable else "",
        metadata={"num_files": len(batch.files), "num_unreadable": len(unreadable)},
    )


def _is_unicode(path: str) -> bool:
    return path.isascii() or not any("\ud800" <= character <= "\udfff" for character in path)


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
