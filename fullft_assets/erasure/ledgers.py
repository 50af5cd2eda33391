"""The ledgers of snapshots without the groups that were erased: a keyed hash of a patient's name is about a
patient, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fullft_assets.snapshot.ledger import FILE, Ledger, read_ledger
from fullft_assets.store import Manifest, Store
from fullft_assets.store.hashing import unit_hash


@dataclass
class LedgersWithoutErased:
    """Ledgers of a use case's snapshots after its batches were rewritten.

    What no batch has any more was erased: a batch keeps the rows that newer deliveries supersede, and the
    groups that are still there stay remembered.
    """

    store: Store
    case: str
    _left: dict[int, np.ndarray] = field(default_factory=dict)

    def without_erased(self, snapshot: Manifest) -> tuple[Ledger, set[str]] | None:
        """Return what a snapshot's ledger is to contain, and the keys that it knows of; None where it is as
        it should be.
        """
        read = read_ledger(self.store, snapshot) if FILE in snapshot.files else None
        if read is None:
            return None
        erased = np.setdiff1d(read[0].places, self._places_left(snapshot.seed))
        return (read[0].without(erased), read[1]) if len(erased) else None

    def _places_left(self, seed: int) -> np.ndarray:
        if seed not in self._left:
            self._left[seed] = np.array(
                [unit_hash(seed, "split", group) for group in self._groups_left()], np.float64
            )
        return self._left[seed]

    def _groups_left(self) -> set[str]:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        found: set[str] = set()
        for manifest in self.store.artifacts(self.case, "labeled_examples"):
            rows = pq.read_table(
                self.store.folder(manifest) / "examples.parquet", columns=["group", "text_hash"]
            )
            found.update(pc.unique(pc.coalesce(rows["group"], rows["text_hash"])).to_pylist())
        return found
