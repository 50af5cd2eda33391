"""erasure: what was erased stays out. A tombstone is a pointer named by a keyed digest, never by the id itself."""

from __future__ import annotations

import hmac
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np

from fullft_assets.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

By = Literal["id", "group"]


def erased_digest(case: str, value: str, by: By = "id") -> str:
    """Return what stands for an erased id or group: HMAC-SHA256 keyed with the case's name, in hex."""
    return hmac.digest(f"{case}/{by}".encode(), value.encode("utf-8", "surrogatepass"), "sha256").hex()


def write_tombstones(store: Store, case: str, values: Iterable[str], *, by: By, reason: str = "") -> None:
    """Record ids or groups as erased; one that is recorded already keeps its date and reason."""
    known = read_tombstones(store, case)
    for value in values:
        name = erased_digest(case, value, by)
        if name not in known:
            store.write_pointer(f"{case}/erased/{name}", {"at": time.time(), "by": by, "reason": reason})


def read_tombstones(store: Store, case: str) -> frozenset[str]:
    """Return the digests of the ids and groups that were erased from a case."""
    return frozenset(store.list_pointers(f"{case}/erased"))


def is_erased(case: str, table: pa.Table, tombstones: Collection[str]) -> np.ndarray:
    """Return which rows of a table have a tombstone, by their `id` or, where there is such a column, their `group`: bool [rows]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = np.zeros(len(table), bool)
    if not tombstones:
        return found
    by: By
    for by in ("id", "group"):
        if by in table.column_names:
            distinct = [value for value in pc.unique(table[by]).to_pylist() if value is not None]
            erased = [value for value in distinct if erased_digest(case, value, by) in tombstones]
            found |= pc.is_in(table[by], pa.array(erased, pa.string())).to_numpy()
    return found


def without_erased(table: pa.Table, store: Store, case: str) -> tuple[pa.Table, int]:
    """Return a table of documents without the rows that were erased, and how many those were."""
    import pyarrow as pa

    erased = is_erased(case, table, read_tombstones(store, case))
    return (table.filter(pa.array(~erased)) if erased.any() else table), int(erased.sum())
