"""Exports of Label Studio: JSON (tasks with their annotations) and JSON-MIN (one flat record an annotation).

The label's field is the name of the control (`from_name`). Cancelled (skipped) annotations are excluded,
predictions are no annotations. An annotation marked as ground truth replaces the others.
(https://labelstud.io/guide/task_format)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from fullft_assets.documents.formats.delivered import Record
from fullft_assets.documents.formats.labels import Answer, Malformed
from fullft_assets.documents.formats.protocol import Format, Reading
from fullft_assets.documents.formats.rows import Row, Wanted, row_with_answers

#: Keys of a region's value, by kind of control, for a classification.
_CHOICES = ("choices", "labels", "rating", "number", "text")


def is_task(record: dict[str, Any], wanted: Wanted) -> bool:
    """Return whether a record looks like a task, or like a record of JSON-MIN."""
    if isinstance(record.get("data"), dict):
        return any(
            isinstance(record.get(name), list) for name in ("annotations", "completions", "predictions")
        )
    return "annotation_id" in record and "annotator" in record


def rows(records: Iterable[tuple[int, Record]], reading: Reading) -> Iterator[tuple[int, Row]]:
    """Yield (row number, row) of each task; in JSON-MIN, the annotations of one task follow each other."""
    wanted = reading.wanted
    for _, group in groupby(records, _task_key):
        together = list(group)
        number, record = together[0]
        if isinstance(record, str):
            yield number, {"problem": record}
        elif isinstance(record.get("data"), dict):
            yield (
                number,
                row_with_answers(
                    {**_meta(record), **record["data"]},
                    wanted,
                    lambda record=record: _answers(record, wanted),
                ),
            )
        else:
            yield (
                number,
                row_with_answers(
                    _without_annotation(record),
                    wanted,
                    lambda group=together: [
                        _flat_answer(each, wanted) for _, each in group if isinstance(each, dict)
                    ],
                ),
            )


def _task_key(numbered: tuple[int, Record]) -> Any:
    number, record = numbered
    if (
        isinstance(record, str)
        or isinstance(record.get("data"), dict)
        or not isinstance(record.get("id"), int | str)
    ):
        return ("row", number)
    return ("task", record["id"])


def _meta(task: dict[str, Any]) -> dict[str, Any]:
    meta = task.get("meta")
    return {**(meta if isinstance(meta, dict) else {}), "id": task.get("id")}


def _answers(task: dict[str, Any], wanted: Wanted) -> list[Answer]:
    annotations = task.get("annotations", task.get("completions"))
    annotations = [] if annotations is None else annotations
    if not isinstance(annotations, list) or not all(isinstance(each, dict) for each in annotations):
        raise Malformed("field `annotations` is not a list of annotations")
    finished_annotations = [
        each for each in annotations if not each.get("was_cancelled") and not each.get("skipped")
    ]
    agreed = [each for each in finished_annotations if each.get("ground_truth")]
    return [_answer(each, wanted) for each in (agreed if len(agreed) == 1 else finished_annotations)]


def _answer(annotation: dict[str, Any], wanted: Wanted) -> Answer:
    result = annotation.get("result") or []
    if not isinstance(result, list) or not all(isinstance(region, dict) for region in result):
        raise Malformed("field `annotations` has a result that is not a list of regions")
    values = [region.get("value") for region in result if region.get("from_name") == wanted.label]
    if not all(isinstance(value, dict) for value in values):
        raise Malformed(f"field `{wanted.label}` has a region without a value")
    time = annotation.get("updated_at") or annotation.get("created_at")
    return Answer(
        _person(annotation.get("completed_by")),
        _value(values, wanted),
        time if isinstance(time, str) else None,
    )


def _value(values: list[dict[str, Any]], wanted: Wanted) -> Any:
    """Return an annotator's answer. An empty answer means no labels and no spans; it is not a label."""
    if wanted.target == "spans":
        # In HTML, start and end are paths, and the offsets in the text have a key of their own.
        return [
            {**value, **value["globalOffsets"]} if isinstance(value.get("globalOffsets"), dict) else value
            for value in values
        ]
    chosen: list[Any] = []
    for value in values:
        region_value = next((value[name] for name in _CHOICES if name in value), value.get("taxonomy"))
        chosen += [
            _joined(each) for each in (region_value if isinstance(region_value, list) else [region_value])
        ]
    if wanted.target == "labels":
        return chosen
    return chosen[0] if len(chosen) == 1 else chosen or None


def _joined(value: Any) -> Any:
    """Return a path of a taxonomy as one name, anything else as it is."""
    is_path = isinstance(value, list) and all(isinstance(step, str) for step in value)
    return " / ".join(value) if is_path else value


def _flat_answer(record: dict[str, Any], wanted: Wanted) -> Answer:
    value = record.get(wanted.label or "")
    if isinstance(value, str) and value.startswith("{"):
        value = _parsed(value)
    if isinstance(value, dict):
        value = _value([value], wanted)
    elif value is None or (isinstance(value, list) and not value):
        value = None if wanted.target == "label" else []
    elif (
        wanted.target == "spans" and isinstance(value, list) and all(isinstance(each, dict) for each in value)
    ):
        value = _value(value, wanted)
    time = record.get("updated_at") or record.get("created_at")
    return Answer(_person(record.get("annotator")), value, time if isinstance(time, str) else None)


def _parsed(value: str) -> Any:
    # Several choices in a CSV export are JSON in a field.
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _without_annotation(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in record.items()
        if name not in ("annotator", "annotation_id", "lead_time")
    }


def _person(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return str(value) if isinstance(value, int | str) and value != "" else None


FORMAT = Format(rows=rows, written_as=("json", "csv", "parquet", "arrow"), looks_like=is_task)
