"""Which documents were exported to be labelled, and how they were chosen: those that are far from the
training data are no sample of production.

A pointer for each window has a keyed digest of the file and row of each: no name, so an erasure has nothing
to remove from it.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any, Literal

from fullft_assets.store import Store


def place_digest(case: str, place: tuple[str, int]) -> str:
    """Return the keyed digest of a document's file and row."""
    source, row = place
    return hmac.digest(
        f"{case}/exported".encode(), f"{row} {source}".encode("utf-8", "surrogatepass"), "sha256"
    ).hex()[:16]


def remember_exported(
    store: Store, case: str, window: str, places: Iterable[tuple[str, int]], how: Literal["far", "at_random"]
) -> None:
    """Record documents of a window that are exported, each as it was chosen first: one drawn at random stays
    a random one.
    """
    digests = {place_digest(case, place) for place in places}

    def added(there: dict[str, Any] | None) -> dict[str, Any]:
        digests_by_way = there or {}
        other = "at_random" if how == "far" else "far"
        new = digests - {*digests_by_way.get(other, ())} | {*digests_by_way.get(how, ())}
        return {**digests_by_way, how: sorted(new), "exported_at": datetime.now(UTC).isoformat()}

    store.change_pointer(f"{_folder(case)}/{window}", added)


def exported_as_far(store: Store, case: str) -> dict[str, Collection[str]]:
    """Return digests of the documents of each window that were exported because they are far from the
    training data.
    """
    names = store.list_pointers(_folder(case))
    pointers = zip(
        names, store.each(lambda name: store.read_pointer(f"{_folder(case)}/{name}"), names), strict=True
    )
    return {name: frozenset((pointer or {}).get("far", ())) for name, pointer in pointers}


def _folder(case: str) -> str:
    return f"{case}/exported"
