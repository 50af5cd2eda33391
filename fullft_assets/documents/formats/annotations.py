"""Exports of annotation tools: Label Studio, Argilla, and output manifests of SageMaker Ground Truth.

Label Studio: JSON (tasks with their annotations) and JSON-MIN (one flat record an annotation). The label's
field is the name of the control (`from_name`). Cancelled (skipped) annotations are excluded, predictions are
no annotations. An annotation marked as ground truth replaces the others.
(https://labelstud.io/guide/task_format)

Argilla: records of 2.x, nested or flat. The label's field is the question's name. Responses that were
discarded or are drafts are excluded; suggestions are a machine's, and no annotations.
(https://docs.argilla.io, `Record.to_dict`)

Ground Truth: JSON lines with a label attribute and its metadata. Classification: the attribute is an index or
a name, its metadata has the class name. Multi-label: a list of indices, with `class-map` and
`confidence-map`. Text spans: `annotations.entities`. The text is `source`, or is in the object that
`source-ref` names. (https://docs.aws.amazon.com/sagemaker/latest/dg/sms-data-output.html)
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby, islice
from typing import Any

from fullft_assets.documents.formats import json_records
from fullft_assets.documents.formats.delivered import Record
from fullft_assets.documents.formats.labels import Answer, Malformed, parsed
from fullft_assets.documents.formats.registered import Format, Reading
from fullft_assets.documents.formats.rows import (
    Row,
    Wanted,
    add_annotation,
    add_names,
    add_problem,
    add_target,
    content_of,
    row_with_answers,
)

#: Fields of a flat record that are about the annotation.
_OF_ANNOTATION = ("annotator", "annotation_id", "lead_time")
#: Keys of a region's value, by kind of control, for a classification.
_CHOICES = ("choices", "labels", "rating", "number", "text")


def _is_task(record: dict[str, Any], wanted: Wanted) -> bool:
    if isinstance(record.get("data"), dict):
        return any(
            isinstance(record.get(name), list) for name in ("annotations", "completions", "predictions")
        )
    return "annotation_id" in record and "annotator" in record


def _label_studio_rows(records: Iterable[tuple[int, Record]], reading: Reading) -> Iterator[tuple[int, Row]]:
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
                    {**_object_of(record, "meta"), "id": record.get("id"), **record["data"]},
                    wanted,
                    lambda record=record: _task_answers(record, wanted),
                ),
            )
        else:
            yield (
                number,
                row_with_answers(
                    {name: value for name, value in record.items() if name not in _OF_ANNOTATION},
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


def _object_of(record: dict[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def _task_answers(task: dict[str, Any], wanted: Wanted) -> list[Answer]:
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
    is_path = isinstance(value, list) and all(isinstance(step, str) for step in value)
    return " / ".join(value) if is_path else value


def _flat_answer(record: dict[str, Any], wanted: Wanted) -> Answer:
    value = record.get(wanted.label or "")
    if isinstance(value, str) and value.startswith("{"):
        # Several choices in a CSV export are JSON in a field.
        value = parsed(value)
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


def _person(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return str(value) if isinstance(value, int | str) and value != "" else None


LABEL_STUDIO = Format(
    rows=_label_studio_rows, written_as=("json", "csv", "parquet", "arrow"), looks_like=_is_task
)


_UNFINISHED = ("discarded", "draft", "pending")


def _is_argilla_record(record: dict[str, Any], wanted: Wanted) -> bool:
    nested = isinstance(record.get("fields"), dict) and ("responses" in record or "suggestions" in record)
    return nested or "_server_id" in record or any(name.endswith(".responses") for name in record)


def _argilla_rows(records: Iterable[tuple[int, Record]], reading: Reading) -> Iterator[tuple[int, Row]]:
    wanted = reading.wanted
    for number, record in records:
        if isinstance(record, str):
            yield number, {"problem": record}
        else:
            answers = partial(_argilla_answers, record, wanted.label or "")
            yield number, row_with_answers(_fields(record), wanted, answers)


def _fields(record: dict[str, Any]) -> dict[str, Any]:
    nested = ("fields", "responses", "suggestions")
    fields = {name: value for name, value in record.items() if name not in nested}
    fields |= _object_of(record, "metadata") | _object_of(record, "fields")
    if fields.get("id") is None and record.get("external_id") is not None:
        fields["id"] = record["external_id"]
    return fields


def _argilla_answers(record: dict[str, Any], question: str) -> list[Answer]:
    responses = record.get("responses")
    if responses is not None:
        if not isinstance(responses, dict):
            raise Malformed("field `responses` is no object with the responses by question")
        return _responses(responses.get(question), question)
    if f"{question}.responses" in record:
        return _flat(record, question)
    return _responses(record.get(question), question)


def _responses(values: Any, question: str) -> list[Answer]:
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(each, dict) for each in values):
        raise Malformed(f"the responses to `{question}` are not a list of objects")
    return [
        Answer(_person(each.get("user_id")), each.get("value"), _person(each.get("updated_at")))
        for each in values
        if _is_submitted(each)
    ]


def _flat(record: dict[str, Any], question: str) -> list[Answer]:
    values = record[f"{question}.responses"]
    if values is None:
        return []
    unknown = [None] * len(values) if isinstance(values, list) else None
    columns = [
        values,
        *(record.get(f"{question}.responses.{name}") or unknown for name in ("users", "status")),
    ]
    lists = [each for each in columns if isinstance(each, list)]
    if len(lists) < len(columns) or len({len(each) for each in lists}) > 1:
        raise Malformed(
            f"the responses to `{question}`, their users and their status are not lists of one length"
        )
    together = zip(*lists, strict=True)
    return [
        Answer(_person(user), value) for value, user, status in together if _is_submitted({"status": status})
    ]


def _is_submitted(response: dict[str, Any]) -> bool:
    status = response.get("status")
    return not (isinstance(status, str) and status.lower() in _UNFINISHED)


ARGILLA = Format(
    rows=_argilla_rows, written_as=("json", "csv", "parquet", "arrow"), looks_like=_is_argilla_record
)


#: Rows whose references are fetched together.
FETCHED_ROWS = 256


def _is_manifest(record: dict[str, Any], wanted: Wanted) -> bool:
    return ("source" in record or "source-ref" in record) and f"{wanted.label}-metadata" in record


def _manifest_rows(records: Iterable[tuple[int, Record]], reading: Reading) -> Iterator[tuple[int, Row]]:
    remaining, wanted = iter(records), reading.wanted
    while together := list(islice(remaining, FETCHED_ROWS)):
        references = {
            number: reference
            for number, record in together
            if (reference := _reference(record, wanted)) is not None
        }
        texts = dict(
            zip(references, reading.fetch(list(references.values())) if references else [], strict=True)
        )
        for number, record in together:
            yield (
                number,
                {"problem": record}
                if isinstance(record, str)
                else _manifest_row(record, wanted, texts.get(number)),
            )


def _reference(record: Record, wanted: Wanted) -> str | None:
    if isinstance(record, str) or wanted.has_messages or (wanted.text or "source") in record:
        return None
    reference = record.get("source-ref")
    return reference if isinstance(reference, str) else None


def _manifest_row(record: dict[str, Any], wanted: Wanted, fetched: str | OSError | None) -> Row:
    if isinstance(fetched, OSError):
        row: Row = {"problem": f"source-ref cannot be read ({fetched.strerror or fetched})"}
    else:
        row = content_of(record, wanted, wanted.text or "source") if fetched is None else {"text": fetched}
    add_names(row, record, wanted)
    if wanted.label is None or wanted.label not in record:
        add_annotation(row, record.get("confidence"), record.get("human-annotated"))
        return row
    about = _object_of(record, f"{wanted.label}-metadata")
    value = record[wanted.label]
    add_target(row, _READERS[wanted.target](value, about), wanted)
    add_annotation(row, _confidence(value, about, wanted.target), about.get("human-annotated"))
    if "time" not in row and isinstance(about.get("creation-date"), str):
        row["time"] = about["creation-date"]
    if wanted.target == "spans" and value is not None and "spans" not in row and "problem" not in row:
        add_problem(row, f"field `{wanted.label}` has no `annotations.entities`")
    return row


def _label(value: Any, about: dict[str, Any]) -> Any:
    return about.get("class-name", value)


def _labels(value: Any, about: dict[str, Any]) -> Any:
    names = about.get("class-map")
    if not isinstance(value, list) or not isinstance(names, dict):
        return value
    return [names.get(str(index), index) for index in value]


def _spans(value: Any, about: dict[str, Any]) -> Any:
    return _object_of(value, "annotations").get("entities") if isinstance(value, dict) else value


def _confidence(value: Any, about: dict[str, Any], target: str) -> Any:
    if target == "label":
        return about.get("confidence")
    if target == "labels" and isinstance(about.get("confidence-map"), dict) and isinstance(value, list):
        each = [about["confidence-map"].get(str(index)) for index in value]
    elif target == "spans" and isinstance(about.get("entities"), list):
        each = [entity.get("confidence") for entity in about["entities"] if isinstance(entity, dict)]
    else:
        return about.get("confidence")
    numbers = [number for number in each if isinstance(number, int | float)]
    return min(numbers) if numbers else None


_READERS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "label": _label,
    "labels": _labels,
    "spans": _spans,
}

GROUND_TRUTH = Format(
    json_records.line_records,
    _manifest_rows,
    endings=(".manifest",),
    is_text=True,
    is_streamed=True,
    may_be_compressed=True,
    looks_like=_is_manifest,
    text="source",
)
