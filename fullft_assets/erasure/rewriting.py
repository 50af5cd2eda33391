"""erasure: an erasure list -> every artifact without those documents, tombstones, and the models that had learned from them.

Each artifact that holds a named document is replaced by a copy without it, under the same key; the old one is
deleted. A tombstone (a keyed digest, never the id itself) keeps the document out when its file is read again.
Weights cannot be rewritten: the checkpoints and champions that learned from an erased document are named.

It may be cut short anywhere: what is to go is decided by the tombstones, which are written first, and by what the artifact
holds that a table was made from; so the next erasure with the same list finishes it.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.chunks import WORDS
from fullft_assets.documents.batches import forget
from fullft_assets.documents.erasure import By, erased_digest, is_erased, read_tombstones, write_tombstones
from fullft_assets.erasure import general_documents
from fullft_assets.erasure.affected_checkpoints import name_checkpoints
from fullft_assets.erasure.counts import batch_of, recounted
from fullft_assets.erasure.file_names import GONE, scrub
from fullft_assets.erasure.search import DOCUMENTS, search, tables
from fullft_assets.erasure.unfinished_trainings import drop_unfinished
from fullft_assets.errors import StoreError
from fullft_assets.examples import QUARANTINED, write_examples
from fullft_assets.report import shorten
from fullft_assets.snapshot import pack_again
from fullft_assets.snapshot.frozen_batches import locate
from fullft_assets.snapshot.metadata import Erasure, SnapshotMetadata
from fullft_assets.store import CheckOutcome, Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa


#: The tables with one row a document, inputs before what is made of them.
_TABLES = {**DOCUMENTS, "tokenized_chunks": "chunks.parquet"}
#: What is made again at the next use, and dropped where it was made from a rewritten artifact. The baselines learned from the
#: training rows as weights do, but in words: TF-IDF's vocabulary.
_DERIVED = ("near_duplicate_index", "screened_examples", "drift_reference", "cheaper_baselines")
#: Every stage whose attempts may hold documents, their names or what was made of them.
_HOLDING = (*_TABLES, "training_snapshot", *_DERIVED, "tokenizer_audit", "drift_report", "evaluation_report")


@dataclass
class Report:
    """What an erasure did; refs are `Manifest.ref`.

    Attributes:
        num_listed: ids or groups on the list.
        num_found: erased documents that some artifact held.
        missing: listed, and no document of the store has it, nor had one that was erased.
        num_before: listed, and erased before.
        rewritten: artifacts that were replaced, by stage.
        deleted: artifacts that were deleted and are made again when needed, by stage.
        num_discarded: attempts that a killed process had left, or that were broken, and that were removed.
        num_in_flight: attempts without a manifest that somebody may be writing, and trainings under way that learned: left alone.
        num_unfinished: unfinished trainings that had learned from an erased document, and were removed.
        trained_on: checkpoints that had learned from an erased document.
        measured_on: checkpoints that were validated or tested on one.
        champions: those of `trained_on` that are or were champion.
    """

    num_listed: int
    num_found: int = 0
    missing: list[str] = field(default_factory=list)
    num_before: int = 0
    rewritten: Counter[str] = field(default_factory=Counter)
    deleted: Counter[str] = field(default_factory=Counter)
    num_discarded: int = 0
    num_in_flight: int = 0
    num_unfinished: int = 0
    trained_on: list[str] = field(default_factory=list)
    measured_on: list[str] = field(default_factory=list)
    champions: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report in words, without a single id."""
        found = [f"{self.num_found:,} documents erased, {self.num_listed:,} ids or groups listed"]
        if self.num_before:
            found.append(f"erased before {self.num_before:,} of those listed")
        if self.missing:
            found.append(f"not found    {len(self.missing):,} of those listed (tombstones keep them out if they ever come)")
        found += [f"rewritten    {count:,} {stage}" for stage, count in sorted(self.rewritten.items())]
        found += [f"deleted      {count:,} {stage} (made again when needed)" for stage, count in sorted(self.deleted.items())]
        if self.num_discarded:
            found.append(f"deleted      {self.num_discarded:,} attempts that killed runs had left")
        if self.num_unfinished:
            found.append(f"deleted      {self.num_unfinished:,} unfinished trainings that had learned from them")
        if self.num_in_flight:
            found.append(f"left alone   {self.num_in_flight:,} unfinished attempts; once the runs have ended, erase the same list again")
        found += [f"learned from {ref}{' (champion)' if ref in self.champions else ''}" for ref in self.trained_on]
        found += [f"measured on  {ref}" for ref in self.measured_on]
        if self.trained_on:
            found.append("weights cannot be rewritten: train again without these documents, release, then delete the checkpoints above")
        return found


