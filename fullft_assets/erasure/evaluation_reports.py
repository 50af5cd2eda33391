"""Takes erased documents out of evaluation reports: their texts, their predictions, and the names of groups
that are gone with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from html import escape, unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.erasure.erased_documents import ErasedDocuments, whole_artifacts
from fullft_assets.erasure.file_names import GONE
from fullft_assets.erasure.report import ErasureReport
from fullft_assets.report import LABEL_ERRORS, delimiter_of, read_list, shorten, write_list
from fullft_assets.store import Manifest, Store
from fullft_assets.tasks.language.assessment import ANSWERS

if TYPE_CHECKING:
    import pyarrow as pa

_TABLES = ("predictions.parquet", "validation.parquet")
#: A row of a page's table that is about one document or group.
_ABOUT = re.compile(r'<tr data-(document|group)="(.*?)">.*?</tr>', re.DOTALL)


def drop_from_reports(store: Store, case: str, erased: ErasedDocuments, report: ErasureReport) -> None:
    """Take erased documents out of the evaluation reports of a use case."""
    excerpts = {escape(shorten(text), quote=quote) for text in erased.texts for quote in (True, False)}
    excerpts |= {excerpt.replace("&#x27;", "&#39;").replace("&quot;", "&#34;") for excerpt in excerpts}
    for manifest, folder in whole_artifacts(store, case, "evaluation_report"):
        if _drop_from_report(store, manifest, folder, erased, excerpts):
            report.rewritten[manifest.stage] += 1


def _drop_from_report(
    store: Store, manifest: Manifest, folder: Path, erased: ErasedDocuments, excerpts: Collection[str]
) -> bool:
    """Rewrite one report without the erased documents; return whether it showed any."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    tables = {name: pq.read_table(folder / name) for name in _TABLES if name in manifest.files}
    # The first field of a list is the id of a document.
    lists = {
        name: read_list(folder / name)
        for name in manifest.files
        if name == ANSWERS or name.startswith(f"{LABEL_ERRORS}.")
    }
    ids = {id_ for table in tables.values() for id_ in table["id"].to_pylist()}
    ids |= {next(iter(row.values())) for rows in lists.values() for row in rows}
    ids_gone = erased.named(ids)
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
    shows_text = any(excerpt in text for text in texts.values() for excerpt in excerpts)
    if not ids_gone and not shows_text:
        return False
    predictions = tables_left["predictions.parquet"]
    groups_gone = {*tables["predictions.parquet"]["group"].to_pylist()} - {*predictions["group"].to_pylist()}
    gone = {"document": ids_gone, "group": groups_gone}

    def without_gone(row: re.Match[str]) -> str:
        kind, value = row.groups()
        return f"<tr><td>{GONE}</td></tr>" if unescape(value) in gone[kind] else row[0]

    def edit(path: Path) -> Mapping[str, Any]:
        for name, table in tables_left.items():
            pq.write_table(table, path / name)
        _drop_from_measurements(path / "evaluation.json", predictions)
        for name, rows in lists_left.items():
            if rows != lists[name]:
                write_list(path / name, rows, delimiter_of(path / name))
        for name, text in texts.items():
            # What a model wrote after the beginning of a document goes with it, and the name of a group with
            # the last of its rows.
            text = _ABOUT.sub(without_gone, text)
            for excerpt in excerpts:
                text = text.replace(excerpt, GONE)
            (path / name).write_text(text, encoding="utf-8")
        return {}

    store.rewrite(manifest, edit)
    return True


def _drop_from_measurements(path: Path, predictions: pa.Table) -> None:
    """Take the names of groups without a row from the measurements, and from those of a language model's the
    ids of erased documents.
    """
    measured = json.loads(path.read_text(encoding="utf-8"))
    ids = {*predictions["id"].to_pylist()}
    groups = {*predictions["group"].to_pylist()}
    measured["weakest_groups"] = [row for row in measured["weakest_groups"] if row["group"] in groups]
    if "changes" in measured:
        regressions = measured["changes"]["largest_regressions"]
        measured["changes"]["largest_regressions"] = [row for row in regressions if row["id"] in ids]
    path.write_text(json.dumps(measured, indent=1, ensure_ascii=False), encoding="utf-8")
