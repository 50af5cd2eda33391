"""The table that every format is read into: `documents.parquet`, one row a delivered row."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

#: `problem` is why a row is malformed; `delivered_ns` is its file's time: of two deliveries the later one is
#: newer.
COLUMNS = (
    "id",
    "text",
    "messages",
    "label",
    "labels",
    "spans",
    "annotations",
    "group",
    "domain",
    "slice_by",
    "confidence",
    "annotator",
    "human_annotated",
    "time",
    "source",
    "row",
    "delivered_ns",
    "problem",
)
#: Further columns of a window whose rows have what the model in production answered (`monitoring.log`), as it
#: was delivered.
LOGGED = ("predicted", "score", "predicted_by", "predicted_at")


@cache
def schema(*, is_logged: bool = False) -> pa.Schema:
    """Return the schema of `documents.parquet`; its names are `COLUMNS`, in a window with logged predictions
    also `LOGGED`.
    """
    import pyarrow as pa

    types = {
        "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        "labels": pa.list_(pa.string()),
        "spans": pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())])),
        "annotations": pa.list_(pa.struct([("annotator", pa.string()), ("label", pa.string())])),
        "confidence": pa.float64(),
        "human_annotated": pa.bool_(),
        "row": pa.int64(),
        "delivered_ns": pa.int64(),
    }
    return pa.schema(
        [(name, types.get(name, pa.string())) for name in (*COLUMNS, *(LOGGED if is_logged else ()))]
    )
