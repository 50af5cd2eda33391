"""What `fullft export` writes: production documents far from the training data, for those who label."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fullft_assets.errors import FullftError
from fullft_assets.monitoring import FAR, DriftMetadata, FarDocument, read_far
from fullft_assets.resources import latest
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store

#: Columns that each format has; the rest says why a document was chosen.
_COLUMNS = ("id", "text", "group", "window", "distance", "cluster")


def export(use_case: UseCase, store: Store, out: Path, *, chosen: str, most: int, num_windows: int) -> int:
    """Write documents of the newest windows, those to label first in front, and return how many.

    The texts are read from the windows as they are now: what was erased is not among them.

    Args:
        out: the file.
        chosen: format: jsonl, label_studio, ground_truth or csv.
        most: documents.
        num_windows: windows, the newest ones, that they are taken from in turn.

    Raises:
        FullftError: no window has such documents.
    """
    name = use_case.name
    names = sorted(store.list_pointers(f"latest/{name}/drift_report"))[-num_windows:]
    reports = {window: report for window in names if (report := latest(store, name, "drift_report", window)) and FAR in report.files}
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for row in _in_turn([list(_rows(store, window, report)) for window, report in reports.items()]):
        if row["text"] not in seen and len(rows) < most:
            seen.add(row["text"])
            rows.append(row)
    if not rows:
        raise FullftError(
            f"{name}: no document of the last {num_windows} windows is far from the training data; a drift_report names such documents"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_rendered(rows, use_case, chosen), encoding="utf-8", newline="")
    return len(rows)


def _rows(store: Store, window: str, report: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the documents of a window in the report's order."""
    import pyarrow.parquet as pq

    folder = store.folder(store.load(DriftMetadata.of(report).documents))
    table = pq.read_table(folder / "documents.parquet", columns=["source", "row", "id", "text", "group"]).to_pylist()
    documents = {(row["source"], row["row"]): row for row in table}
    for far in read_far(store.folder(report) / FAR):
        row = documents.get((far.source, far.row))
        if row is not None:
            yield {**_about(row, far), "window": window}


def _about(row: dict[str, Any], far: FarDocument) -> dict[str, Any]:
    identifier = row["id"] or f"{far.source}:{far.row}"
    return {"id": identifier, "text": row["text"], "group": row["group"], "distance": round(far.distance, 4), "cluster": far.cluster}


def _in_turn(lists: list[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for turn in range(max(map(len, lists), default=0)):
        yield from (each[turn] for each in lists if turn < len(each))


def _rendered(rows: list[dict[str, Any]], use_case: UseCase, chosen: str) -> str:
    """Return the rows with the names of fields that the use case reads, so that they can be delivered once they have a label."""
    settings = use_case.settings
    names = {
        "id": settings.documents.id,
        "text": settings.documents.text or ("source" if chosen == "ground_truth" else "text"),
        "group": settings.examples.group or "group",
    }
    named = [{names.get(column, column): row[column] for column in _COLUMNS if row[column] is not None} for row in rows]
    if chosen == "label_studio":
        return json.dumps([{"data": row} for row in named], ensure_ascii=False, indent=1) + "\n"
    if chosen == "ground_truth":  # a job's output has all fields of its input
        return "".join(
            json.dumps({"source": row["text"], **fields}, ensure_ascii=False) + "\n" for row, fields in zip(rows, named, strict=True)
        )
    if chosen == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named)
    table = io.StringIO()
    writer = csv.DictWriter(table, [names.get(column, column) for column in _COLUMNS])
    writer.writeheader()
    writer.writerows(named)
    return table.getvalue()
