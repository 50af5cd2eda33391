"""erasure: an erasure list -> every artifact without those documents, tombstones, and the models that had learned from them.

Each artifact that holds a named document is replaced by a copy without it, under the same key; the old one is
deleted. A tombstone (a keyed digest, never the id itself) keeps the document out when its file is read again.
Weights cannot be rewritten: the checkpoints and champions that learned from an erased document are named.
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

from fullft_assets import release
from fullft_assets.chunks import WORDS
from fullft_assets.documents.erasure import By, is_erased, read_tombstones, write_tombstones
from fullft_assets.errors import DataError
from fullft_assets.examples import MERGED, SUPERSEDED, count_labels
from fullft_assets.report import shorten
from fullft_assets.settings import ExamplesSettings
from fullft_assets.snapshot import pack_again
from fullft_assets.store import Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa

#: The tables with one row a document, inputs before what is made of them.
_TABLES = {
    "raw_documents": "documents.parquet",
    "production_documents": "documents.parquet",
    "labeled_examples": "examples.parquet",
    "quarantined_examples": "quarantined.parquet",
    "tokenized_chunks": "chunks.parquet",
}
#: What is made again at the next use, and dropped where it was made from a rewritten artifact.
_DERIVED = ("near_duplicate_index", "screened_examples", "drift_reference")
#: Put where a text stood in a report.
_GONE = "[erased]"


@dataclass
class Report:
    """What an erasure did; refs are `Manifest.ref`.

    Attributes:
        num_listed: ids or groups on the list.
        num_found: erased documents that some artifact held.
        rewritten: artifacts that were replaced, by stage.
        deleted: artifacts that were deleted and are made again when needed, by stage.
        trained_on: checkpoints that had learned from an erased document.
        measured_on: checkpoints that were validated or tested on one.
        champions: those of `trained_on` that are or were champion.
    """

    num_listed: int
    num_found: int = 0
    rewritten: Counter[str] = field(default_factory=Counter)
    deleted: Counter[str] = field(default_factory=Counter)
    trained_on: list[str] = field(default_factory=list)
    measured_on: list[str] = field(default_factory=list)
    champions: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report in words, without a single id."""
        found = [f"{self.num_found:,} documents erased, {self.num_listed:,} ids or groups listed"]
        found += [f"rewritten    {count:,} {stage}" for stage, count in sorted(self.rewritten.items())]
        found += [f"deleted      {count:,} {stage} (made again when needed)" for stage, count in sorted(self.deleted.items())]
        found += [f"learned from {ref}{' (champion)' if ref in self.champions else ''}" for ref in self.trained_on]
        found += [f"measured on  {ref}" for ref in self.measured_on]
        if self.trained_on:
            found.append("weights cannot be rewritten: train again without these documents, release, then delete the checkpoints above")
        return found


