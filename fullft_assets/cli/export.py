"""What `fullft export` writes for those who label: production documents far from the training data, or a
random sample of production, as the labelling tools import them.

What people answer there is read back by `documents.formats.annotations`: the control of Label Studio, the
question of Argilla and the label attribute of Ground Truth are named `examples.label`, and the document's own
id is a field of each task.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from fullft_assets import release
from fullft_assets.artifacts import (
    BATCH_PREDICTIONS,
    DOCUMENTS_FILE,
    DRIFT_REPORT,
    LABELED_EXAMPLES,
    PRODUCTION_DOCUMENTS,
    TRAINING_SNAPSHOT,
)
from fullft_assets.errors import FullftError
from fullft_assets.escaping import EXPORT_COLUMN, to_cell
from fullft_assets.monitoring import (
    FAR,
    DriftMetadata,
    exported_as_far,
    live,
    read_far,
    remember_exported,
)
from fullft_assets.resources import latest, latest_by_partition
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot import label_names
from fullft_assets.store import Manifest, Store
from fullft_assets.store.hashing import unit_hash
from fullft_assets.task import task_of

#: Columns that each format has; the rest says why a document was chosen, of those that are far.
_COLUMNS = ("id", "text", "group", "window", "distance")
#: By target of a task: the control of Label Studio, a label in it, and the question of Argilla.
_CONTROLS = {
    "label": ('Choices choice="single"', "Choice", "label_selection"),
    "labels": ('Choices choice="multiple"', "Choice", "multi_label_selection"),
    "spans": ("Labels", "Label", "span"),
}


def export(
    use_case: UseCase,
    store: Store,
    out: str | Path,
    *,
    format_name: str,
    most: int,
    num_windows: int,
    at_random: bool = False,
    job: Callable[[Sequence[str], Sequence[str]], int] | None = None,
) -> int:
    """Write documents of the newest windows, those to label first in front, and return how many.

    The texts are read from the windows as they are now: what was erased is not among them.

    Args:
        out: the file; for Argilla the folder.
        format_name: jsonl, label_studio, argilla, ground_truth or csv.
        most: documents.
        num_windows: windows, the newest ones, that they are taken from.
        at_random: a random sample of the documents that count for live quality. Default: those far from the
            training data, of each window in turn.
        job: creates a labelling job from the lines of the manifest and the labels, and returns its number of
            documents. Default: the file is written.

    Raises:
        FullftError: no window has such documents, or there are no labels to choose from.
    """
    labels = use_case.settings.examples.labels or []
    if not labels and (snapshot := latest(store, use_case.name, TRAINING_SNAPSHOT)) is not None:
        labels = label_names(snapshot)
    if not labels and (job is not None or format_name == "argilla"):
        raise FullftError(
            f"{use_case.name}: there are no labels to choose from; name them in examples.labels"
        )
    rows = (
        _drawn(use_case, store, most, num_windows) if at_random else _far(use_case, store, most, num_windows)
    )
    for window in {row["window"] for row in rows}:
        places = [(row["source"], row["row"]) for row in rows if row["window"] == window]
        remember_exported(store, use_case.name, window, places, "at_random" if at_random else "far")
    files = _files(rows, use_case, format_name, labels)
    if job is not None:
        return job(files[""].split("\n")[:-1], labels)
    for ending, text in files.items():
        path = Path(f"{out}{ending}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return len(rows)


def _drawn(use_case: UseCase, store: Store, most: int, num_windows: int) -> list[dict[str, Any]]:
    """Return a random sample of what would count for live quality if it had a label, in random order, so that
    any first part is one, too.
    """
    name = use_case.name
    champion = release.read_champion(store, name)
    if champion is None:
        raise FullftError(
            f"{name}: a random sample is drawn from what the champion predicted, and there is none yet"
        )
    windows = latest_by_partition(store, name, PRODUCTION_DOCUMENTS)
    usable_predictions = live.predicted_by(
        store.load(champion.checkpoint), windows, latest_by_partition(store, name, BATCH_PREDICTIONS)
    )
    newest = list(usable_predictions)[-num_windows:]
    far = exported_as_far(store, name)
    labels = live.labels_by_id(store, latest_by_partition(store, name, LABELED_EXAMPLES))
    rows = [
        document
        for document in live.first_of_each(
            live.predicted_documents(store, name, windows, usable_predictions, far)
        )
        if document.window in newest
        and not document.is_chosen
        and document.label is None
        and document.id
        and document.id not in labels
    ]
    if not rows:
        raise FullftError(
            f"{name}: no document of the last {num_windows} windows that the champion predicted can be"
            " labelled for live_quality: each has a label, was exported as one far from the training data,"
            " or has no id by which its label would find it (documents.id)"
        )
    sample = sorted(
        rows,
        key=lambda document: unit_hash(use_case.settings.seed, "label_audit", document.key.hex()),
    )[:most]
    texts = {window: _documents(store, windows[window]) for window in newest}
    return [{**texts[document.window][document.location], "window": document.window} for document in sample]


def _far(use_case: UseCase, store: Store, most: int, num_windows: int) -> list[dict[str, Any]]:
    name = use_case.name
    names = sorted(store.list_pointers(f"latest/{name}/{DRIFT_REPORT}"))[-num_windows:]
    reports = {
        window: report
        for window in names
        if (report := latest(store, name, DRIFT_REPORT, window)) and FAR in report.files
    }
    rows: dict[str, dict[str, Any]] = {}
    in_turn = zip_longest(*(_rows(store, window, report) for window, report in reports.items()))
    for row in filter(None, chain.from_iterable(in_turn)):
        if len(rows) < most:
            rows.setdefault(row["text"], row)
    if not rows:
        raise FullftError(
            f"{name}: no document of the last {num_windows} windows is far from the training data; a"
            " drift_report names such documents"
        )
    return list(rows.values())


def _rows(store: Store, window: str, report: Manifest) -> Iterator[dict[str, Any]]:
    documents = _documents(store, store.load(DriftMetadata.of(report).documents))
    for far in read_far(store.folder(report) / FAR):
        row = documents.get((far.source, far.row))
        if row is not None:
            yield {
                **row,
                "id": row["id"] or f"{far.source}:{far.row}",
                "window": window,
                "distance": round(far.distance, 4),
            }


def _documents(store: Store, window: Manifest) -> dict[tuple[str, int], dict[str, Any]]:
    import pyarrow.parquet as pq

    table = pq.read_table(
        store.folder(window) / DOCUMENTS_FILE, columns=["source", "row", "id", "text", "group"]
    )
    return {(row["source"], row["row"]): row for row in table.to_pylist()}


def _files(
    rows: list[dict[str, Any]], use_case: UseCase, format_name: str, labels: Sequence[str]
) -> dict[str, str]:
    """Return the texts of the files, by what their paths have after `out`: rows with the names of fields that
    the use case reads, so that they can be delivered once they have a label.
    """
    settings = use_case.settings
    task = task_of(settings.examples)
    default_name = "prompt" if task.has_messages else "source" if format_name == "ground_truth" else "text"
    text = settings.documents.text or default_name
    names = {
        "id": settings.documents.id,
        "text": text,
        "group": settings.examples.group or "group",
        "window": EXPORT_COLUMN,
    }
    columns = [column for column in _COLUMNS if column in rows[0]]
    records = [
        {names.get(column, column): row[column] for column in columns if row[column] is not None}
        for row in rows
    ]
    label = settings.examples.label or ""
    tag, choice, question = _CONTROLS[task.target or "label"]
    if format_name == "label_studio":
        tasks = json.dumps([{"data": row} for row in records], ensure_ascii=False, indent=1) + "\n"
        choices = "".join(f"    <{choice} value={quoteattr(name)}/>\n" for name in labels)
        interface = (
            f'<View>\n  <Text name="document" value={quoteattr(f"${text}")}/>\n'
            f'  <{tag} name={quoteattr(label)} toName="document">\n{choices}  </{tag.split()[0]}>\n</View>\n'
        )
        return {"": tasks, **({".xml": interface} if labels else {})}
    if format_name == "argilla":
        options = [{"value": name, "text": name} for name in labels]
        dataset = {
            "fields": [{"name": text, "settings": {"type": "text"}}],
            "questions": [
                {
                    "name": label,
                    "settings": {
                        "type": question,
                        "options": options,
                        **({"field": text} if question == "span" else {}),
                    },
                }
            ],
            "allow_extra_metadata": True,
        }
        # The reader finds the id in the metadata, under the name that the use case gives it.
        items = [
            {
                "id": row[names["id"]],
                "fields": {text: row[text]},
                "metadata": {name: value for name, value in row.items() if name != text},
            }
            for row in records
        ]
        return {
            "/.argilla/dataset.json": json.dumps({"name": use_case.name}),
            "/.argilla/settings.json": json.dumps(dataset, ensure_ascii=False),
            "/records.json": json.dumps(items, ensure_ascii=False),
        }
    if format_name == "csv":
        table = io.StringIO()
        writer = csv.DictWriter(table, [names.get(column, column) for column in columns])
        writer.writeheader()
        writer.writerows({name: to_cell(value) for name, value in row.items()} for row in records)
        return {"": table.getvalue()}
    if format_name == "ground_truth":  # a job's output has all fields of its input
        records = [{"source": row[text], **row} for row in records]
    return {"": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records)}
