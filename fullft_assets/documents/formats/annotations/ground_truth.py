"""Output manifests of SageMaker Ground Truth: JSON lines with a label attribute and its metadata.

Classification: the attribute is an index or a name, its metadata has the class name. Multi-label: a list of
indices, with `class-map` and `confidence-map`. Text spans: `annotations.entities`. The text is `source`, or
is in the object that `source-ref` names.
(https://docs.aws.amazon.com/sagemaker/latest/dg/sms-data-output.html)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from fullft_assets.documents.formats import json_lines
from fullft_assets.documents.formats.delivered import Record
from fullft_assets.documents.formats.protocol import Format, Reading
from fullft_assets.documents.formats.rows import (
    Row,
    Wanted,
    add_annotation,
    add_names,
    add_problem,
    add_target,
    content_of,
)

#: Rows whose references are fetched together.
FETCHED_ROWS = 256


def is_manifest(record: dict[str, Any], wanted: Wanted) -> bool:
    """Return whether a record looks like a line of a manifest."""
    return ("source" in record or "source-ref" in record) and f"{wanted.label}-metadata" in record


def rows(records: Iterable[tuple[int, Record]], reading: Reading) -> Iterator[tuple[int, Row]]:
    """Yield (row number, row) of each line of a manifest."""
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
                else _row_of(record, wanted, texts.get(number)),
            )


def _reference(record: Record, wanted: Wanted) -> str | None:
    """Return the reference to a record's text, or None where its text is in the record."""
    if isinstance(record, str) or wanted.has_messages or (wanted.text or "source") in record:
        return None
    reference = record.get("source-ref")
    return reference if isinstance(reference, str) else None


def _row_of(record: dict[str, Any], wanted: Wanted, fetched: str | OSError | None) -> Row:
    if isinstance(fetched, OSError):
        row: Row = {"problem": f"source-ref cannot be read ({fetched.strerror or fetched})"}
    else:
        row = content_of(record, wanted, wanted.text or "source") if fetched is None else {"text": fetched}
    add_names(row, record, wanted)
    if wanted.label is None or wanted.label not in record:
        add_annotation(row, record.get("confidence"), record.get("human-annotated"))
        return row
    about = record.get(f"{wanted.label}-metadata")
    about = about if isinstance(about, dict) else {}
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
    if not isinstance(value, dict):
        return value
    annotations = value.get("annotations")
    return annotations.get("entities") if isinstance(annotations, dict) else None


def _confidence(value: Any, about: dict[str, Any], target: str) -> Any:
    """Return the confidence of a row; for several labels or spans, the lowest one."""
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

FORMAT = Format(
    json_lines.records,
    rows,
    endings=(".manifest",),
    is_text=True,
    is_streamed=True,
    may_be_compressed=True,
    looks_like=is_manifest,
    text="source",
)
