"""The documents with a tombstone, found in every table that holds documents before any of them is gone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fullft_assets.documents import RawMetadata
from fullft_assets.documents.erasure import erased_digest, is_erased, read_tombstones, write_tombstones
from fullft_assets.documents.formats import is_whole_file
from fullft_assets.errors import StoreError
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.snapshot.frozen_batches import DRAWN
from fullft_assets.store import Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa

#: The tables that hold documents with their texts.
DOCUMENTS = {
    "raw_documents": "documents.parquet",
    "production_documents": "documents.parquet",
    "labeled_examples": "examples.parquet",
    "quarantined_examples": "quarantined.parquet",
    "general_documents": "examples.parquet",
    "replay_documents": "examples.parquet",
}
#: Of these stages the ones that were drawn for snapshots, with what a snapshot calls them.
GENERAL = {f"{kind}_documents": kind for kind in DRAWN}
_NAMES_FILES = {
    "raw_documents": RawMetadata,
    "production_documents": RawMetadata,
    "labeled_examples": ExamplesMetadata,
}


@dataclass
class ErasedDocuments:
    """The documents with a tombstone, and what artifacts have of them.

    Attributes:
        ids: those that they have, made-up ones among them.
        texts: as reports may show them.
        paths: names of files all of whose documents were erased.
        artifacts: content digests of the tables that hold one.
        places: file and row of each in a production window, by the window's `Manifest.ref` without the
            attempt.
    """

    case: str
    tombstones: Collection[str]
    ids: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    artifacts: set[str] = field(default_factory=set)
    places: dict[str, set[tuple[str, int]]] = field(default_factory=dict)

    def rows(self, table: pa.Table) -> np.ndarray:
        """Return which rows [n] of a table of documents have a tombstone."""
        return is_erased(self.case, table, self.tombstones)

    def named(self, ids: Iterable[str]) -> set[str]:
        """Return which of some ids an erased document has: the filter of tables without the documents
        themselves. A made-up id may name a second document there, which goes as well.
        """
        import pyarrow as pa

        table = pa.table({"id": pa.array(sorted(set(ids)), pa.string())})
        has_tombstone = table.filter(pa.array(self.rows(table)))["id"].to_pylist()
        return {*has_tombstone, *self.ids.intersection(table["id"].to_pylist())}

    def add(self, manifest: Manifest, documents: pa.Table) -> None:
        """Note the erased documents of a table."""
        if not len(documents):
            return
        self.artifacts.add(manifest.content_digest)
        self.ids.update(documents["id"].to_pylist())
        self.texts.update(text for text in documents["text"].to_pylist() if text)
        if manifest.stage == "production_documents":
            places = zip(documents["source"].to_pylist(), documents["row"].to_pylist(), strict=True)
            self.places.setdefault(key_ref(manifest.ref), set()).update(places)


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
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    erased = ErasedDocuments(case, read_tombstones(store, case))
    sources: set[str] = set()
    sources_kept: set[str] = set()
    sources_named: set[str] = set()
    general: list[pa.Table] = []
    for stage, file in DOCUMENTS.items():
        for manifest, folder in whole_artifacts(store, case, stage):
            table = pq.read_table(folder / file)
            hit = erased.rows(table)
            documents = table.filter(hit)
            erased.add(manifest, documents)
            if stage in GENERAL:
                # Their files are elsewhere, though under the same names, and not all that these hold was
                # drawn.
                general.append(documents)
                continue
            # Of all deliveries: a file's name is needed as long as rows of any delivery of it are there.
            sources.update(documents["source"].to_pylist())
            sources_kept.update(pc.unique(table["source"].filter(~hit)).to_pylist())
            if stage in _NAMES_FILES:
                sources_named.update(_NAMES_FILES[stage].of(manifest).files)
    # A snapshot's inputs name general files that were one document.
    general_sources = {source for table in general for source in table["source"].to_pylist()}
    digests = [erased_digest(case, path, "general file") for path in general_sources if is_whole_file(path)]
    digests += [erased_digest(case, path, "file") for path in sources - sources_kept]
    write_tombstones(store, case, sorted(digests), by="id", reason=reason)
    # The others are of files that were read again since then and held nothing but erased documents.
    erased.paths = (sources - sources_kept) | {
        path
        for path in sources_named - sources_kept
        if erased_digest(case, path, "file") in erased.tombstones
    }
    return erased
