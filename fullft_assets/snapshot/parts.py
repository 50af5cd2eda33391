"""The batches' artifacts that a snapshot froze: read only while they hold what it froze, found again after an erasure.

A snapshot keeps where each row lies in its batch. An erasure rewrites the batches first and the snapshot last, under the keys that
they had: whoever reads in between must not take the rows that moved up for those that stood there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fullft_assets.errors import StoreError
from fullft_assets.snapshot.rows import targets
from fullft_assets.store import Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa

Part = Literal["examples", "chunks"]
#: What is drawn for a snapshot beside its batches: an artifact of the stage `<kind>_documents`, under this name in its metadata.
DRAWN = ("general", "replay")


def pin(examples: Manifest, chunks: Manifest) -> dict[str, str]:
    """Return what a snapshot records of a batch: refs, and the digests of what its positions hold for."""
    return {
        "examples": examples.ref,
        "chunks": chunks.ref,
        "examples_digest": examples.content_digest,
        "chunks_digest": chunks.content_digest,
    }


def pinned(snapshot: Manifest, batch: str, part: Part) -> str | None:
    """Return the content digest that a snapshot's positions in a batch hold for; None where none was recorded."""
    recorded = snapshot.metadata["parts"][batch].get(f"{part}_digest")
    if recorded is not None:
        return recorded
    # Earlier snapshots only have those of their inputs: of examples and chunks, by batch.
    inputs = snapshot.inputs.get(batch)
    return inputs[0 if part == "examples" else 1] if isinstance(inputs, list) and len(inputs) == 2 else None


def folder_of(store: Store, snapshot: Manifest, batch: str, part: Part) -> Path:
    """Return the folder of a batch's examples or chunks, as the snapshot froze them.

    Raises:
        StoreError: they are gone, or were rewritten since.
    """
    made = store.load(snapshot.metadata["parts"][batch][part])
    if pinned(snapshot, batch, part) not in (None, made.content_digest):
        raise _rewritten(snapshot, f"batch {batch}")
    try:
        return store.folder(made)
    except StoreError:
        if store.load(made.ref).content_digest != made.content_digest:
            raise _rewritten(snapshot, f"batch {batch}") from None
        raise


def drawn_digest(snapshot: Manifest, kind: str) -> str | None:
    """Return the content digest of what was drawn for a snapshot, as it froze it; None where nothing was drawn or recorded."""
    return None if snapshot.identity is None else snapshot.identity.values.get(kind)


def drawn_folder(store: Store, snapshot: Manifest, kind: str) -> Path | None:
    """Return the folder of what was drawn for a snapshot, as it froze it; None where nothing was.

    Raises:
        StoreError: it is gone, or was rewritten since.
    """
    ref = snapshot.metadata.get(kind)
    if ref is None:
        return None
    made = store.load(ref)
    if drawn_digest(snapshot, kind) not in (None, made.content_digest):
        raise _rewritten(snapshot, f"the {kind} set")
    return store.folder(made)


@contextmanager
def steady(snapshot: Manifest) -> Iterator[None]:
    """Tell in one line that a batch's files were taken away while they were read."""
    try:
        yield
    except FileNotFoundError as error:
        raise _rewritten(snapshot, "a batch") from error


def _rewritten(snapshot: Manifest, what: str) -> StoreError:
    return StoreError(
        f"{snapshot.ref}: {what} was rewritten after this snapshot froze it: an erasure is under way or was cut short; "
        f"run `fullft erase {snapshot.case}` with its list again, then this once more"
    )


@dataclass(frozen=True)
class Located:
    """Where a snapshot's rows lie now.

    Attributes:
        places: the snapshot's places with the batches and positions of today.
        lost: bool [n], rows whose text and tokens no batch of the snapshot holds any more.
        parts: the snapshot's parts as they are today.
        unreadable: batches whose artifacts are gone: what lies there cannot be read, and stays where it was.
    """

    places: pa.Table
    lost: np.ndarray
    parts: dict[str, dict[str, str]]
    unreadable: set[str]


