"""Personal data replaced by placeholders: in the text, in the turns of a conversation, and the borders of
spans move along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.personal_data import pii
from fullft_assets.personal_data.kinds import Found

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = ("text", "messages", "spans", "annotations")
#: What is between two turns in the text of a conversation.
_BETWEEN_TURNS = "\n\n"


def mask_documents(table: pa.Table, pieces_by_row: Mapping[int, Sequence[Found]]) -> pa.Table:
    """Return the documents with their personal data masked; a row without any is untouched.

    Args:
        table: with `documents.COLUMNS`.
        pieces_by_row: personal data in the texts by their row, as `PersonalDataSearch.find_all` finds it.
    """
    rows = np.array(sorted(pieces_by_row), np.int64)
    if not len(rows):
        return table
    masked = [
        _mask_row(row, pieces_by_row[number])
        for number, row in zip(rows.tolist(), table.select(_COLUMNS).take(rows).to_pylist(), strict=True)
    ]
    for name in _COLUMNS:
        table = _replace(table, name, rows, [row[name] for row in masked])
    return table


def _mask_row(row: dict[str, Any], pieces: Sequence[Found]) -> dict[str, Any]:
    if row["messages"] is not None:
        turns = _mask_turns(row["messages"], pieces)
        return {
            **row,
            "messages": turns,
            "text": _BETWEEN_TURNS.join(turn["content"] or "" for turn in turns),
        }
    masked = {**row, "text": pii.mask(row["text"], pieces)}
    if row["spans"] is not None:
        masked["spans"] = [_shift(span, pieces) for span in row["spans"]]
        masked["annotations"] = row["annotations"] and [
            _shift_annotation(each, pieces) for each in row["annotations"]
        ]
    return masked


def _mask_turns(turns: Sequence[dict[str, Any]], pieces: Sequence[Found]) -> list[dict[str, Any]]:
    """Return the turns of a conversation masked; `pieces` is in its text, which is the turns one after the
    other.
    """
    masked, start = [], 0
    for turn in turns:
        content = turn["content"]
        end = start + len(content or "")
        inside = [
            replace(one, start=max(one.start, start) - start, end=min(one.end, end) - start)
            for one in pieces
            if one.start < end and start < one.end
        ]
        masked.append({**turn, "content": content and pii.mask(content, inside)})
        start = end + len(_BETWEEN_TURNS)
    return masked


def _shift(span: dict[str, Any], pieces: Sequence[Found]) -> dict[str, Any]:
    if span["start"] is None or span["end"] is None:
        return span
    start, end = pii.shift(span["start"], span["end"], pieces)
    return {**span, "start": start, "end": end}


def _shift_annotation(annotation: dict[str, str], pieces: Sequence[Found]) -> dict[str, str]:
    spans = [_shift(span, pieces) for span in json.loads(annotation["label"])]
    return {**annotation, "label": json.dumps(spans, ensure_ascii=False)}


def _replace(table: pa.Table, name: str, rows: np.ndarray, values: list[Any]) -> pa.Table:
    import pyarrow as pa

    column = table[name]
    order = np.arange(len(table))
    order[rows] = len(table) + np.arange(len(rows))
    replaced = pa.chunked_array([*column.chunks, pa.array(values, column.type)]).take(pa.array(order))
    return table.set_column(table.schema.get_field_index(name), name, replaced)