def read_list(path: Path) -> list[str]:
    """Return the ids (or groups) of an erasure list: one a line, blank lines left out.

    Raises:
        DataError: the file cannot be read, or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a text file with one document id a line") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8; give a text file with one document id a line") from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise DataError(f"{path}: empty; give one document id a line")
    return found


def erase(store: Store, case: str, listed: Iterable[str], *, by: By = "id", reason: str = "") -> Report:
    """Erase documents everywhere in a use case's store.

    One that was cut short is finished by the next with the same list: what decides is the tombstones, written first.
    Runs in flight should end before.

    Args:
        store: where the artifacts live.
        case: the use case.
        listed: document ids, or groups (all documents of a patient, a client).
        by: `id` or `group`: what is listed.
        reason: kept with the tombstones.
    """
    listed = list(dict.fromkeys(listed))
    write_tombstones(store, case, listed, by=by, reason=reason)
    if by == "group":
        write_tombstones(store, case, _ids_of_groups(store, case, set(listed)), by="id", reason=reason)
    erased = _Erased(case, read_tombstones(store, case))
    report = Report(num_listed=len(listed))
    for stage, file in _TABLES.items():
        for manifest in store.artifacts(case, stage):
            _drop_rows(store, manifest, file, erased, report)
    _drop_from_snapshots(store, case, erased, report)
    _drop_derived(store, case, report)
    _drop_from_reports(store, case, erased, report)
    report.num_found = len(erased.found)
    _name_checkpoints(store, case, report)
    _record(store, case, report, reason)
    return report


def _ids_of_groups(store: Store, case: str, groups: set[str]) -> set[str]:
    import pyarrow.parquet as pq

    ids = set()
    for stage in ("raw_documents", "production_documents", "labeled_examples", "quarantined_examples"):
        for manifest in store.artifacts(case, stage):
            table = pq.read_table(store.folder(manifest) / _TABLES[stage], columns=["id", "group"])
            ids |= {id_ for id_, group in zip(table["id"].to_pylist(), table["group"].to_pylist(), strict=True) if group in groups}
    return ids


@dataclass
class _Erased:
    """The documents with a tombstone, and what was met of them: ids, and texts as reports may show them."""

    case: str
    tombstones: Collection[str]
    found: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)

    def rows(self, table: pa.Table) -> np.ndarray:
        """Return which rows [n] of a table have a tombstone."""
        hit = is_erased(self.case, table, self.tombstones)
        self.found.update(table["id"][int(row)].as_py() for row in np.flatnonzero(hit))
        if "text" in table.column_names:
            self.texts.update(text for row in np.flatnonzero(hit) if (text := table["text"][int(row)].as_py()))
        return hit


def _replacements(store: Store, case: str, stage: str) -> dict[str, str]:
    """Return the content digest of each rewritten artifact by those that it had before."""
    return {old: made.content_digest for made in store.artifacts(case, stage) for old in made.metadata.get("replaces", [])}


def _drop_rows(store: Store, manifest: Manifest, file: str, erased: _Erased, report: Report) -> None:
    """Rewrite a table without the rows that have a tombstone, and with the inputs as they are since their own rewriting."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(store.folder(manifest) / file)
    hit = erased.rows(table)
    inputs = dict(manifest.inputs)
    for upstream in inputs.keys() & _TABLES.keys():
        inputs[upstream] = _replacements(store, manifest.case, upstream).get(inputs[upstream], inputs[upstream])
    if not hit.any() and inputs == manifest.inputs:
        return
    kept = table.filter(pa.array(~hit))

    def edit(folder: Path) -> Mapping[str, Any]:
        pq.write_table(kept, folder / file)
        if manifest.stage == "tokenized_chunks" and hit.any():
            # Counts of the batch's words, the erased documents' among them; the audit goes on without this batch.
            pq.write_table(pq.read_table(folder / WORDS).slice(0, 0), folder / WORDS)
        if manifest.stage == "labeled_examples":
            left_out = pq.read_table(folder / "left_out.parquet")
            pq.write_table(left_out.filter(pa.array(~erased.rows(left_out))), folder / "left_out.parquet")
        return _recounted(manifest, kept, table.filter(pa.array(hit)))

    store.rewrite(manifest, edit, inputs)
    report.rewritten[manifest.stage] += 1


def _recounted(manifest: Manifest, kept: pa.Table, gone: pa.Table) -> dict[str, Any]:
    """Return the metadata that counts rows, without the erased ones."""
    before = manifest.metadata
    counts: dict[str, Any] = {"num_erased": before.get("num_erased", 0) + len(gone)}
    if manifest.stage == "labeled_examples":
        counts |= {"num_rows": before["num_rows"] - len(gone), "num_valid": len(kept)}
        counts["label_counts"] = count_labels(kept, ExamplesSettings.model_validate(manifest.settings))
    elif manifest.stage == "quarantined_examples":
        num_superseded = sum(reasons in (SUPERSEDED, MERGED) for reasons in gone["reasons"].to_pylist())
        counts["num_superseded"] = before["num_superseded"] - num_superseded
        counts["num_quarantined"] = before["num_quarantined"] - (len(gone) - num_superseded)
    else:
        counts["num_rows"] = len(kept)
    return counts


def _drop_from_snapshots(store: Store, case: str, erased: _Erased, report: Report) -> None:
    """Rewrite the snapshots whose rows went or moved up in their batches; name the checkpoints that had read them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for manifest in store.artifacts(case, "training_snapshot"):
        folder = store.folder(manifest)
        index, places = pq.read_table(folder / "index.parquet"), pq.read_table(folder / "places.parquet")
        hit = erased.rows(index)
        splits = set(manifest.metadata.get("erased_from", [])) | set(index.filter(pa.array(hit))["split"].to_pylist())
        kept = index.filter(pa.array(~hit))
        moved = _places_of(store, manifest, kept["id"].to_pylist(), places.filter(pa.array(~hit)))
        if not hit.any() and moved.equals(places):
            continue

        def edit(path: Path, manifest=manifest, kept=kept, moved=moved, hit=hit, splits=splits) -> Mapping[str, Any]:
            pq.write_table(kept, path / "index.parquet")
            pq.write_table(moved, path / "places.parquet")
            if hit.any() and (path / "packing.parquet").is_file():
                # Its positions are those of all training windows, so it is planned anew.
                pq.write_table(pack_again(store, manifest, kept, moved).to_table(), path / "packing.parquet")
            if hit.any():
                (path / "report.md").write_text(
                    "# Data report\n\nWithdrawn: documents that it was made of were erased.\n", encoding="utf-8"
                )
            counts = Counter(kept["split"].to_pylist())
            return {f"num_{split}_rows": counts[split] for split in ("train", "validation", "test")} | {"erased_from": sorted(splits)}

        store.rewrite(manifest, edit)
        report.rewritten[manifest.stage] += 1


def _name_checkpoints(store: Store, case: str, report: Report) -> None:
    """Name every checkpoint whose snapshot held an erased document, whichever erasure took it out."""
    splits = {_key_ref(m.ref): m.metadata["erased_from"] for m in store.artifacts(case, "training_snapshot") if "erased_from" in m.metadata}
    for checkpoint in store.artifacts(case, "finetuned_checkpoint"):
        found = splits.get(_key_ref(checkpoint.metadata["snapshot"]), [])
        if found:
            (report.trained_on if "train" in found else report.measured_on).append(checkpoint.ref)
    champions = _champions(store, case)
    report.champions = [ref for ref in report.trained_on if ref in champions]


def _places_of(store: Store, snapshot: Manifest, ids: list[str], places: pa.Table) -> pa.Table:
    """Return where a snapshot's rows stand in their batches, looked up by id: rows before them may be gone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    batches, positions = places["batch"].to_pylist(), places["position"].to_pylist()
    for batch in sorted(set(batches)):
        chunks = store.load(snapshot.metadata["parts"][batch]["chunks"])
        stands = {
            id_: at for at, id_ in enumerate(pq.read_table(store.folder(chunks) / "chunks.parquet", columns=["id"])["id"].to_pylist())
        }
        for row, (its_batch, id_) in enumerate(zip(batches, ids, strict=True)):
            if its_batch == batch:
                positions[row] = stands[id_]
    at = places.column_names.index("position")
    return places.set_column(at, places.schema.field(at), pa.array(positions, places.schema.field(at).type))