def erase(store: Store, case: str, listed: Iterable[str], *, by: By = "id", reason: str = "") -> Report:
    """Erase documents everywhere in a use case's store.

    One that was cut short is finished by the next with the same list. Runs in flight should end before.

    Args:
        store: where the artifacts live.
        case: the use case.
        listed: document ids, or groups (all documents of a patient, a client), as the list has them.
        by: `id` or `group`: what is listed.
        reason: kept with the tombstones.
    """
    listed = list(dict.fromkeys(listed))
    report = Report(num_listed=len(listed))
    _sweep(store, case, report)
    sought = search(store, case, listed, by)
    sought.record(store, case, by, reason)
    report.missing, report.num_before = sought.missing, len(sought.before)
    erased = _Erased(case, read_tombstones(store, case))
    _gather(store, case, erased, reason)
    # Before the tables: if this is cut short, they still contain the texts and names to look for.
    _drop_from_reports(store, case, erased, report)
    forget(store, case, erased.paths, "batch")
    forget(store, case, erased.paths, "window")
    made_from: dict[str, dict[str, Manifest]] = {}
    for stage, file in _TABLES.items():
        for manifest in store.artifacts(case, stage):
            if stage not in general_documents.STAGES:
                _drop_rows(store, manifest, file, erased, made_from, report)
            elif general_documents.drop_rows(store, manifest, erased.rows):
                report.rewritten[stage] += 1
        made_from[stage] = _by_content(store, case, stage)
    _drop_from_snapshots(store, case, erased, report)
    _drop_derived(store, case, report)
    report.num_found = len(erased.found)
    report.trained_on, report.measured_on, report.champions = name_checkpoints(store, case)
    report.num_unfinished, num_training = drop_unfinished(store, case, report.trained_on)
    report.num_in_flight += num_training
    _record(store, case, report, reason)
    return report


def _sweep(store: Store, case: str, report: Report) -> None:
    """Remove what killed processes left: attempts without a manifest, and tables that cannot be read any more.

    Neither exists for anybody else, and what made it can be run again; but it contains documents.
    """
    for stage in _HOLDING:
        for ref in store.unfinished(case, stage):
            if store.discard(ref):
                report.num_discarded += 1
            else:
                report.num_in_flight += 1
    for stage in _TABLES:
        for manifest in store.artifacts(case, stage):
            try:
                store.folder(manifest)
            except StoreError:
                store.delete(manifest)
                report.num_discarded += 1


@dataclass
class _Erased:
    """The documents with a tombstone, and what was met of them.

    Attributes:
        case, tombstones: whose, and which.
        found: their ids.
        texts: as reports may show them.
        paths: names of files all of whose documents were erased.
        num_quarantined: how many of them are in quarantine, by `batch_of`.
    """

    case: str
    tombstones: Collection[str]
    found: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    num_quarantined: dict[str, int] = field(default_factory=dict)

    def rows(self, table: pa.Table) -> np.ndarray:
        """Return which rows [n] of a table have a tombstone."""
        hit = is_erased(self.case, table, self.tombstones)
        self.found.update(table["id"][int(row)].as_py() for row in np.flatnonzero(hit))
        if "text" in table.column_names:
            self.texts.update(text for row in np.flatnonzero(hit) if (text := table["text"][int(row)].as_py()))
        return hit


