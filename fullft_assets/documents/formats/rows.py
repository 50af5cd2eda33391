"""Records -> rows of `documents.parquet`: which field goes into which column, and what is wrong with a row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fullft_assets.documents.formats import chat, labels
from fullft_assets.documents.formats.delivered import Record
from fullft_assets.documents.formats.labels import Malformed
from fullft_assets.settings import DocumentsSettings, ExamplesSettings
from fullft_assets.task import task_of

#: A row's columns that are not null; `problem` says what is malformed.
Row = dict[str, Any]
_TRUTHS = {True: True, False: False, "yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Wanted:
    """Which fields of a record are read, and what the task needs of them."""

    text: str | None
    label: str | None
    #: (column, field) of what is a plain name.
    names: tuple[tuple[str, str], ...]
    has_messages: bool = False
    target: str = "label"

    @classmethod
    def of(cls, documents: DocumentsSettings, examples: ExamplesSettings) -> Wanted:
        """Return what the settings ask for."""
        task = task_of(examples)
        names = [("id", documents.id), ("group", examples.group), ("domain", examples.domain)]
        names += [("annotator", documents.annotator), ("time", documents.time)]
        return cls(
            text=documents.text,
            label=examples.label,
            names=tuple((column, field) for column, field in names if field is not None),
            has_messages=task.has_messages,
            target=task.target or "label",
        )

    @property
    def fields(self) -> set[str]:
        """Every field that may be read of a plain record."""
        fields = {self.text or "text", *(field for _, field in self.names), "confidence", "human_annotated", "human-annotated"}
        fields |= {self.label} if self.label else set()
        return fields | set(chat.FIELDS) if self.has_messages else fields


def rows(records: Iterable[tuple[int, Record]], wanted: Wanted) -> Iterator[tuple[int, Row]]:
    """Yield (row number, row) of each record."""
    for number, record in records:
        yield number, {"problem": record} if isinstance(record, str) else row_of(record, wanted)


def row_of(record: dict[str, Any], wanted: Wanted) -> Row:
    """Return the row of a record whose fields are plain."""
    row = content_of(record, wanted, wanted.text or "text")
    add_names(row, record, wanted)
    if wanted.label is not None:
        add_target(row, record.get(wanted.label), wanted)
    human = record.get("human_annotated", record.get("human-annotated"))
    add_annotation(row, record.get("confidence"), human)
    return row


def content_of(record: dict[str, Any], wanted: Wanted, field: str) -> Row:
    """Return a row with the text (of a conversation, the messages) of a record."""
    if wanted.has_messages:
        try:
            messages = chat.messages_of(record, wanted.text)
        except Malformed as error:
            return {"problem": str(error)}
        return {"messages": messages, "text": "\n\n".join(message["content"] for message in messages)}
    text = record.get(field)
    if isinstance(text, str):
        return {"text": text}
    if text is not None:
        return {"problem": f"field `{field}` is not text"}
    return {} if field in record else {"problem": f"no field `{field}`"}


def add_names(row: Row, record: dict[str, Any], wanted: Wanted) -> None:
    """Put id, group, domain, annotator and time into a row."""
    for column, field in wanted.names:
        value = record.get(field)
        if type(value) is str:
            if value:
                row[column] = value
        elif value is not None and value == value:  # a table with gaps has NaN for None
            try:
                row[column] = labels.name_of(value, field)
            except Malformed as error:
                add_problem(row, str(error))


def add_target(row: Row, value: Any, wanted: Wanted) -> None:
    """Put the label, the labels or the spans into a row."""
    if type(value) is str and value and wanted.target == "label":
        row["label"] = value
        return
    try:
        target = labels.target_of(value, wanted.label or "", wanted.target)
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
        truth = _TRUTHS.get(human.lower() if isinstance(human, str) else human) if isinstance(human, str | bool | int) else None
        if truth is None:
            add_problem(row, "human_annotated is neither yes nor no")
        else:
            row["human_annotated"] = truth


def add_problem(row: Row, problem: str) -> None:
    """Add a problem to those that a row has."""
    row["problem"] = f"{row['problem']}; {problem}" if "problem" in row else problem
