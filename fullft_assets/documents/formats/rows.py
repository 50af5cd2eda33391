"""Records -> rows of `documents.parquet`: which field goes into which column, and what is wrong with a
row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fullft_assets.documents.formats import chat, labels
from fullft_assets.documents.formats.delivered import Record
from fullft_assets.documents.formats.labels import Malformed
from fullft_assets.documents.formats.names import group_key, is_missing
from fullft_assets.settings import DocumentsSettings, ExamplesSettings, LogSettings
from fullft_assets.task import task_of

#: A row's columns that are not null; `problem` says what is malformed.
Row = dict[str, Any]
#: Columns whose equal values tie rows together, so that they must be equal however they were written.
_SHARED = ("group", "domain", "slice_by")
#: Field of a record, and key of its row, that is counted for a check and in no column.
PAGES_WITHOUT_TEXT = "num_pages_without_text"
_TRUTHS = {
    True: True,
    False: False,
    "yes": True,
    "no": False,
    "true": True,
    "false": False,
    "1": True,
    "0": False,
}


@dataclass(frozen=True)
class Wanted:
    """Which fields of a record are read, and what the task needs of them."""

    text: str | None
    label: str | None
    #: (column, field) of what is a plain name.
    names: tuple[tuple[str, str], ...]
    has_messages: bool = False
    target: str = "label"
    #: Words, in lower case, that mean that a row has no label, group or domain.
    missing: frozenset[str] = frozenset()
    #: What separates several labels in one text.
    separator: str | None = None

    @classmethod
    def of(
        cls, documents: DocumentsSettings, examples: ExamplesSettings, log: LogSettings | None = None
    ) -> Wanted:
        """Return what the settings ask for; `log`: of rows that have what a model answered."""
        task = task_of(examples)
        names = [
            ("id", documents.id),
            ("group", examples.group),
            ("domain", examples.domain),
            ("slice_by", examples.slice_by),
        ]
        names += [("annotator", documents.annotator), ("time", "time")]
        if log is not None:
            names += [
                ("predicted", log.prediction),
                ("score", log.score),
                ("predicted_by", log.model),
                ("predicted_at", log.time),
            ]
        return cls(
            text=documents.text,
            label=examples.label,
            names=tuple((column, field) for column, field in names if field is not None),
            has_messages=task.has_messages,
            target=task.target or "label",
            missing=frozenset(word.strip().casefold() for word in documents.missing_values),
            separator=examples.label_separator,
        )

    @property
    def fields(self) -> set[str]:
        """Every field that may be read of a plain record; of a path also each part of it, as a field of a
        table may be named.
        """
        fields = {
            self.text or "text",
            *(field for _, field in self.names),
            "confidence",
            "human_annotated",
            "human-annotated",
        }
        fields |= {self.label} if self.label else set()
        fields |= {field[:at] for field in fields for at, character in enumerate(field) if character == "."}
        return fields | set(chat.FIELDS) if self.has_messages else fields


_MISSING = object()


def _look_up(record: Any, field: str) -> Any:
    """Return the value of a field, or `_MISSING`. A field whose name has dots wins over the path that it may
    be as well.
    """
    if not isinstance(record, dict):
        return _MISSING
    if field in record:
        return record[field]
    for at, character in enumerate(field):
        if (
            character == "."
            and field[:at] in record
            and (value := _look_up(record[field[:at]], field[at + 1 :])) is not _MISSING
        ):
            return value
    return _MISSING


def value_of(record: dict[str, Any], field: str) -> Any:
    """Return the value of a field, which may be a path such as `payload.body`; None where there is none."""
    if field in record:
        return record[field]
    value = _look_up(record, field)
    return None if value is _MISSING else value


def has_field(record: dict[str, Any], field: str) -> bool:
    """Return whether a record has a field, which may be a path."""
    return _look_up(record, field) is not _MISSING


def rows(records: Iterable[tuple[int, Record]], wanted: Wanted) -> Iterator[tuple[int, Row]]:
    """Yield (row number, row) of each record."""
    for number, record in records:
        yield number, {"problem": record} if isinstance(record, str) else row_of(record, wanted)


def row_of(record: dict[str, Any], wanted: Wanted) -> Row:
    """Return the row of a record whose fields are plain."""
    row = content_of(record, wanted, wanted.text or "text")
    add_names(row, record, wanted)
    if wanted.label is not None:
        add_target(row, value_of(record, wanted.label), wanted)
    if PAGES_WITHOUT_TEXT in record:
        row[PAGES_WITHOUT_TEXT] = record[PAGES_WITHOUT_TEXT]
    human = record.get("human_annotated", record.get("human-annotated"))
    add_annotation(row, record.get("confidence"), human)
    return row


def row_with_answers(
    fields: dict[str, Any], wanted: Wanted, answers: Callable[[], list[labels.Answer]]
) -> Row:
    """Return the row of a record of an annotation tool: its plain fields, and the label that its annotators
    gave.
    """
    row = row_of(fields, replace(wanted, label=None))
    if wanted.label is not None:
        try:
            labels.add_answers(row, answers(), wanted.label, wanted.target, wanted.missing)
        except Malformed as error:
            add_problem(row, str(error))
    return row


def content_of(record: dict[str, Any], wanted: Wanted, field: str) -> Row:
    """Return a row with the text (of a conversation, the messages) of a record."""
    if wanted.has_messages:
        try:
            messages = chat.messages_of(_with_path(record, wanted.text), wanted.text)
        except Malformed as error:
            return {"problem": str(error)}
        return {"messages": messages, "text": "\n\n".join(message["content"] for message in messages)}
    text = value_of(record, field)
    if isinstance(text, str):
        return {"text": text}
    if text is not None:
        return {"problem": f"field `{field}` is not text"}
    return {} if has_field(record, field) else {"problem": f"no field `{field}`"}


def _with_path(record: dict[str, Any], field: str | None) -> dict[str, Any]:
    """Return a record with a field of its own for the value at a path."""
    if field is None or field in record or not has_field(record, field):
        return record
    return {**record, field: value_of(record, field)}


def add_names(row: Row, record: dict[str, Any], wanted: Wanted) -> None:
    """Put id, group, domain, slice_by, annotator, time and a logged prediction into a row."""
    for column, field in wanted.names:
        value = value_of(record, field)
        if value is None or value != value:  # a table with gaps has NaN for None
            continue
        try:
            name = value if type(value) is str else labels.name_of(value, field)
        except Malformed as error:
            add_problem(row, str(error))
            continue
        if column in _SHARED:
            name = "" if is_missing(stripped := name.strip(), wanted.missing) else stripped
        if name:
            row[column] = group_key(name) if column == "group" else name


def add_target(row: Row, value: Any, wanted: Wanted) -> None:
    """Put the label, the labels or the spans into a row."""
    try:
        target = labels.target_of(
            value, wanted.label or "", wanted.target, wanted.missing, row.get("text"), wanted.separator
        )
    except Malformed as error:
        add_problem(row, str(error))
        return
    if target is not None:
        row[wanted.target] = target


def add_annotation(row: Row, confidence: Any, human: Any) -> None:
    """Put the confidence, and whether a human annotated, into a row."""
    if confidence is not None and confidence != "":
        try:
            value = float(confidence)  # CSV has nothing but text
        except (TypeError, ValueError, OverflowError):
            value = math.inf
        if math.isfinite(value):
            row["confidence"] = value
        elif not math.isnan(value) or isinstance(confidence, str):
            add_problem(row, "confidence is not a number")
    if human is not None and human != "":
        truth = (
            _TRUTHS.get(human.lower() if isinstance(human, str) else human)
            if isinstance(human, str | bool | int)
            else None
        )
        if truth is None:
            add_problem(row, "human_annotated is neither yes nor no")
        else:
            row["human_annotated"] = truth


def add_problem(row: Row, problem: str) -> None:
    """Add a problem to the problems of a row."""
    row["problem"] = f"{row['problem']}; {problem}" if "problem" in row else problem