def _drop_derived(store: Store, case: str, report: Report) -> None:
    """Delete what was made of rewritten artifacts and is made again when needed; forget the features of their windows."""
    gone = {old for stage in (*_TABLES, "training_snapshot") for old in _replacements(store, case, stage)}
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
    """Take erased documents out of the evaluation reports that show answers side by side, or how texts go on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    excerpts = {escape(shorten(text), quote=quote) for text in erased.texts for quote in (True, False)}
    excerpts |= {excerpt.replace("&#x27;", "&#39;").replace("&quot;", "&#34;") for excerpt in excerpts}
    for manifest in store.artifacts(case, "evaluation_report"):
        pages = [store.folder(manifest) / name for name in manifest.files if name.endswith((".html", ".md"))]
        predictions = pq.read_table(store.folder(manifest) / "predictions.parquet")
        hit = is_erased(case, predictions, erased.tombstones)
        kept = predictions.filter(pa.array(~hit))
        # What a model wrote after the beginning of a document goes with it.
        shown = [f'<tr data-document="{_html(id_)}">' for id_ in predictions.filter(pa.array(hit))["id"].to_pylist()]
        shows_text = any(excerpt in page.read_text(encoding="utf-8") for page in pages for excerpt in excerpts)
        if len(kept) == len(predictions) and not shows_text:
            continue

        def edit(folder: Path, pages: list[Path] = pages, kept: pa.Table = kept, shown: list[str] = shown) -> Mapping[str, Any]:
            pq.write_table(kept, folder / "predictions.parquet")
            _drop_from_figures(folder / "evaluation.json", set(kept["id"].to_pylist()))
            for page in pages:
                text = page.read_text(encoding="utf-8")
                for excerpt in excerpts:
                    text = text.replace(excerpt, _GONE)
                for row in shown:
                    text = re.sub(rf"{re.escape(row)}.*?</tr>", f"<tr><td>{_GONE}</td></tr>", text, flags=re.DOTALL)
                (folder / page.name).write_text(text, encoding="utf-8")
            return {}

        store.rewrite(manifest, edit)
        report.rewritten[manifest.stage] += 1


def _drop_from_figures(path: Path, kept: set[str]) -> None:
    """Take the ids of erased documents out of a language model's figures; a classifier's name none."""
    figures = json.loads(path.read_text(encoding="utf-8"))
    if "changes" not in figures:
        return
    changes = figures["changes"]
    changes["largest_regressions"] = [change for change in changes["largest_regressions"] if change["id"] in kept]
    path.write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")


def _html(text: str) -> str:
    """Return a text as Jinja escapes it."""
    return escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


def _champions(store: Store, case: str) -> set[str]:
    current = release.read_champion(store, case)
    past = [retired.champion.checkpoint for retired in release.read_history(store, case)]
    return {*past, *([current.checkpoint] if current else [])}


def _key_ref(ref: str) -> str:
    """Return the part of a ref that names the artifact, whichever attempt."""
    return ref.rsplit("/", 1)[0]


def _record(store: Store, case: str, report: Report, reason: str) -> None:
    entry = {
        "at": time.time(),
        "reason": reason,
        "num_listed": report.num_listed,
        "num_found": report.num_found,
        "rewritten": dict(report.rewritten),
        "deleted": dict(report.deleted),
        "trained_on": report.trained_on,
        "measured_on": report.measured_on,
        "champions": report.champions,
    }
    store.write_pointer(f"{case}/erasures/{int(entry['at'] * 1000):014d}", entry)
