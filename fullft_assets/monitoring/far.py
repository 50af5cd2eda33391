"""Documents far from the training data: files and rows of the farthest ones, never their texts, and which
documents were exported to be labelled.
"""

import hmac
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fullft_assets.record import Record
from fullft_assets.store import Store


def location_digest(case: str, location: tuple[str, int]) -> str:
    """Return the keyed digest of a document's file and row."""
    source, row = location
    return hmac.digest(
        f"{case}/exported".encode(), f"{row} {source}".encode("utf-8", "surrogatepass"), "sha256"
    ).hex()[:16]


def remember_exported(
    store: Store,
    case: str,
    window: str,
    locations: Iterable[tuple[str, int]],
    how: Literal["far", "at_random"],
) -> None:
    """Record documents of a window that are exported, each as it was chosen first: one drawn at random stays
    a random one.

    Args:
        locations: file and row of each document.
    """
    digests = {location_digest(case, location) for location in locations}

    def added(pointer: dict[str, Any] | None) -> dict[str, Any]:
        digests_by_way = pointer or {}
        new = digests - {*digests_by_way.get("at_random" if how == "far" else "far", ())} | {
            *digests_by_way.get(how, ())
        }
        return {**digests_by_way, how: sorted(new), "exported_at": datetime.now(UTC).isoformat()}

    store.change_pointer(f"{case}/exported/{window}", added)


def exported_as_far(store: Store, case: str) -> dict[str, Collection[str]]:
    """Return digests of the documents of each window that were exported because they are far from the
    training data.
    """
    names = store.list_pointers(f"{case}/exported")
    pointers = zip(
        names, store.each(lambda name: store.read_pointer(f"{case}/exported/{name}"), names), strict=True
    )
    return {name: frozenset((pointer or {}).get("far", ())) for name, pointer in pointers}


#: File of a drift report: a line of JSON for each document.
FAR = "far.jsonl"
#: Maximum number of far documents that a window's report has.
MAX_DOCUMENTS = 100


class FarDocument(Record):
    """A production document that is farther from every held-out row than 95% of those are from each other.

    Attributes:
        source, row: its file and its row there.
        distance: from its nearest held-out row, in multiples of that of those 95%.
    """

    source: str
    row: int
    distance: float


def write_far(path: Path, documents: Sequence[FarDocument]) -> None:
    """Write a line for each document."""
    path.write_text("".join(document.model_dump_json() + "\n" for document in documents), encoding="utf-8")


def read_far(path: Path) -> list[FarDocument]:
    """Return the documents that `write_far` wrote."""
    return [FarDocument.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
