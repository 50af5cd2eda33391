"""Exports of annotation tools: Label Studio, Argilla, and output manifests of SageMaker Ground Truth.

Label Studio: JSON, tasks with their annotations. The label's field is the name of the control (`from_name`).
Cancelled (skipped) annotations are excluded, predictions are no annotations. An annotation marked as ground
truth replaces the others. (https://labelstud.io/guide/task_format)

Argilla: records of 2.x as JSON. The label's field is the question's name. Responses that were discarded or
are drafts are excluded; suggestions are a machine's, and no annotations. (https://docs.argilla.io,
`Record.to_dict`)

Ground Truth: JSON lines with a label attribute and its metadata. Classification: the attribute is an index or
a name, its metadata has the class name. Multi-label: a list of indices, with `class-map` and
`confidence-map`. Text spans: `annotations.entities`. The text is `source`.
(https://docs.aws.amazon.com/sagemaker/latest/dg/sms-data-output.html)
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from fullft_assets.documents.formats import json_records
from fullft_assets.documents.formats.delivered import Record
from fullft_assets.documents.formats.labels import Answer, Malformed
from fullft_assets.documents.formats.registered import Format, Reading
from fullft_assets.documents.formats.rows import (
    Row,
    RowSettings,
    add_annotation,
    add_names,
    add_problem,
    add_target,
    content_of,
    row_with_answers,
    rows,
)


def _rows_by(
    row_of: Callable[[dict[str, Any], RowSettings], Row],
) -> Callable[[Iterable[tuple[int, Record]], Reading], Iterator[tuple[int, Row]]]:
    """Return `Format.rows` of a function that returns the row of a record."""
    return lambda records, reading: rows(records, lambda record: row_of(record, reading.row_settings))


def _object_of(record: dict[str, Any], name: str) -> dict[str, Any]:
    return value if isinstance((value := record.get(name)), dict) else {}


def _task_answers(task: dict[str, Any], settings: RowSettings) -> list[Answer]:
    annotations = [] if task.get("annotations") is None else task["annotations"]
    if not isinstance(annotations, list) or not all(isinstance(item, dict) for item in annotations):
        raise Malformed("field `annotations` is not a list of annotations")
    finished = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    truths = [annotation for annotation in finished if annotation.get("ground_truth")]
    return [_answer(annotation, settings) for annotation in (truths if len(truths) == 1 else finished)]


def _answer(annotation: dict[str, Any], settings: RowSettings) -> Answer:
    result = annotation.get("result") or []
    if not isinstance(result, list) or not all(isinstance(region, dict) for region in result):
        raise Malformed("field `annotations` has a result that is not a list of regions")
    values = [region.get("value") for region in result if region.get("from_name") == settings.label]
    if not all(isinstance(value, dict) for value in values):
        raise Malformed(f"field `{settings.label}` has a region without a value")
    time = annotation.get("updated_at") or annotation.get("created_at")
    return Answer(
        _person(annotation.get("completed_by")),
        _value(values, settings),
        time if isinstance(time, str) else None,
    )


def _value(values: list[dict[str, Any]], settings: RowSettings) -> Any:
    """Return an annotator's answer. An empty answer means no labels and no spans; it is not a label."""
    if settings.target == "spans":
        # In HTML, start and end are paths, and the offsets in the text have a key of their own.
        return [
            {**value, **value["globalOffsets"]} if isinstance(value.get("globalOffsets"), dict) else value
            for value in values
        ]
    choices: list[Any] = []
    for value in values:
        # Keys of a region's value, by kind of control, for a classification.
        region_value = next(
            (value[name] for name in ("choices", "labels", "rating", "number", "text") if name in value),
            value.get("taxonomy"),
        )
        choices += [
            _joined(choice) for choice in (region_value if isinstance(region_value, list) else [region_value])
        ]
    return choices if settings.target == "labels" else choices[0] if len(choices) == 1 else choices or None


def _joined(value: Any) -> Any:
    is_path = isinstance(value, list) and all(isinstance(step, str) for step in value)
    return " / ".join(value) if is_path else value