def _gather(store: Store, case: str, erased: _Erased, reason: str) -> None:
    """Look at all documents with a tombstone before any is gone: their texts, and the files that held nothing else."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    hit_in: set[str] = set()
    kept_in: set[str] = set()
    named: set[str] = set()
    general: list[pa.Table] = []
    for manifest, path in tables(store, case):
        table = pq.read_table(path)
        hit = erased.rows(table)
        if manifest.stage == "quarantined_examples":
            erased.num_quarantined[batch_of(manifest)] = int(hit.sum())
        if manifest.stage in general_documents.STAGES:
            # Their files are elsewhere, though under the same names, and not all that these hold was drawn.
            general.append(table.filter(hit))
            continue
        # Of all deliveries: a file's name is needed as long as rows of any delivery of it are there.
        hit_in.update(pc.unique(table["source"].filter(hit)).to_pylist())
        kept_in.update(pc.unique(table["source"].filter(~hit)).to_pylist())
        named.update(manifest.metadata.get("files", ()))
    general_documents.record_names(store, case, general, reason)
    write_tombstones(store, case, [erased_digest(case, path, "file") for path in sorted(hit_in - kept_in)], by="id", reason=reason)
    # The others: an erasure that was cut short, or a file that was read again since then and held nothing but erased documents.
    erased.paths = (hit_in - kept_in) | {path for path in named - kept_in if erased_digest(case, path, "file") in erased.tombstones}


def _by_content(store: Store, case: str, stage: str) -> dict[str, Manifest]:
    """Return the artifacts of a stage by their content digests: today's and those that they had before they were rewritten."""
    return {content: made for made in store.artifacts(case, stage) for content in (made.content_digest, *made.metadata.get("replaces", []))}


