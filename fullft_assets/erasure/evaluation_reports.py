"""Takes erased documents out of evaluation reports: their texts, their predictions, and the names of groups
that are gone with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.documents.erasure import is_erased
from fullft_assets.erasure.erased_documents import ErasedDocuments, by_content, with_origin
from fullft_assets.erasure.file_names import GONE
from fullft_assets.erasure.report import ErasureReport
from fullft_assets.evaluation.answers import ANSWERS
from fullft_assets.report import LABEL_ERRORS, delimiter_of, read_list, shorten, write_list
from fullft_assets.store import Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa


def drop_from_reports(store: Store, case: str, erased: ErasedDocuments, report: ErasureReport) -> None:
    """Take erased documents out of the evaluation reports that show answers side by side, or how texts go on,
    and the names of groups.
    """
    excerpts = {escape(shorten(text), quote=quote) for text in erased.texts for quote in (True, False)}
    excerpts |= {excerpt.replace("&#x27;", "&#39;").replace("&quot;", "&#34;") for excerpt in excerpts}
    snapshots = by_content(store, case, "training_snapshot")
    for manifest in store.artifacts(case, "evaluation_report"):
        if _drop_from_report(store, manifest, erased, excerpts, snapshots):
            report.rewritten[manifest.stage] += 1


def _drop_from_report(
    store: Store,
    manifest: Manifest,
    erased: ErasedDocuments,
    excerpts: Collection[str],
    snapshots: Mapping[str, Manifest],
) -> bool:
    """Rewrite one report without the erased documents; return whether it showed any."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pages = [store.folder(manifest) / name for name in manifest.files if name.endswith((".html", ".md"))]
    predictions = pq.read_table(store.folder(manifest) / "predictions.parquet")
    hit = _judged_erased(store, manifest, predictions, erased, snapshots)
    kept = predictions.filter(pa.array(~hit))
    lists = [name for name in manifest.files if name == ANSWERS or name.startswith(f"{LABEL_ERRORS}.")]
    listed = {name: read_list(store.folder(manifest) / name) for name in lists}
    ids = {name: [next(iter(row.values())) for row in rows] for name, rows in listed.items() if rows}
    gone = {
        name: _judged_erased(store, manifest, pa.table({"id": its}), erased, snapshots)
        for name, its in ids.items()
    }
    fitted = store.folder(manifest) / "validation.parquet"
    validation = pq.read_table(fitted) if fitted.is_file() else predictions.slice(0, 0)
    validation_hit = _judged_erased(store, manifest, validation, erased, snapshots)
    # What a model wrote after the beginning of a document goes with it, and the name of a group with the last
    # of its rows.
    shown = [
        f'<tr data-document="{_html(id_)}">' for id_ in predictions.filter(pa.array(hit))["id"].to_pylist()
    ]
    groups_gone = {*predictions["group"].to_pylist()} - {*kept["group"].to_pylist()}
    shown += [
        f'<tr data-document="{_html(ids[name][row])}">'
        for name, hits in gone.items()
        for row in np.flatnonzero(hits)
    ]
    shown += [f'<tr data-group="{_html(group)}">' for group in sorted(groups_gone)]
    shows_text = any(excerpt in page.read_text(encoding="utf-8") for page in pages for excerpt in excerpts)
    if not any(hits.any() for hits in (hit, validation_hit, *gone.values())) and not shows_text:
        return False

    def edit(folder: Path) -> Mapping[str, Any]:
        pq.write_table(kept, folder / "predictions.parquet")
        if validation_hit.any():
            pq.write_table(validation.filter(pa.array(~validation_hit)), folder / fitted.name)
        _drop_from_measurements(folder / "evaluation.json", kept)
        for name, hits in gone.items():
            left = [row for row, is_gone in zip(listed[name], hits, strict=True) if not is_gone]
            write_list(folder / name, left, delimiter_of(folder / name))
        for page in pages:
            text = page.read_text(encoding="utf-8")
            for excerpt in excerpts:
                text = text.replace(excerpt, GONE)
            for row in shown:
                text = re.sub(
                    rf"{re.escape(row)}.*?</tr>", f"<tr><td>{GONE}</td></tr>", text, flags=re.DOTALL
                )
            (folder / page.name).write_text(text, encoding="utf-8")
        return {}

    store.rewrite(manifest, edit)
    return True


def _judged_erased(
    store: Store,
    evaluation: Manifest,
    predictions: pa.Table,
    erased: ErasedDocuments,
    snapshots: Mapping[str, Manifest],
) -> np.ndarray:
    """Return which predictions [n] are of an erased document: an id alone may be made up, so the snapshot
    that was tested on decides.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    by_id = is_erased(erased.case, predictions, erased.tombstones)
    snapshot = snapshots.get(evaluation.inputs.get("training_snapshot", ""))
    if snapshot is None:
        return by_id
    folder = store.folder(snapshot)
    index = pq.read_table(folder / "index.parquet")
    hit = erased.rows(with_origin(index, pq.read_table(folder / "places.parquet")))
    gone = index["id"].filter(pa.array(hit)).combine_chunks()
    is_known = pc.is_in(predictions["id"], index["id"].combine_chunks()).to_numpy().astype(bool)
    return pc.is_in(predictions["id"], gone).to_numpy().astype(bool) | (by_id & ~is_known)


def _drop_from_measurements(path: Path, kept: pa.Table) -> None:
    """Take the names of groups without a row from the measurements, and from those of a language model's the
    ids of erased documents.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    ids, groups = ({*kept[name].to_pylist()} for name in ("id", "group"))
    found["weakest_groups"] = [row for row in found["weakest_groups"] if row["group"] in groups]
    if "changes" in found:
        changes = found["changes"]
        changes["largest_regressions"] = [
            change for change in changes["largest_regressions"] if change["id"] in ids
        ]
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")


def _html(text: str) -> str:
    """Return a text as Jinja escapes it."""
    return escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
