"""Takes erased documents out of evaluation reports, of training snapshots, and of the general documents that
were drawn for them; and reports what an erasure did.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.artifacts import (
    CHUNKS_COLUMN,
    CHUNKS_FILE,
    EVALUATION_FILE,
    EVALUATION_REPORT,
    EXAMPLES_FILE,
    REPORT_PAGE,
    TRAINING_SNAPSHOT,
)
from fullft_assets.documents.erasure import erased_digest, read_tombstones
from fullft_assets.erasure.erased_documents import GENERAL, ErasedDocuments, whole_artifacts
from fullft_assets.errors import StoreError
from fullft_assets.report import LABEL_ERRORS, read_list, shorten, write_list
from fullft_assets.snapshot import data_report, pack_again, read_index
from fullft_assets.snapshot.frozen_batches import DRAWN, chunk_lengths, drawn_digest
from fullft_assets.snapshot.ledger import load_if_there
from fullft_assets.snapshot.metadata import Erasure, GeneralMetadata, ReplayMetadata, SnapshotMetadata
from fullft_assets.store import Identity, Manifest, Store
from fullft_assets.tasks.language.assessment import ANSWERS

#: Replaces something erased within a text.
GONE = "[erased]"


ATTEMPTS = "unfinished attempts"
TRACEBACKS = "tracebacks, which may quote them"
TRAININGS = "unfinished trainings that had learned from them"


@dataclass
class ErasureReport:
    """What an erasure did; refs are `Manifest.ref`.

    Attributes:
        num_found: erased documents that some artifact held.
        missing: listed, and no document of the store has it, nor had one that was erased.
        deleted: artifacts that are made again when needed, by stage; ATTEMPTS that killed processes had left
            or that were broken; all TRACEBACKS; and TRAININGS that had learned and were not finished.
        num_in_flight: attempts without a manifest that somebody may be writing, and trainings under way that
            learned: left alone.
        trained_on: checkpoints that had learned from an erased document.
        champions: those of `trained_on` that are or were champion.
    """

    num_listed: int
    num_found: int = 0
    missing: list[str] = field(default_factory=list)
    num_before: int = 0
    rewritten: Counter[str] = field(default_factory=Counter)
    deleted: Counter[str] = field(default_factory=Counter)
    num_in_flight: int = 0
    trained_on: list[str] = field(default_factory=list)
    champions: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report in words, without a single id."""
        lines = [
            (1, f"{self.num_found:,} documents erased, {self.num_listed:,} ids or groups listed"),
            (self.num_before, f"erased before {self.num_before:,} of those listed"),
            (
                len(self.missing),
                f"not found    {len(self.missing):,} of those listed (tombstones keep them out if they ever"
                " come)",
            ),
            *((1, f"rewritten    {count:,} {stage}") for stage, count in sorted(self.rewritten.items())),
            *((count, f"deleted      {count:,} {kind}") for kind, count in sorted(self.deleted.items())),
            (
                self.num_in_flight,
                f"left alone   {self.num_in_flight:,} unfinished attempts; once the runs have ended, erase"
                " the same list again",
            ),
            *(
                (1, f"learned from {ref}{' (champion)' if ref in self.champions else ''}")
                for ref in self.trained_on
            ),
            (
                len(self.trained_on),
                "weights cannot be rewritten: train again without these documents, release, then delete the"
                " checkpoints above",
            ),
        ]
        return [line for number, line in lines if number]


_TABLES = ("predictions.parquet", "validation.parquet")
#: A row of a page's table that is about one document, or, in earlier stores, about a group.
_ABOUT = re.compile(r'<tr data-(document|group)="(.*?)">.*?</tr>', re.DOTALL)
#: What evaluations of earlier stores name groups and documents in.
_NAMING = ("weakest_groups", "largest_regressions")


def drop_from_reports(
    store: Store, case: str, erased_documents: ErasedDocuments, report: ErasureReport
) -> None:
    """Take erased documents out of the evaluation reports of a use case."""
    excerpts = {
        escape(shorten(text), quote=quote) for text in erased_documents.texts for quote in (True, False)
    }
    excerpts |= {excerpt.replace("&#x27;", "&#39;").replace("&quot;", "&#34;") for excerpt in excerpts}
    for manifest, folder in whole_artifacts(store, case, EVALUATION_REPORT):
        if _drop_from_report(store, manifest, folder, erased_documents, excerpts):
            report.rewritten[manifest.stage] += 1


