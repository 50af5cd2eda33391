"""Which groups were ever held out, and which train although their hash holds them out: the memory of one
snapshot for the next.

Each snapshot keeps the ledger that it ends with in a file of its own, `ledger.parquet`. It contains what it
found of those before it, so the newest one is enough; where several were frozen side by side, all of them are
read and joined. There is no other copy: a snapshot that was not finished left none, and one that is deleted
takes nothing along that a later one does not have.

A group is known by its place, the keyed hash that also gives it its split; its name is nowhere in the ledger.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fullft_assets.artifacts import TRAINING_SNAPSHOT
from fullft_assets.errors import StoreError
from fullft_assets.store import Manifest, Store

FILE = "ledger.parquet"
#: What the rows of each batch were in the comparisons of a snapshot. It has no id, hash or text of a row.
ROLES_FILE = "roles.npz"
#: A group that the ledger does not have.
UNKNOWN = -1


@dataclass(frozen=True)
class Ledger:
    """The split of each group that is held out, or trains against its hash.

    Attributes:
        places: float64 [m], sorted, each once: see `BatchRows.sketches`.
        splits: int8 [m], numbers of SPLITS.
    """

    places: np.ndarray
    splits: np.ndarray

    @classmethod
    def of(cls, places: np.ndarray, splits: np.ndarray) -> "Ledger":
        """Return the ledger of these entries; of several with one place the split that goes first counts."""
        order = np.lexsort((splits, places))
        ordered = places[order]
        first = order[np.append(True, ordered[1:] != ordered[:-1])[: len(order)]]
        return cls(places[first].astype(np.float64), splits[first].astype(np.int8))

    @classmethod
    def join(cls, ledgers: "Iterable[Ledger]") -> "Ledger":
        """Return all entries of several ledgers: what one of them holds out is held out."""
        parts = [EMPTY, *ledgers]
        return cls.of(
            np.concatenate([part.places for part in parts]), np.concatenate([part.splits for part in parts])
        )

    def __len__(self) -> int:
        return len(self.places)

    def look_up(self, places: np.ndarray) -> np.ndarray:
        """Return the split of each place, or UNKNOWN: int64 [n]."""
        if not len(self):
            return np.full(len(places), UNKNOWN)
        entry = np.minimum(np.searchsorted(self.places, places), len(self) - 1)
        return np.where(self.places[entry] == places, self.splits[entry], UNKNOWN).astype(np.int64)

    @property
    def digest(self) -> str | None:
        """Digest of the entries; None where there are none."""
        return (
            hashlib.sha256(self.places.astype("<f8").tobytes() + self.splits.tobytes()).hexdigest()[:20]
            if len(self)
            else None
        )

    def write(self, path: Path, covered: Iterable[str]) -> None:
        """Write the ledger, and the keys of the snapshots whose entries it contains."""

        pq.write_table(
            pa.table({"place": self.places, "split": self.splits}).replace_schema_metadata(
                {"covered": json.dumps(sorted(covered))}
            ),
            path,
            compression="zstd",
        )


EMPTY = Ledger(np.zeros(0), np.zeros(0, np.int8))


@dataclass(frozen=True)
class LedgerHistory:
    """What is known of the snapshots before one.

    Attributes:
        ledger: the entries of all of them that have the seed.
        newest: those whose ledgers contain all others', one a key.
        keys: of all snapshots in the store whose entries are in this ledger, or cannot be since they have
            another seed.
    """

    ledger: Ledger
    newest: list[Manifest]
    keys: set[str]


def read_history(store: Store, case: str, seed: int) -> LedgerHistory:
    """Read the ledgers of the snapshots of a seed, newest first, until the ledgers that were read contain all
    older ones.

    Raises:
        StoreError: one of them is lost.
    """
    keys: set[str] = set()
    covered: set[str] = set()
    ledgers: list[tuple[Manifest, Ledger]] = []
    for ref in store.refs(case, TRAINING_SNAPSHOT):
        key = ref.split("/")[2]
        manifest = None if key in keys | covered else load_if_there(store, ref)
        if manifest is not None and manifest.seed == seed and FILE in manifest.files:
            ledger, keys_of_ledger = read_ledger(store, manifest)
            ledgers.append((manifest, ledger))
            covered |= keys_of_ledger
        if manifest is not None or key in covered:
            keys.add(key)
    # One that an erasure rewrote is younger than another that knows of it.
    return LedgerHistory(
        Ledger.join(ledger for _, ledger in ledgers),
        [manifest for manifest, _ in ledgers if manifest.key not in covered],
        keys,
    )


def read_ledger(store: Store, snapshot: Manifest) -> tuple[Ledger, set[str]]:
    """Return a snapshot's ledger, and the keys of the snapshots whose ledgers it contains.

    Raises:
        StoreError: the file is lost.
    """

    content = store.read_bytes(f"{snapshot.ref}/{FILE}")
    if content is None or hashlib.sha256(content).hexdigest() != snapshot.files[FILE].sha256:
        raise StoreError(
            f"{snapshot.ref}/{FILE} is lost or damaged, so that nobody knows which groups were held out:"
            " restore it from a copy of the store, or remove that snapshot's folder"
        )
    table = pq.read_table(BytesIO(content))
    return (
        Ledger(table["place"].to_numpy(), table["split"].to_numpy()),
        set(json.loads((table.schema.metadata or {}).get(b"covered", b"[]"))),
    )


def read_roles(store: Store, snapshots: Iterable[Manifest], keys: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return the roles of rows (see `Rows`) by batch, as the first snapshot left them that compared no other
    batches than these; nothing where there is none, or its file is lost or cut off: then all texts are
    compared.

    Args:
        store, snapshots: where they are.
        keys: name of each batch by what the roles of its rows depend on.

    Raises:
        StoreError: a file is damaged.
    """
    for snapshot in snapshots:
        content = store.read_bytes(f"{snapshot.ref}/{ROLES_FILE}")
        if content is not None and len(content) == snapshot.files[ROLES_FILE].bytes:
            if hashlib.sha256(content).hexdigest() != snapshot.files[ROLES_FILE].sha256:
                raise StoreError(
                    f"{snapshot.ref}/{ROLES_FILE} differs from its digest: delete it, and all texts are"
                    " compared again, or restore it from a copy of the store"
                )
            parts = np.load(BytesIO(content))
            if parts.keys() <= keys.keys():
                return {keys[key]: part for key, part in parts.items()}
    return {}


def load_if_there(store: Store, ref: str) -> Manifest | None:
    """Return an artifact; None if it was rewritten or removed since it was named."""
    try:
        return store.load(ref)
    except StoreError:
        return None
