"""What an earlier snapshot found out about pairs of texts, so that a later one only compares what is new.

A pair's verdict depends on nothing but its two texts and the settings. So a snapshot keeps, for each search
of one side of the split in another, which texts were on both sides and which of them were near, each with one
text that it is near to. Texts are named by the hash of their shingle set (`Sketches.sets`). With or without
verdicts a search finds the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from fullft_assets.errors import StoreError
from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.near_duplicates import ReadSets, positions
from fullft_assets.snapshot.shingles import ShingleSets
from fullft_assets.store import Manifest, Store

FILE = "near_duplicates.npz"


@dataclass(frozen=True)
class Verdicts:
    """What one search found: uint64 hashes of shingle sets, ascending.

    Attributes:
        reference, candidates: the texts on both sides.
        near: the candidates that are near to a reference text.
        partner: one reference text for each of `near`.
        common: minimizers that were in too many texts to count, where the search is for texts inside others.
    """

    reference: np.ndarray
    candidates: np.ndarray
    near: np.ndarray
    partner: np.ndarray
    common: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))

    def hold_under(self, common: np.ndarray) -> bool:
        """Return whether they hold now that these are the common minimizers: as long as none came to count
        again, its texts being gone.
        """
        return bool(positions(common, self.common)[0].all())

    def under(self, common: np.ndarray, still: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Verdicts:
        """Return what holds of them where these minimizers are common.

        `still`: returns of texts and partners, by name, which pairs are near as well. What else was near has
            no verdict.
        """
        if len(common) == len(self.common):
            return self
        kept = still(self.near, self.partner)
        left = np.setdiff1d(self.candidates, self.near[~kept], assume_unique=True)
        return replace(self, candidates=left, near=self.near[kept], partner=self.partner[kept], common=common)


class Search(Protocol):
    """A search for the candidates that are near to a reference text, such as `NearSearch`."""

    rows: np.ndarray

    def run(self, sets: ShingleSets, *, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the near candidates, and one reference row for each."""
        ...


class Names:
    """The names of rows: hashes of their shingle sets, and the number of each row's one among the distinct
    ones.
    """

    def __init__(self, sets: np.ndarray):
        self.of_rows = sets
        self._distinct, self._number = np.unique(sets, return_inverse=True)

    def any_row(self) -> np.ndarray:
        """Return one row of each name."""
        rows = np.empty(len(self._distinct), np.int64)
        rows[self._number] = np.arange(len(self._number))
        return rows

    def find(self, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which names have a row, and one row of each of these."""
        is_here, place = positions(self._distinct, names)
        return is_here, self.any_row()[place[is_here]]

    def are_in(self, names: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return which rows have one of some names (ascending)."""
        chosen = np.zeros(len(self._distinct), bool)
        is_here, place = positions(self._distinct, names)
        chosen[place[is_here]] = True
        return chosen[self._number[rows]]

    def distinct(self, rows: np.ndarray) -> np.ndarray:
        """Return the names of rows (positions, or a mask), each once, ascending."""
        chosen = np.zeros(len(self._distinct), bool)
        chosen[self._number[rows]] = True
        return self._distinct[chosen]


class KnownSearch:
    """A search that compares only the pairs that an earlier one did not.

    Args:
        search: starts a search of reference rows and candidates.
        names: of all rows.
        reference, candidates: rows, disjoint.
        known: what an earlier search found; None where there was none.

    Attributes:
        rows: those whose shingle sets `run` needs.
    """

    def __init__(
        self,
        search: Callable[[np.ndarray, np.ndarray], Search],
        names: Names,
        reference: np.ndarray,
        candidates: np.ndarray,
        known: Verdicts | None,
    ):
        self._search, self._names, self._reference, self._candidates = search, names, reference, candidates
        if known is None:
            self._near, self._partner = np.zeros(0, np.int64), np.zeros(0, np.uint64)
            self._searches = [search(reference, candidates)]
        else:
            is_old = names.are_in(known.candidates, candidates)
            is_near = names.are_in(known.near, candidates)
            near = candidates[is_near]
            partner = known.partner[positions(known.near, names.of_rows[near])[1]]
            has_partner = positions(names.distinct(reference), partner)[0]
            self._near, self._partner = near[has_partner], partner[has_partner]
            is_new = ~names.are_in(known.reference, reference)
            self._searches = [
                # Those without a verdict, or whose partner is gone, against all; the others against the new
                # ones.
                search(reference, np.concatenate([candidates[~is_old], near[~has_partner]])),
                search(reference[is_new], candidates[is_old & ~is_near]),
            ]
        self.rows = np.concatenate([each.rows for each in self._searches])

    def run(self, found: ShingleSets, read: ReadSets, left_out: np.ndarray) -> tuple[np.ndarray, Verdicts]:
        """Return the near candidates, and the verdicts for a later search.

        Args:
            found: shingle sets of `rows`.
            read: reads the sets of further rows: those whose partner was excluded since.
            left_out: bool [texts], those that are no longer reference text nor candidate, together with all
                of an equal set.
        """
        near, partner, begin = [], [], 0
        for search in self._searches:
            rows, others = search.run(
                found.select(np.arange(begin, begin + len(search.rows))), left_out=left_out
            )
            begin += len(search.rows)
            near.append(rows)
            partner.append(self._names.of_rows[others])
        is_lost = positions(self._names.distinct(left_out), self._partner)[0]
        still = ~left_out[self._near]
        near.append(self._near[~is_lost & still])
        partner.append(self._partner[~is_lost & still])
        reference = self._reference[~left_out[self._reference]]
        if (is_lost & still).any():
            late = self._search(reference, self._near[is_lost & still])
            rows, others = late.run(read(late.rows), left_out=left_out)
            near.append(rows)
            partner.append(self._names.of_rows[others])
        all_near = np.concatenate(near)
        names, first = np.unique(self._names.of_rows[all_near], return_index=True)
        candidates = self._candidates[~left_out[self._candidates]]
        verdicts = Verdicts(
            self._names.distinct(reference),
            self._names.distinct(candidates),
            names,
            np.concatenate(partner)[first],
        )
        return all_near, verdicts


def save(verdicts: Mapping[str, Verdicts], folder: Path) -> None:
    """Write the verdicts of several searches, by name, to a snapshot's folder."""
    arrays = {
        f"{name}/{field}": values for name, found in verdicts.items() for field, values in vars(found).items()
    }
    np.savez(folder / FILE, **arrays)


def of_earlier_snapshot(
    store: Store, case: str, version: str, settings: SnapshotSettings, seed: int
) -> dict[str, Verdicts]:
    """Return the verdicts of the newest whole snapshot that compared texts in the same way; none where there
    is no such snapshot.
    """
    for manifest in reversed(store.artifacts(case, "training_snapshot")):
        if _compares_alike(manifest, version, settings, seed):
            try:
                folder = store.folder(manifest)
            except StoreError:
                # They only save time: a damaged snapshot is not asked.
                continue
            with np.load(folder / FILE, allow_pickle=False) as arrays:
                names = {name.partition("/")[0] for name in arrays.files}
                return {
                    name: Verdicts(**{each.name: arrays[f"{name}/{each.name}"] for each in fields(Verdicts)})
                    for name in names
                }
    return {}


def _compares_alike(manifest: Manifest, version: str, settings: SnapshotSettings, seed: int) -> bool:
    made = {name: getattr(settings, name) for name in ("near_duplicate_similarity", "contained_share")}
    alike = (manifest.version, manifest.seed) == (version, seed) and made.items() <= manifest.settings.items()
    # An erasure removes the file.
    return alike and FILE in manifest.files
