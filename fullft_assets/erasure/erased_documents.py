"""The documents that an erasure is about: those of its list, and all with a tombstone."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.artifacts import (
    DOCUMENTS_FILE,
    EXAMPLES_FILE,
    GENERAL_DOCUMENTS,
    LABELED_EXAMPLES,
    PRODUCTION_DOCUMENTS,
    QUARANTINED_EXAMPLES,
    RAW_DOCUMENTS,
    REPLAY_DOCUMENTS,
)
from fullft_assets.documents import RawMetadata
from fullft_assets.documents.erasure import (
    By,
    erased_digest,
    has_made_up_id,
    is_erased,
    read_tombstones,
    row_digests,
    write_tombstones,
)
from fullft_assets.documents.formats import is_whole_file
from fullft_assets.documents.formats.labels import group_key
from fullft_assets.errors import DataError, StoreError
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.snapshot.frozen_batches import DRAWN
from fullft_assets.store import Manifest, Store

#: The tables that hold documents with their texts.
DOCUMENTS = {
    RAW_DOCUMENTS: DOCUMENTS_FILE,
    PRODUCTION_DOCUMENTS: DOCUMENTS_FILE,
    LABELED_EXAMPLES: EXAMPLES_FILE,
    QUARANTINED_EXAMPLES: "quarantined.parquet",
    GENERAL_DOCUMENTS: EXAMPLES_FILE,
    REPLAY_DOCUMENTS: EXAMPLES_FILE,
}
#: Of these stages the ones that were drawn for snapshots, with what a snapshot calls them.
GENERAL = {f"{kind}_documents": kind for kind in DRAWN}
_NAMES_FILES = {
    RAW_DOCUMENTS: RawMetadata,
    PRODUCTION_DOCUMENTS: RawMetadata,
    LABELED_EXAMPLES: ExamplesMetadata,
}


@dataclass
class ErasedDocuments:
    """The documents with a tombstone, and what artifacts have of them.

    Attributes:
        ids: those that they have, made-up ones among them.
        texts: as reports may show them.
        paths: names of files all of whose documents were erased.
        artifacts: content digests of the tables that hold one.
        windows: production windows that hold one, by `Manifest.ref` without the attempt.
    """

    case: str
    tombstones: Collection[str]
    ids: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    artifacts: set[str] = field(default_factory=set)
    windows: set[str] = field(default_factory=set)

    def rows(self, table: pa.Table) -> np.ndarray:
        """Return which rows [n] of a table of documents have a tombstone."""
        return is_erased(self.case, table, self.tombstones)

    def named(self, ids: Iterable[str]) -> set[str]:
        """Return which of some ids an erased document has: the filter of tables without the documents
        themselves. A made-up id may name a second document there, which goes as well.
        """
        table = pa.table({"id": pa.array(sorted(set(ids)), pa.string())})
        return {
            *table.filter(pa.array(self.rows(table)))["id"].to_pylist(),
            *self.ids.intersection(table["id"].to_pylist()),
        }

    def add(self, manifest: Manifest, documents: pa.Table) -> None:
        """Note the erased documents of a table."""
        if not len(documents):
            return
        self.artifacts.add(manifest.content_digest)
        self.ids.update(documents["id"].to_pylist())
        self.texts.update(text for text in documents["text"].to_pylist() if text)
        if manifest.stage == PRODUCTION_DOCUMENTS:
            self.windows.add(key_ref(manifest.ref))


def whole_artifacts(store: Store, case: str, stage: str) -> Iterator[tuple[Manifest, Path]]:
    """Yield the artifacts of a stage, each with its folder, but for those whose files a clean-up removed."""
    for manifest in store.artifacts(case, stage):
        try:
            yield manifest, store.folder(manifest)
        except StoreError:
            continue


def key_ref(ref: str) -> str:
    """Return the part of a ref that names the artifact, whichever attempt."""
    return ref.rsplit("/", 1)[0]


def gather(store: Store, case: str, reason: str) -> ErasedDocuments:
    """Look at all documents with a tombstone before any is gone: their texts, and the files that held nothing
    else.
    """
    erased_documents = ErasedDocuments(case, read_tombstones(store, case))
    sources: set[str] = set()
    sources_kept: set[str] = set()
    sources_named: set[str] = set()
    general_sources: set[str] = set()
    for stage, file in DOCUMENTS.items():
        for manifest, folder in whole_artifacts(store, case, stage):
            table = pq.read_table(folder / file)
            hit = erased_documents.rows(table)
            documents = table.filter(hit)
            erased_documents.add(manifest, documents)
            if stage in GENERAL:
                # Their files are elsewhere, though under the same names, and not all that these hold was
                # drawn.
                general_sources.update(documents["source"].to_pylist())
                continue
            # Of all deliveries: a file's name is needed as long as rows of any delivery of it are there.
            sources.update(documents["source"].to_pylist())
            sources_kept.update(pc.unique(table["source"].filter(~hit)).to_pylist())
            if stage in _NAMES_FILES:
                sources_named.update(_NAMES_FILES[stage].of(manifest).files)
    # A snapshot's inputs name general files that were one document.
    digests = [erased_digest(case, path, "general file") for path in general_sources if is_whole_file(path)]
    digests += [erased_digest(case, path, "file") for path in sources - sources_kept]
    write_tombstones(store, case, sorted(digests), by="id", reason=reason)
    # The others are of files that were read again since then and held nothing but erased documents.
    erased_documents.paths = (sources - sources_kept) | {
        path
        for path in sources_named - sources_kept
        if erased_digest(case, path, "file") in erased_documents.tombstones
    }
    return erased_documents


def read_list(path: Path) -> dict[str, int]:
    """Return the lines of an erasure list with their numbers: one id or group each, as it is there; without
    blank ones.

    Raises:
        DataError: the file cannot be read, or is empty.
    """
    try:
        # Not splitlines: an id may hold what that takes for the end of a line.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a text file with one document id a line"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8; give a text file with one document id a line") from error
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            numbers.setdefault(line.removesuffix("\r"), number)
    if not numbers:
        raise DataError(f"{path}: empty; give one document id a line")
    return numbers


@dataclass
class _ListedDocuments:
    """What an erasure list means here.

    Attributes:
        values: ids (or groups) that documents of the store have.
        digests: of these, and of their documents.
        before: listed, and no longer in the store: an earlier list had them.
        missing: listed, and never in the store as far as it is known.
    """

    values: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    before: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def search(store: Store, case: str, list_lines: Iterable[str], by: By) -> _ListedDocuments:
    """Find the documents that a list names.

    A line is an id exactly as it is, else without the white space around it, else the name of a file that is
    one document; or a group in any of its spellings.
    """
    lines = list(dict.fromkeys(list_lines))
    tables = list(_hits(store, case, {form for line in lines for form in _forms(line, by)}, by))
    values = {value for table in tables for value in table[by].to_pylist()}
    ids: dict[str, set[str]] = {}
    for table in tables if by == "id" else ():
        for source, id_ in zip(table["source"].to_pylist(), table["id"].to_pylist(), strict=True):
            ids.setdefault(source, set()).add(id_)
    tombstones = read_tombstones(store, case)
    documents = _ListedDocuments()
    for line in lines:
        forms = _forms(line, by)
        # A file that was read by its content, whatever its ending, may have several rows.
        of_files = [f"{form}:1" for form in forms if ids.get(form) == {f"{form}:1"}]
        value = next((form for form in [*forms, *of_files] if form in values), None)
        erased_forms = [*forms, *(f"{form}:1" for form in forms if by == "id")]
        if value is not None:
            documents.values.add(value)
            documents.digests.add(erased_digest(case, value, by))
        elif any(erased_digest(case, form, by) in tombstones for form in erased_forms):
            documents.before.append(line)
        else:
            documents.missing.append(line)
            documents.digests.update(erased_digest(case, form, by) for form in forms)
    for table in tables:
        table = table.filter(pc.is_in(table[by], pa.array(sorted(documents.values), pa.string())))
        made_up = has_made_up_id(table)
        if by == "group":
            # The group keeps out the others: their ids would keep out the document that is there next.
            documents.digests.update(
                erased_digest(case, id_) for id_ in table["id"].filter(pa.array(~made_up)).to_pylist()
            )
        else:
            documents.digests.update(row_digests(case, table.filter(pa.array(made_up))))
    return documents


def _forms(line: str, by: By) -> list[str]:
    return [group_key(line)] if by == "group" else list(dict.fromkeys((line, line.strip())))


def _hits(store: Store, case: str, forms: set[str], by: By) -> Iterator[pa.Table]:
    """Yield the rows of all tables that have one of these ids (or groups), or are of a file of that name."""
    values = pa.array(sorted(forms), pa.string())
    for stage, file in DOCUMENTS.items():
        for _, folder in whole_artifacts(store, case, stage):
            table = pq.read_table(folder / file, columns=[by, "source"])
            hit = pc.or_(pc.is_in(table[by], values), pc.is_in(table["source"], values))
            if pc.any(hit).as_py():
                yield pq.read_table(folder / file).filter(hit)
