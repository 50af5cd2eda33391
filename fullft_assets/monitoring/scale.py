"""The scale on which windows are compared, fitted once on held-out rows: documents -> coordinates -> a
window's sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fullft_assets.errors import StoreError
from fullft_assets.monitoring.drift_test import DriftTest, open_tests
from fullft_assets.monitoring.features import Features
from fullft_assets.monitoring.sums import Sums, save_arrays
from fullft_assets.settings.monitoring import OUR_DRIFT_TESTS

#: File of a `drift_scale`.
SCALE = "scale.npz"
#: Quantile of the distances between held-out rows above which a document is far from all of them.
_FAR = 0.95


@dataclass(frozen=True)
class Scale:
    """Coordinates of documents, scaled so that held-out rows have about unit variance in each.

    Attributes:
        tests: the drift tests that coordinates are for.
        fitted: what they were fitted to.
        held_out: [n, d] embeddings of the held-out rows, of unit length.
        far: distance from its nearest held-out row that 95% of the held-out rows do not exceed.
    """

    tests: Sequence[DriftTest]
    fitted: Mapping[str, np.ndarray]
    held_out: np.ndarray
    far: np.ndarray

    @classmethod
    def fit(cls, held_out: Features, num_labels: int, tests: Sequence[str] = OUR_DRIFT_TESTS) -> Scale:
        """Return the scale of held-out rows.

        Args:
            num_labels: labels that the model predicts.
            tests: names of the drift tests.
        """
        opened = open_tests(tests)
        fitted: dict[str, np.ndarray] = {}
        for test in opened:
            fitted |= test.fit(held_out, num_labels)
        # Which label documents have is counted whatever is tested.
        fitted["num_labels"] = np.array(num_labels)
        unit = _unit(held_out.embeddings)
        nearest = _nearest(unit, unit, itself=True)
        return cls(opened, fitted, unit, np.quantile(nearest, _FAR))

    def coordinates(self, features: Features) -> dict[str, np.ndarray]:
        """Return the coordinates [n, ...] of documents by drift test.

        Raises:
            ValueError: the documents were read by another model than the held-out rows.
        """
        return {test.name: test.coordinates(self.fitted, features) for test in self.tests}

    def sums(self, features: Features) -> Sums:
        """Return the sums of a window's documents."""
        coordinates, distances = self.coordinates(features), self.distances(features)
        # Rounded, and no negative zero: a share of exactly 5% is 0, and was shown as -4e-17.
        novel = None if distances is None else round(float((distances > 1).mean()) - (1 - _FAR), 9) + 0.0
        return Sums(
            num_rows=len(features),
            means={name: values.mean(axis=0) for name, values in coordinates.items()},
            numbers=features.numbers.mean(axis=0),
            counts=np.bincount(features.predicted, minlength=self._num_labels),
            novel_share=novel,
        )

    @property
    def _num_labels(self) -> int:
        # A scale that an earlier release wrote has a weight for each.
        return (
            int(self.fitted["num_labels"])
            if "num_labels" in self.fitted
            else len(self.fitted["label_weights"])
        )

    def distances(self, features: Features) -> np.ndarray | None:
        """Return each document's distance from its nearest held-out row, in multiples of `far`; None without
        held-out rows.
        """
        if not len(self.held_out):
            return None
        return _nearest(_unit(features.embeddings), self.held_out) / max(float(self.far), 1e-12)

    def with_content_of(self, other: Scale) -> Scale:
        """Return the scale with what the tests that outlive a champion were fitted to in another scale, on
        which earlier windows were read.
        """
        names = [name for test in self.tests if test.outlives_champion for name in test.arrays]
        return replace(self, fitted={**self.fitted, **{name: other.fitted[name] for name in names}})

    def without_rows(self) -> Scale:
        """Return the scale without the embeddings of single rows; the coordinates stay as they are."""
        return replace(self, held_out=self.held_out[:0])

    def save(self, path: Path) -> None:
        """Write the scale as an .npz file."""
        save_arrays(path, {**self.fitted, "held_out": self.held_out, "far": self.far})

    @classmethod
    def load(cls, path: Path, tests: Sequence[str] = OUR_DRIFT_TESTS) -> Scale:
        """Read what `save` wrote.

        Args:
            tests: names of the drift tests that it is read for.

        Raises:
            StoreError: an array is missing.
        """
        opened = open_tests(tests)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        for name in ("held_out", "far", *(name for test in opened for name in test.arrays)):
            if name not in arrays:
                raise StoreError(f"{path}: no array `{name}`; materialise the drift report again")
        return cls(opened, arrays, arrays.pop("held_out"), arrays.pop("far"))


def _unit(embeddings: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.maximum(lengths, 1e-12)).astype(np.float32)


def _nearest(rows: np.ndarray, held_out: np.ndarray, *, itself: bool = False) -> np.ndarray:
    """Return each row's cosine distance from its nearest held-out row, not counting itself."""
    likeness = rows @ held_out.T
    if itself:
        np.fill_diagonal(likeness, -1)
    return 1 - likeness.max(axis=1)