def _drop_rows(
    store: Store, manifest: Manifest, file: str, erased: _Erased, made_from: Mapping[str, Mapping[str, Manifest]], report: Report
) -> None:
    """Rewrite a table without the rows that have a tombstone, and with the inputs as they are since their own rewriting."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = store.folder(manifest)
    table = pq.read_table(folder / file)
    upstream = {name: made_from[name].get(content) for name, content in manifest.inputs.items() if name in made_from}
    inputs = dict(manifest.inputs) | {name: made.content_digest for name, made in upstream.items() if made is not None}
    hit = _rows_to_drop(store, manifest, table, upstream, erased)
    quarantined = pq.read_table(folder / QUARANTINED) if manifest.stage == "labeled_examples" else table.slice(0, 0)
    quarantined_hit = erased.rows(quarantined)
    paths = _paths_to_scrub(manifest, table, hit, upstream, erased)
    if not hit.any() and not quarantined_hit.any() and not paths and inputs == manifest.inputs:
        return
    kept = table.filter(pa.array(~hit))
    if "files" in inputs:
        inputs["files"] = scrub(inputs["files"], paths)

    def edit(path: Path) -> Mapping[str, Any]:
        (write_examples if manifest.stage == "labeled_examples" else pq.write_table)(kept, path / file)
        if manifest.stage == "tokenized_chunks" and hit.any():
            # Counts of the batch's words, the erased documents' among them; the audit goes on without this batch.
            pq.write_table(pq.read_table(path / WORDS).slice(0, 0), path / WORDS)
        if manifest.stage == "labeled_examples":
            pq.write_table(quarantined.filter(pa.array(~quarantined_hit)), path / QUARANTINED)
        before = scrub({name: value for name, value in manifest.metadata.items() if name != "replaces"}, paths)
        return {**before, **recounted(manifest, kept, int(hit.sum()), erased.num_quarantined.get(batch_of(manifest), 0))}

    checks = [CheckOutcome.model_validate(scrub(check.model_dump(), paths)) for check in manifest.checks]
    store.rewrite(manifest, edit, inputs, checks)
    report.rewritten[manifest.stage] += 1


def _rows_to_drop(
    store: Store, manifest: Manifest, table: pa.Table, upstream: Mapping[str, Manifest | None], erased: _Erased
) -> np.ndarray:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    examples = upstream.get("labeled_examples")
    if manifest.stage != "tokenized_chunks" or examples is None:
        return erased.rows(table)
    # Chunks only have the id, which may be made up: they follow their examples, which are rewritten by now. All rows of an id go.
    left = pq.read_table(store.folder(examples) / "examples.parquet", columns=["id"])["id"]
    return ~pc.is_in(table["id"], left.combine_chunks()).to_numpy().astype(bool)


def _paths_to_scrub(
    manifest: Manifest, table: pa.Table, hit: np.ndarray, upstream: Mapping[str, Manifest | None], erased: _Erased
) -> set[str]:
    """Return which files' names to remove from an artifact's manifest: those that its input does not name any more."""
    made_from = upstream.get("raw_documents") or upstream.get("labeled_examples")
    if made_from is None or "files" not in made_from.metadata:
        return erased.paths & manifest.metadata.get("files", {}).keys()
    if "files" in manifest.metadata:
        return set(manifest.metadata["files"]) - set(made_from.metadata["files"])
    ids = (table["id"][int(row)].as_py() for row in np.flatnonzero(hit))
    return {path for path, _, row in (id_.rpartition(":") for id_ in ids) if path and row.isdecimal()} - set(made_from.metadata["files"])


def _drop_from_snapshots(store: Store, case: str, erased: _Erased, report: Report) -> None:
    """Rewrite the snapshots whose rows are gone, or are at other positions of their batches now."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # With the names of files that this erasure recorded.
    tombstones = read_tombstones(store, case)
    for manifest in store.artifacts(case, "training_snapshot"):
        folder = store.folder(manifest)
        index, places = pq.read_table(folder / "index.parquet"), pq.read_table(folder / "places.parquet")
        hit = erased.rows(_with_origin(index, places))
        found = locate(store, manifest, places)
        gone = hit | found.lost
        before = SnapshotMetadata.of(manifest)
        # What was drawn for it is rewritten by now: that it is not what the snapshot froze shows it, also after an erasure cut short.
        lost_of_drawn, inputs = general_documents.changed(store, manifest), general_documents.without_names(manifest, tombstones)
        if not gone.any() and not lost_of_drawn and found.parts == before.parts and inputs == manifest.inputs:
            continue
        kept, moved = index.filter(pa.array(~gone)), found.places.filter(pa.array(~gone))
        lost_from = sorted({*index.filter(pa.array(gone))["split"].to_pylist(), *lost_of_drawn})
        # By the recorded digest it is known which version of the snapshot a training read.
        loss = Erasure(snapshot_digest=manifest.content_digest, lost_from=lost_from)
        counts = Counter(kept["split"].to_pylist())
        changes = {
            **{f"num_{split}_rows": counts[split] for split in ("train", "validation", "test")},
            **general_documents.counts_of(lost_of_drawn),
            "parts": found.parts,
            "erased_from": sorted({*(before.erased_from or []), *lost_from}),
            "erasures": [*(before.erasures or []), loss],
            **({"erased_up_to": manifest.attempt} if lost_from else {}),
        }
        is_packed_anew = (gone.any() or "replay" in lost_of_drawn) and not found.unreadable and general_documents.is_whole(store, manifest)

        def edit(
            path: Path,
            manifest=manifest,
            kept=kept,
            moved=moved,
            gone=gone,
            found=found,
            before=before,
            changes=changes,
            is_packed_anew=is_packed_anew,
        ) -> Mapping[str, Any]:
            pq.write_table(kept, path / "index.parquet")
            pq.write_table(moved, path / "places.parquet")
            if is_packed_anew and (path / "packing.parquet").is_file():
                # Its positions are those of all training windows, so it is planned anew.
                plan = pack_again(store, manifest, kept, moved, found.parts)
                pq.write_table(plan.to_table(), path / "packing.parquet")
                changes = {**changes, "num_packed_rows": plan.num_rows, "packing_fill": plan.fill}
            if gone.any():
                (path / "report.md").write_text(
                    "# Data report\n\nWithdrawn: documents that it was made of were erased.\n", encoding="utf-8"
                )
            return before.model_copy(update=changes).as_dict()

        store.rewrite(manifest, edit, inputs, identity=general_documents.identity_of(manifest, lost_of_drawn))
        report.rewritten[manifest.stage] += 1