def _drop_from_report(
    store: Store,
    manifest: Manifest,
    folder: Path,
    erased_documents: ErasedDocuments,
    excerpts: Collection[str],
) -> bool:
    tables = {name: pq.read_table(folder / name) for name in _TABLES if name in manifest.files}
    # The first field of a list is the id of a document.
    lists = {name: read_list(folder / name) for name in (ANSWERS, LABEL_ERRORS) if name in manifest.files}
    ids = {id_ for table in tables.values() for id_ in table["id"].to_pylist()}
    ids |= {next(iter(row.values())) for rows in lists.values() for row in rows}
    ids_gone = erased_documents.named(ids)
    hit = pa.array(sorted(ids_gone), pa.string())
    tables_left = {
        name: table.filter(pc.invert(pc.is_in(table["id"], hit))) for name, table in tables.items()
    }
    lists_left = {
        name: [row for row in rows if next(iter(row.values())) not in ids_gone]
        for name, rows in lists.items()
    }
    pages = [name for name in manifest.files if name.endswith((".html", ".md"))]
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in pages}
    if not ids_gone and not any(excerpt in text for text in texts.values() for excerpt in excerpts):
        return False

    def without_gone(row: re.Match[str]) -> str:
        return f"<tr><td>{GONE}</td></tr>" if row[1] == "group" or unescape(row[2]) in ids_gone else row[0]

    def edit(path: Path) -> Mapping[str, Any]:
        for name, table in tables_left.items():
            pq.write_table(table, path / name)
        for name, rows in lists_left.items():
            if rows != lists[name]:
                write_list(path / name, rows)
        for name, text in texts.items():
            # What a model wrote after the beginning of a document goes with it.
            text = _ABOUT.sub(without_gone, text)
            for excerpt in excerpts:
                text = text.replace(excerpt, GONE)
            (path / name).write_text(text, encoding="utf-8")
        evaluation = json.loads((path / EVALUATION_FILE).read_text(encoding="utf-8"))
        for section in (evaluation, evaluation.get("changes", {})):
            for name in _NAMING:
                section.pop(name, None)
        (path / EVALUATION_FILE).write_text(json.dumps(evaluation, indent=1), encoding="utf-8")
        return {}

    store.rewrite(manifest, edit)
    return True


def drop_drawn_rows(
    store: Store, case: str, stage: str, erased_documents: ErasedDocuments, report: ErasureReport
) -> None:
    """Rewrite drawn documents and their chunks without the erased ones."""
    for manifest, folder in whole_artifacts(store, case, stage):
        documents = pq.read_table(folder / EXAMPLES_FILE)
        hit = erased_documents.rows(documents)
        if hit.any():
            _rewrite_drawn(
                store,
                manifest,
                documents.filter(~hit),
                pq.read_table(folder / CHUNKS_FILE).filter(~hit),
                int(hit.sum()),
            )
            report.rewritten[stage] += 1


def _rewrite_drawn(
    store: Store, manifest: Manifest, documents: pa.Table, chunks: pa.Table, num_gone: int
) -> None:
    before = (ReplayMetadata if GENERAL[manifest.stage] == "replay" else GeneralMetadata).of(manifest)
    num_tokens = sum(map(sum, chunk_lengths(chunks[CHUNKS_COLUMN])))
    changes: dict[str, int | float] = {
        "num_rows": len(documents),
        "num_tokens": num_tokens,
        "num_erased": (before.num_erased or 0) + num_gone,
        # Which of them were is no longer known.
    }
    if isinstance(before, ReplayMetadata):
        changes["share"] = (
            num_tokens / (num_tokens + manifest.inputs["num_task_tokens"]) if num_tokens else 0.0
        )

    def edit(path: Path) -> Mapping[str, Any]:
        pq.write_table(documents, path / EXAMPLES_FILE, compression="zstd")
        pq.write_table(chunks, path / CHUNKS_FILE, compression="zstd")
        return before.model_copy(update=changes).as_dict()

    # The identity names each document by the hash of its text.
    values = manifest.identity.values if manifest.identity else {}
    values = {**values, "num_tokens": num_tokens, "documents": documents["text_hash"].to_pylist()}
    store.rewrite(manifest, edit, identity=Identity(files=[], values=values))


def _without_names(snapshot: Manifest, tombstones: Collection[str]) -> dict[str, Any]:
    inputs = dict(snapshot.inputs)
    for kind in DRAWN:
        if isinstance(inputs.get(kind), Mapping):
            inputs[kind] = {
                name: digest
                for name, digest in inputs[kind].items()
                if erased_digest(snapshot.case, name, "general file") not in tombstones
            }
    return inputs