def _person(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return str(value) if isinstance(value, int | str) and value != "" else None


LABEL_STUDIO = Format(
    rows=_rows_by(
        lambda task, settings: row_with_answers(
            {**_object_of(task, "meta"), "id": task.get("id"), **_object_of(task, "data")},
            settings,
            partial(_task_answers, task, settings),
        )
    ),
    written_as=("json", "jsonl", "parquet"),
    looks_like=lambda record, _: (
        isinstance(record.get("data"), dict)
        and any(isinstance(record.get(name), list) for name in ("annotations", "predictions"))
    ),
)


def _fields(record: dict[str, Any]) -> dict[str, Any]:
    fields = {
        name: value for name, value in record.items() if name not in ("fields", "responses", "suggestions")
    }
    fields |= _object_of(record, "metadata") | _object_of(record, "fields")
    if fields.get("id") is None and record.get("external_id") is not None:
        fields["id"] = record["external_id"]
    return fields


def _argilla_answers(record: dict[str, Any], question: str) -> list[Answer]:
    responses = record.get("responses") or {}
    if not isinstance(responses, dict):
        raise Malformed("field `responses` is no object with the responses by question")
    answers = responses.get(question) or []
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise Malformed(f"the responses to `{question}` are not a list of objects")
    return [
        Answer(_person(answer.get("user_id")), answer.get("value"), _person(answer.get("updated_at")))
        for answer in answers
        if str(answer.get("status")).lower() not in ("discarded", "draft", "pending")
    ]


ARGILLA = Format(
    rows=_rows_by(
        lambda record, settings: row_with_answers(
            _fields(record), settings, partial(_argilla_answers, record, settings.label or "")
        )
    ),
    written_as=("json", "jsonl", "parquet"),
    looks_like=lambda record, _: (
        isinstance(record.get("fields"), dict) and ("responses" in record or "suggestions" in record)
    ),
)


def _manifest_row(record: dict[str, Any], settings: RowSettings) -> Row:
    row = content_of(record, settings, settings.text or "source")
    add_names(row, record, settings)
    if settings.label is None or settings.label not in record:
        add_annotation(row, record.get("confidence"), record.get("human-annotated"))
        return row
    about = _object_of(record, f"{settings.label}-metadata")
    value = record[settings.label]
    add_target(row, _READERS[settings.target](value, about), settings)
    add_annotation(row, _confidence(value, about, settings.target), about.get("human-annotated"))
    if "time" not in row and isinstance(about.get("creation-date"), str):
        row["time"] = about["creation-date"]
    if settings.target == "spans" and value is not None and "spans" not in row and "problem" not in row:
        add_problem(row, f"field `{settings.label}` has no `annotations.entities`")
    return row


def _labels(value: Any, about: dict[str, Any]) -> Any:
    names = about.get("class-map")
    return (
        value
        if not isinstance(value, list) or not isinstance(names, dict)
        else [names.get(str(index), index) for index in value]
    )


def _confidence(value: Any, about: dict[str, Any], target: str) -> Any:
    if target == "labels" and isinstance(about.get("confidence-map"), dict) and isinstance(value, list):
        confidences = [about["confidence-map"].get(str(index)) for index in value]
    elif target == "spans" and isinstance(about.get("entities"), list):
        confidences = [entity.get("confidence") for entity in about["entities"] if isinstance(entity, dict)]
    else:
        return about.get("confidence")
    numbers = [number for number in confidences if isinstance(number, int | float)]
    return min(numbers) if numbers else None


_READERS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "label": lambda value, about: about.get("class-name", value),
    "labels": _labels,
    "spans": lambda value, _: (
        _object_of(value, "annotations").get("entities") if isinstance(value, dict) else value
    ),
}

GROUND_TRUTH = Format(
    json_records.line_records,
    _rows_by(_manifest_row),
    endings=(".manifest",),
    is_text=True,
    is_streamed=True,
    may_be_compressed=True,
    looks_like=lambda record, settings: "source" in record and f"{settings.label}-metadata" in record,
    text="source",
)
