"""erasure: erased documents are kept out. A tombstone is a pointer named by a keyed digest, never by the id
itself.

A document with an id of its own is known by it. A made-up id (`file:row`) only names a place: when a line
above it is deleted, another document has that place. So such a document is known by its file, its content and
its group.
"""

import hmac
import json
import time
from collections.abc import Collection, Iterable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fullft_assets.conversations import messages_hash
from fullft_assets.store import Store
from fullft_assets.store.hashing import text_hash

By = Literal["id", "group"]
#: What a tombstone can be named by. That of a file (delivered, or one that general documents are drawn from)
#: keeps no rows out: it marks a name that must not be shown anywhere.
Named = Literal["id", "group", "file", "general file"]
#: Prefix of the tombstones of rows with made-up ids; texts are hashed only if there are any.
_ROW = "row-"


def erased_digest(case: str, value: str, by: Named = "id") -> str:
    """Return the digest that replaces an erased id, group or file: HMAC-SHA256 keyed with the case's name, in
    hex.
    """
    return _hmac(f"{case}/{by}", value)


def _hmac(key: str, value: str) -> str:
    return hmac.digest(key.encode(), value.encode("utf-8", "surrogatepass"), "sha256").hex()


def write_tombstones(store: Store, case: str, digests: Iterable[str], *, by: By, reason: str = "") -> None:
    """Record digests of ids, groups or rows as erased; one that is recorded already keeps its date and
    reason.

    Args:
        store, case: where.
        digests: see `erased_digest` and `row_digests`.
        by: what was asked for.
        reason: kept with them.
    """
    entry = {"at": time.time(), "by": by, "reason": reason}
    for name in sorted(set(digests) - read_tombstones(store, case)):
        store.write_pointer(f"{case}/erased/{name}", entry)


def read_tombstones(store: Store, case: str) -> frozenset[str]:
    """Return the digests of the ids, groups and rows that were erased from a case."""
    return frozenset(store.list_pointers(f"{case}/erased"))


def has_made_up_id(table: pa.Table) -> np.ndarray:
    """Return which rows of a table have no id of their own: bool [rows]. None where the table lacks `source`
    and `row`.
    """

    if not {"source", "row"} <= set(table.column_names):
        return np.zeros(len(table), bool)
    made_up = pc.call_function(
        "binary_join_element_wise", [table["source"], table["row"].cast(pa.string()), pa.scalar(":")]
    )
    return pc.call_function("equal", [table["id"], made_up]).fill_null(False).to_numpy().astype(bool)


def row_digests(case: str, table: pa.Table) -> list[str]:
    """Return a digest for each row of a table with made-up ids: of its file, its content and its group.

    The content is `text_hash` where a table has it, which is of the masked text; else that of what was
    delivered. Equal rows of one file and group have one digest: only their place differs.
    """
    groups = table["group"].to_pylist() if "group" in table.column_names else [None] * len(table)
    rows = zip(table["source"].to_pylist(), _contents(table), table["id"].to_pylist(), groups, strict=True)
    return [
        _ROW + _hmac(f"{case}/row", json.dumps([source, content or id_, group]))
        for source, content, id_, group in rows
    ]


def _contents(table: pa.Table) -> list[str | None]:
    if "text_hash" in table.column_names:
        return table["text_hash"].to_pylist()
    texts = table["text"].to_pylist()
    turns: list[list[dict[str, str]] | None] = (
        table["messages"].to_pylist() if "messages" in table.column_names else [None] * len(texts)
    )
    return [
        None if text is None else text_hash(text) if messages is None else messages_hash(messages)
        for text, messages in zip(texts, turns, strict=True)
    ]


def is_erased(case: str, table: pa.Table, tombstones: Collection[str]) -> np.ndarray:
    """Return which rows of a table have a tombstone: bool [rows].

    By their `id`, if it is their own; by `row_digests`, if not; and by their `group` where there is such a
    column.
    """

    erased_rows = np.zeros(len(table), bool)
    if not tombstones:
        return erased_rows
    made_up = has_made_up_id(table)
    rows_by_column: dict[By, np.ndarray] = {"id": ~made_up, "group": np.ones(len(table), bool)}
    for by, rows in rows_by_column.items():
        if by in table.column_names:
            distinct = [
                value for value in table[by].filter(pa.array(rows)).unique().to_pylist() if value is not None
            ]
            erased_values = [value for value in distinct if erased_digest(case, value, by) in tombstones]
            is_named = pc.call_function(
                "is_in", [table[by]], pc.SetLookupOptions(pa.array(erased_values, pa.string()))
            )
            erased_rows |= rows & is_named.to_numpy().astype(bool)
    if made_up.any() and any(name.startswith(_ROW) for name in tombstones):
        erased_rows[made_up] |= np.array(
            [name in tombstones for name in row_digests(case, table.filter(pa.array(made_up)))], bool
        )
    return erased_rows


def without_erased(table: pa.Table, store: Store, case: str) -> tuple[pa.Table, int]:
    """Return a table of documents without its erased rows, and the number of erased rows."""
    erased_rows = is_erased(case, table, read_tombstones(store, case))
    return (table.filter(pa.array(~erased_rows)) if erased_rows.any() else table), int(erased_rows.sum())