def _changed_drawn(store: Store, snapshot: Manifest) -> dict[str, Manifest]:
    """Return the drawn documents of a snapshot that lost some since it was taken, by the snapshot's name for
    them: that their digest has changed shows it, also after an erasure that was cut short.
    """
    drawn_artifacts = {
        kind: load_if_there(store, ref) for kind, ref in SnapshotMetadata.of(snapshot).drawn().items()
    }
    return {
        kind: manifest
        for kind, manifest in drawn_artifacts.items()
        if manifest is not None and drawn_digest(snapshot, kind) != manifest.content_digest
    }


def drop_from_snapshots(
    store: Store, case: str, erased_documents: ErasedDocuments, report: ErasureReport
) -> None:
    """Rewrite the snapshots that have rows of erased documents, or general documents that are gone."""
    # With the names of files that this erasure recorded.
    tombstones = read_tombstones(store, case)
    for manifest, _ in whole_artifacts(store, case, TRAINING_SNAPSHOT):
        index = read_index(store, manifest)
        hit = erased_documents.rows(_with_groups(index))
        drawn_manifests = _changed_drawn(store, manifest)
        inputs = _without_names(manifest, tombstones)
        if hit.any() or drawn_manifests or inputs != manifest.inputs:
            _rewrite_snapshot(store, manifest, index, hit, drawn_manifests, inputs)
            report.rewritten[manifest.stage] += 1


def _with_groups(index: pa.Table) -> pa.Table:
    """Return a snapshot's index with the groups that documents were delivered with: it has the text's hash
    for that of a row without one.
    """
    group = pc.if_else(
        pc.equal(index["group"], index["text_hash"]), pa.scalar(None, pa.string()), index["group"]
    )
    return index.set_column(index.column_names.index("group"), "group", group)


def _rewrite_snapshot(
    store: Store,
    manifest: Manifest,
    index: pa.Table,
    hit: np.ndarray,
    drawn_manifests: Mapping[str, Manifest],
    inputs: Mapping[str, Any],
) -> None:
    before = SnapshotMetadata.of(manifest)
    index_left = index.filter(~hit)
    lost_from = sorted({*index.filter(hit)["split"].to_pylist(), *drawn_manifests})
    # By the recorded digest it is known which version of the snapshot a training read.
    loss = Erasure(snapshot_digest=manifest.content_digest, lost_from=lost_from)
    counts = Counter(index_left["split"].to_pylist())
    changes: dict[str, Any] = {
        **{f"num_{split}_rows": counts[split] for split in ("train", "validation", "test")},
        "erasures": [*(before.erasures or []), loss],
    }
    if "general" in drawn_manifests:
        changes["num_general_tokens"] = GeneralMetadata.of(drawn_manifests["general"]).num_tokens
    if "replay" in drawn_manifests:
        replayed = ReplayMetadata.of(drawn_manifests["replay"])
        changes |= {"num_replay_rows": replayed.num_rows, "num_replay_tokens": replayed.num_tokens}

    def edit(path: Path) -> Mapping[str, Any]:
        for name in ("index.parquet", "places.parquet"):
            pq.write_table(pq.read_table(path / name).filter(~hit), path / name)
        if (path / "packing.parquet").is_file() and lost_from:
            # Its positions are those of all training chunks, so it is planned anew. Where a table of the
            # chunks is gone, nobody can read them.
            with suppress(StoreError):
                plan = pack_again(store, manifest, index_left)
                pq.write_table(plan.to_table(), path / "packing.parquet")
                changes.update(num_packed_rows=plan.num_rows, packing_fill=plan.fill)
        # It names places of rows that are in no split, too.
        notice = (
            f"# Data report of {manifest.case}\n\nWithdrawn: documents that it was made of were erased.\n"
        )
        (path / "report.md").write_text(notice, encoding="utf-8")
        (path / REPORT_PAGE).write_text(data_report.to_page(notice), encoding="utf-8")
        return before.model_copy(update=changes).as_dict()

    identity = manifest.identity
    if identity is not None:
        digests = {kind: artifact.content_digest for kind, artifact in drawn_manifests.items()}
        identity = identity.model_copy(update={"values": {**identity.values, **digests}})
    store.rewrite(manifest, edit, inputs, identity=identity)