def _with_origin(index: pa.Table, places: pa.Table) -> pa.Table:
    """Return a snapshot's index with the columns that identify a row's document: where it came from, and its group if it has one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # The index has the text's hash for the group of a row without one.
    group = pc.if_else(pc.equal(index["group"], index["text_hash"]), pa.scalar(None, pa.string()), index["group"])
    table = index.set_column(index.column_names.index("group"), "group", group)
    return table.append_column("source", places["source"]).append_column("row", places["row"])


def _drop_derived(store: Store, case: str, report: Report) -> None:
    """Delete what was made of rewritten artifacts and is made again when needed; forget the features of their windows."""
    made = [manifest for stage in (*_TABLES, "training_snapshot") for manifest in store.artifacts(case, stage)]
    # A snapshot that lost no row has the content that it had.
    gone = {old for manifest in made for old in manifest.metadata.get("replaces", [])} - {manifest.content_digest for manifest in made}
    for stage in _DERIVED:
        for manifest in store.artifacts(case, stage):
            if any(_mentions(manifest.inputs, content) for content in gone):
                store.delete(manifest)
                report.deleted[stage] += 1
    for manifest in store.artifacts(case, "tokenizer_audit"):
        if any(_mentions(manifest.inputs, content) for content in gone) and "withdrawn" not in manifest.metadata:

            def withdraw(folder: Path) -> Mapping[str, Any]:
                (folder / "terms.json").write_text("[]", encoding="utf-8")
                (folder / "proposal.yaml").write_text("# Withdrawn: documents that it was mined from were erased.\n", encoding="utf-8")
                return {"withdrawn": True}

            store.rewrite(manifest, withdraw)
            report.rewritten[manifest.stage] += 1
    for manifest in store.artifacts(case, "drift_report"):
        if manifest.inputs.get("production_documents") in gone and "features.npz" in manifest.files:

            def edit(folder: Path) -> Mapping[str, Any]:
                (folder / "features.npz").unlink()
                return {}

            store.rewrite(manifest, edit)
            report.rewritten[manifest.stage] += 1


def _mentions(value: Any, content: str) -> bool:
    if isinstance(value, Mapping):
        return any(_mentions(inner, content) for inner in value.values())
    if isinstance(value, list | tuple):
        return any(_mentions(inner, content) for inner in value)
    return value == content


def _drop_from_reports(store: Store, case: str, erased: _Erased, report: Report) -> None:
    """Take erased documents out of the evaluation reports that show answers side by side, or how texts go on, and the names of groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    excerpts = {escape(shorten(text), quote=quote) for text in erased.texts for quote in (True, False)}
    excerpts |= {excerpt.replace("&#x27;", "&#39;").replace("&quot;", "&#34;") for excerpt in excerpts}
    snapshots = _by_content(store, case, "training_snapshot")
    for manifest in store.artifacts(case, "evaluation_report"):
        pages = [store.folder(manifest) / name for name in manifest.files if name.endswith((".html", ".md"))]
        predictions = pq.read_table(store.folder(manifest) / "predictions.parquet")
        hit = _judged_erased(store, manifest, predictions, erased, snapshots)
        kept = predictions.filter(pa.array(~hit))
        # What a model wrote after the beginning of a document goes with it, and the name of a group with the last of its rows.
        shown = [f'<tr data-document="{_html(id_)}">' for id_ in predictions.filter(pa.array(hit))["id"].to_pylist()]
        groups_gone = {*predictions["group"].to_pylist()} - {*kept["group"].to_pylist()}
        shown += [f'<tr data-group="{_html(group)}">' for group in sorted(groups_gone)]
        shows_text = any(excerpt in page.read_text(encoding="utf-8") for page in pages for excerpt in excerpts)
        if len(kept) == len(predictions) and not shows_text:
            continue

        def edit(folder: Path, pages: list[Path] = pages, kept: pa.Table = kept, shown: list[str] = shown) -> Mapping[str, Any]:
            pq.write_table(kept, folder / "predictions.parquet")
            _drop_from_figures(folder / "evaluation.json", kept)
            for page in pages:
                text = page.read_text(encoding="utf-8")
                for excerpt in excerpts:
                    text = text.replace(excerpt, GONE)
                for row in shown:
                    text = re.sub(rf"{re.escape(row)}.*?</tr>", f"<tr><td>{GONE}</td></tr>", text, flags=re.DOTALL)
                (folder / page.name).write_text(text, encoding="utf-8")
            return {}

        store.rewrite(manifest, edit)
        report.rewritten[manifest.stage] += 1