def locate(store: Store, snapshot: Manifest, index: pa.Table, places: pa.Table) -> Located:
    """Find a snapshot's rows in its batches as they are today, by content: rows before them may be gone, and they themselves.

    A row need not lie where its id stands: it may stand with the text and the tokens of an equal row. If that one is gone, another
    equal row of any of the snapshot's batches will do, for its text and tokens are the same.
    """
    import pyarrow as pa

    batches, positions = places["batch"].to_pylist(), places["position"].to_pylist()
    parts, moved, unreadable = _parts_of_today(store, snapshot)
    readable = sorted(parts.keys() - unreadable)
    rows = [number for number, batch in enumerate(batches) if batch in moved]
    # Tokens of a text with spans are marked by these.
    identity = [name for name in ("text_hash", "spans") if name in index.column_names]
    ids, contents = index["id"].to_pylist(), _contents(index.select(identity))
    stands = {batch: _Standing.read(store, snapshot, batch, identity) for batch in {batches[row] for row in rows}}
    lost = np.zeros(len(index), bool)
    for row in rows:
        at = stands[batches[row]].find(contents[row], ids[row])
        if at is not None:
            positions[row] = at
            continue
        # Seldom: only here are the other batches read.
        stands |= {batch: _Standing.read(store, snapshot, batch, identity) for batch in readable if batch not in stands}
        found = ((batch, stands[batch].find(contents[row], ids[row])) for batch in readable)
        batch, at = next((place for place in found if place[1] is not None), (batches[row], None))
        batches[row], positions[row], lost[row] = batch, at or 0, at is None
    columns = {"batch": batches, "position": positions}
    for name, values in columns.items():
        at = places.column_names.index(name)
        places = places.set_column(at, places.schema.field(at), pa.array(values, places.schema.field(at).type))
    return Located(places, lost, parts, unreadable)


def _parts_of_today(store: Store, snapshot: Manifest) -> tuple[dict[str, dict[str, str]], set[str], set[str]]:
    """Return what a snapshot would record of its batches today, those that changed since it did, and those that are gone."""
    parts: dict[str, dict[str, str]] = {}
    moved: set[str] = set()
    unreadable: set[str] = set()
    for batch, part in snapshot.metadata["parts"].items():
        parts[batch] = dict(part)
        try:
            examples, chunks = store.load(part["examples"]), store.load(part["chunks"])
        except StoreError:
            unreadable.add(batch)
            continue
        if (pinned(snapshot, batch, "examples"), pinned(snapshot, batch, "chunks")) != (examples.content_digest, chunks.content_digest):
            parts[batch] = pin(examples, chunks)
            moved.add(batch)
    return parts, moved, unreadable


@dataclass(frozen=True)
class _Standing:
    """The rows of a batch's examples by content: (id, position) of each."""

    rows: Mapping[Any, list[tuple[str, int]]]

    @classmethod
    def read(cls, store: Store, snapshot: Manifest, batch: str, identity: list[str]) -> _Standing:
        import pyarrow.parquet as pq

        path = store.folder(store.load(snapshot.metadata["parts"][batch]["examples"])) / "examples.parquet"
        table = pq.read_table(path, columns=["id", *identity])
        rows: dict[Any, list[tuple[str, int]]] = {}
        for at, (id_, content) in enumerate(zip(table["id"].to_pylist(), _contents(table), strict=True)):
            rows.setdefault(content, []).append((id_, at))
        return cls(rows)

    def find(self, content: Any, id_: str) -> int | None:
        """Return where a content stands: under an id, if it does there, else anywhere."""
        standing = self.rows.get(content, ())
        return next((at for its_id, at in standing if its_id == id_), standing[0][1] if standing else None)


def _contents(table: pa.Table) -> list[Any]:
    """Return what makes the text and the tokens of each row."""
    hashes = table["text_hash"].to_pylist()
    return list(zip(hashes, targets(table, "token_classification", False), strict=True)) if "spans" in table.column_names else hashes
