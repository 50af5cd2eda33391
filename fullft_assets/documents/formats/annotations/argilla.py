"""Exports of Argilla: records of 2.x (nested or flat), feedback records and records of 1.x.

The label's field is the question's name (in records of 1.x, whose `annotation` has no name, any). Responses
that were discarded or are drafts are excluded; suggestions and predictions are a machine's, and no
annotations. (https://docs.argilla.io, `Record.to_dict`; https://docs.v1.argilla.io,
`TextClassificationRecord`)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fullft_assets.documents.formats.delivered import Record
from fullft_assets.documents.formats.labels import Answer, Malformed
from fullft_assets.documents.formats.protocol import Format, Reading
from fullft_assets.documents.formats.rows import Row, Wanted, row_with_answers

_UNFINISHED = ("discarded", "draft", "pending")


def is_record(record: dict[str, Any], wanted: Wanted) -> bool:
    """Return whether a record looks like one of Argilla."""
    nested = isinstance(record.get("fields"), dict) and ("responses" in record or "suggestions" in record)
    flat = "_server_id" in record or any(name.endswith(".responses") for name in record)
    return nested or flat or {"annotation", "annotation_agent"} <= record.keys()


def rows(records: Iterable[tuple[int, Record]], reading: Reading) -> Iterator[tuple[int, Row]]:
    """Yield (row number, row) of each record."""
    for number, record in records:
        yield number, {"problem": record} if isinstance(record, str) else _row_of(record, reading.wanted)


def _row_of(record: dict[str, Any], wanted: Wanted) -> Row:
    return row_with_answers(
        _fields(record), wanted, lambda: _answers(record, wanted.label or "", wanted.target)
    )


def _fields(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record's fields and metadata side by side; a field wins over metadata of its name."""
    nested = [record.get(name) for name in ("metadata", "inputs", "fields")]
    fields = {
        name: value
        for name, value in record.items()
        if name not in ("fields", "inputs", "annotation", "responses", "suggestions")
    }
    for part in nested:
        fields |= part if isinstance(part, dict) else {}
    if fields.get("id") is None and record.get("external_id") is not None:
        fields["id"] = record["external_id"]
    if "event_timestamp" in record:
        fields.setdefault("time", record["event_timestamp"])
    return fields


def _answers(record: dict[str, Any], question: str, target: str) -> list[Answer]:
    responses = record.get("responses")
    if "annotation" in record and "fields" not in record:
        answers = _annotation(record, target)
    elif isinstance(responses, dict):
        answers = _responses(responses.get(question), question)
    elif isinstance(responses, list):
        answers = _by_user(responses, question)
    elif f"{question}.responses" in record:
        answers = _flat(record, question)
    else:
        answers = _responses(record.get(question), question)
    return answers


def _responses(values: Any, question: str) -> list[Answer]:
    """Read [{value, user_id, status}], the responses to one question."""
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(each, dict) for each in values):
        raise Malformed(f"the responses to `{question}` are not a list of objects")
    return [
        Answer(_text(each.get("user_id")), each.get("value"), _text(each.get("updated_at")))
        for each in values
        if _is_submitted(each)
    ]


def _by_user(responses: list[Any], question: str) -> list[Answer]:
    """Read [{user_id, status, values: {question: {value}}}], the responses of each user."""
    answers = []
    for response in responses:
        if not isinstance(response, dict):
            raise Malformed("field `responses` is not a list of objects")
        values = response.get("values")
        answer = values.get(question) if isinstance(values, dict) else None
        if _is_submitted(response) and isinstance(answer, dict):
            answers.append(
                Answer(_text(response.get("user_id")), answer.get("value"), _text(response.get("updated_at")))
            )
    return answers


def _flat(record: dict[str, Any], question: str) -> list[Answer]:
    """Read three lists side by side: the responses, their users, their status."""
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
        Answer(_text(user), value) for value, user, status in together if _is_submitted({"status": status})
    ]


def _annotation(record: dict[str, Any], target: str) -> list[Answer]:
    value = record["annotation"]
    if value is None or not _is_submitted(record):
        return []
    if target == "label" and isinstance(value, list) and len(value) == 1:
        value = value[0]
    return [Answer(_text(record.get("annotation_agent")), value)]


def _is_submitted(response: dict[str, Any]) -> bool:
    status = response.get("status")
    return not (isinstance(status, str) and status.lower() in _UNFINISHED)


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, int | str) and value != "" else None


FORMAT = Format(rows=rows, written_as=("json", "csv", "parquet", "arrow"), looks_like=is_record)