def _judged_erased(
    store: Store, evaluation: Manifest, predictions: pa.Table, erased: _Erased, snapshots: Mapping[str, Manifest]
) -> np.ndarray:
    """Return which predictions [n] are of an erased document: an id alone may be made up, so the snapshot that was tested on decides."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    by_id = is_erased(erased.case, predictions, erased.tombstones)
    snapshot = snapshots.get(evaluation.inputs.get("training_snapshot", ""))
    if snapshot is None:
        return by_id
    folder = store.folder(snapshot)
    index = pq.read_table(folder / "index.parquet")
    hit = erased.rows(_with_origin(index, pq.read_table(folder / "places.parquet")))
    gone = index["id"].filter(pa.array(hit)).combine_chunks()
    is_known = pc.is_in(predictions["id"], index["id"].combine_chunks()).to_numpy().astype(bool)
    return pc.is_in(predictions["id"], gone).to_numpy().astype(bool) | (by_id & ~is_known)


def _drop_from_figures(path: Path, kept: pa.Table) -> None:
    """Take the names of groups without a row left out of the figures, and of a language model's the ids of erased documents."""
    figures = json.loads(path.read_text(encoding="utf-8"))
    ids, groups = ({*kept[name].to_pylist()} for name in ("id", "group"))
    figures["weakest_groups"] = [row for row in figures["weakest_groups"] if row["group"] in groups]
    if "changes" in figures:
        changes = figures["changes"]
        changes["largest_regressions"] = [change for change in changes["largest_regressions"] if change["id"] in ids]
    path.write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")


def _html(text: str) -> str:
    """Return a text as Jinja escapes it."""
    return escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


def _record(store: Store, case: str, report: Report, reason: str) -> None:
    entry = {
        "at": time.time(),
        "reason": reason,
        "num_listed": report.num_listed,
        "num_found": report.num_found,
        "num_missing": len(report.missing),
        "num_before": report.num_before,
        "num_discarded": report.num_discarded,
        "num_unfinished": report.num_unfinished,
        "rewritten": dict(report.rewritten),
        "deleted": dict(report.deleted),
        "trained_on": report.trained_on,
        "measured_on": report.measured_on,
        "champions": report.champions,
    }
    store.write_pointer(f"{case}/erasures/{int(entry['at'] * 1000):014d}", entry)
