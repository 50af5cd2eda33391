"""erasure: what was erased stays out. A tombstone is a pointer named by a keyed digest, never by the id itself.

A document with an id of its own is known by it. One without (its id is made up: `file:row`) only says where it stood: when a
line above it goes, another one stands there. So it is known by its file, its content and its group.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np

from fullft_assets.store import Store
from fullft_assets.store.hashing import messages_hash, text_hash

if TYPE_CHECKING:
    import pyarrow as pa

By = Literal["id", "group"]
#: What has a tombstone under its name; a file's keeps nothing out, it says that the name is to be told nowhere: of delivered ones, or of
#: those that general documents are drawn from.
Named = Literal["id", "group", "file", "general file"]
#: What the tombstones of rows with made-up ids begin with: only where there are any are texts hashed.
_ROW = "row-"


def erased_digest(case: str, value: str, by: Named = "id") -> str:
    """Return what stands for an erased id, group or file: HMAC-SHA256 keyed with the case's name, in hex."""
    return _hmac(f"{case}/{by}", value)


def _hmac(key: str, value: str) -> str:
    return hmac.digest(key.encode(), value.encode("utf-8", "surrogatepass"), "sha256").hex()


def write_tombstones(store: Store, case: str, digests: Iterable[str], *, by: By, reason: str = "", found: bool = False) -> None:
    """Record digests of ids, groups or rows as erased; one that is recorded already keeps its date and reason.

    Args:
        store, case: where.
        digests: see `erased_digest` and `row_digests`.
        by: what was asked for.
        reason: kept with them.
        found: the store held such a document: to be told apart later from an id that nobody ever knew.
    """
    known = read_tombstones(store, case)
    for name in digests:
        pointer = f"{case}/erased/{name}"
        if name not in known:
            store.write_pointer(pointer, {"at": time.time(), "by": by, "reason": reason, "found": found})
        elif found and not was_found(store, case, name):
            store.write_pointer(pointer, {**(store.read_pointer(pointer) or {}), "found": True})


def read_tombstones(store: Store, case: str) -> frozenset[str]:
    """Return the digests of the ids, groups and rows that were erased from a case."""
    return frozenset(store.list_pointers(f"{case}/erased"))


def was_found(store: Store, case: str, name: str) -> bool:
    """Return whether the store held a document with this tombstone when it was erased."""
    return bool((store.read_pointer(f"{case}/erased/{name}") or {}).get("found"))


def has_made_up_id(table: pa.Table) -> np.ndarray:
    """Return which rows of a table have no id of their own: bool [rows]. Without `source` and `row` it cannot be told: none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not {"source", "row"} <= set(table.column_names):
        return np.zeros(len(table), bool)
    made_up = pc.binary_join_element_wise(table["source"], pc.cast(table["row"], pa.string()), ":")
    return pc.fill_null(pc.equal(table["id"], made_up), False).to_numpy().astype(bool)


def row_digests(case: str, table: pa.Table) -> list[str]:
    """Return what stands for each row of a table with made-up ids: its file, its content and its group.

    The content is `text_hash` where a table has it, which is of the masked text; else that of what was delivered. Equal rows
    of one file and group are one: nothing but their place tells them apart.
    """
    groups = table["group"].to_pylist() if "group" in table.column_names else [None] * len(table)
    rows = zip(table["source"].to_pylist(), _contents(table), table["id"].to_pylist(), groups, strict=True)
    return [_ROW + _hmac(f"{case}/row", json.dumps([source, content or id_, group])) for source, content, id_, group in rows]


def _contents(table: pa.Table) -> list[str | None]:
    if "text_hash" in table.column_names:
        return table["text_hash"].to_pylist()
    texts = table["text"].to_pylist()
    turns = table["messages"].to_pylist() if "messages" in table.column_names else [None] * len(texts)
    return [
        None if text is None else text_hash(text) if said is None else messages_hash([(t["role"], t["content"]) for t in said])
        for text, said in zip(texts, turns, strict=True)
    ]


def is_erased(case: str, table: pa.Table, tombstones: Collection[str]) -> np.ndarray:
    """Return which rows of a table have a tombstone: bool [rows].

    By their `id`, if it is their own; by what `row_digests` says, if not; and by their `group` where there is such a column.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    found = np.zeros(len(table), bool)
    if not tombstones:
        return found
    made_up = has_made_up_id(table)
    by: By
    for by, rows in (("id", ~made_up), ("group", np.ones(len(table), bool))):
        if by in table.column_names:
            distinct = [value for value in pc.unique(table[by].filter(pa.array(rows))).to_pylist() if value is not None]
            erased = [value for value in distinct if erased_digest(case, value, by) in tombstones]
            found |= rows & pc.is_in(table[by], pa.array(erased, pa.string())).to_numpy().astype(bool)
    if made_up.any() and any(name.startswith(_ROW) for name in tombstones):
        found[made_up] |= np.array([name in tombstones for name in row_digests(case, table.filter(pa.array(made_up)))], bool)
    return found


def without_erased(table: pa.Table, store: Store, case: str) -> tuple[pa.Table, int]:
    """Return a table of documents without the rows that were erased, and how many those were."""
    import pyarrow as pa

    erased = is_erased(case, table, read_tombstones(store, case))
    return (table.filter(pa.array(~erased)) if erased.any() else table), int(erased.sum())
