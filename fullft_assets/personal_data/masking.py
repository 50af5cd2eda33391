"""Personal data replaced by placeholders: in the text, in the turns of a conversation, and the borders of spans move along."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.personal_data import pii

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = ("text", "messages", "spans", "annotations")


def mask_documents(table: pa.Table, num_personal_data: np.ndarray, kinds: Sequence[pii.Kind] = pii.KINDS) -> pa.Table:
    """Return the documents with their personal data masked; a row without any is untouched.

    Args:
        table: with `documents.COLUMNS`.
        num_personal_data: pieces of personal data in each text, as `pii.count` finds them.
        kinds: the kinds that are masked.
    """
    rows = np.flatnonzero(num_personal_data)
    if not len(rows):
        return table
    masked = [_mask_row(row, kinds) for row in table.select(_COLUMNS).take(rows).to_pylist()]
    for name in _COLUMNS:
        table = _replace(table, name, rows, [row[name] for row in masked])
    return table


def _mask_row(row: dict[str, Any], kinds: Sequence[pii.Kind]) -> dict[str, Any]:
    if row["messages"] is not None:
        turns = [{**turn, "content": _mask(turn["content"], kinds)} for turn in row["messages"]]
        return {**row, "messages": turns, "text": "\n\n".join(turn["content"] or "" for turn in turns)}
    found = pii.find(row["text"], kinds)
    masked = {**row, "text": pii.mask(row["text"], found)}
    if row["spans"] is not None:
        masked["spans"] = [_shift(span, found) for span in row["spans"]]
        masked["annotations"] = row["annotations"] and [_shift_annotation(each, found) for each in row["annotations"]]
    return masked


def _mask(text: str | None, kinds: Sequence[pii.Kind]) -> str | None:
    return None if text is None else pii.mask(text, pii.find(text, kinds))


def _shift(span: dict[str, Any], found: list[pii.Found]) -> dict[str, Any]:
    if span["start"] is None or span["end"] is None:
        return span
    start, end = pii.shift(span["start"], span["end"], found)
    return {**span, "start": start, "end": end}


def _shift_annotation(annotation: dict[str, str], found: list[pii.Found]) -> dict[str, str]:
    spans = [_shift(span, found) for span in json.loads(annotation["label"])]
    return {**annotation, "label": json.dumps(spans, ensure_ascii=False)}


def _replace(table: pa.Table, name: str, rows: np.ndarray, values: list[Any]) -> pa.Table:
    import pyarrow as pa

    column = table[name]
    order = np.arange(len(table))
    order[rows] = len(table) + np.arange(len(rows))
    replaced = pa.chunked_array([*column.chunks, pa.array(values, column.type)]).take(pa.array(order))
    return table.set_column(table.schema.get_field_index(name), name, replaced)
