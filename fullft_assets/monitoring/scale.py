"""The scale on which windows are compared, fitted once on held-out rows: documents -> coordinates -> a
window's sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from fullft_assets.errors import StoreError
from fullft_assets.monitoring.features import NUMBERS, Features

#: File of a `drift_scale`.
SCALE = "scale.npz"
#: The families of coordinates that are tested: the content of the texts, their statistics, and what the model
#: predicts.
FAMILIES = ("embeddings", "text_statistics", "predicted_labels")
#: Principal components of the embeddings. Of twice as many, the smaller half is mostly noise, which whitening
#: makes as loud as the rest.
MAX_COMPONENTS = 64
#: Held-out rows for each of them.
_ROWS_A_COMPONENT = 4
#: A label rarer than this weighs as if it had this share, so that one stray prediction is no drift.
_LEAST_SHARE = 0.01
#: Quantile of the distances between held-out rows above which a document is far from all of them.
_FAR = 0.95


@dataclass(frozen=True)
class Sums:
    """What is kept of a window: few numbers, no text and no row.

    Attributes:
        num_rows: documents that count, each independent of the others.
        means: by family, the mean coordinates of these documents.
        numbers: [4] means of the features in `features.NUMBERS`.
        counts: [labels] documents by predicted label.
        novel_share: share of documents farther from the held-out rows than 95% of those are from each other,
            minus 5%. None: an erasure removed the held-out rows' embeddings.
    """

    num_rows: int
    means: Mapping[str, np.ndarray]
    numbers: np.ndarray
    counts: np.ndarray
    novel_share: float | None

    def as_numbers(self) -> dict[str, float]:
        """Return what there is to plot over the windows."""
        found = {f"mean_{name}": float(value) for name, value in zip(NUMBERS, self.numbers, strict=True)}
        return found | ({} if self.novel_share is None else {"novel_share": self.novel_share})

    def save(self, path: Path) -> None:
        """Write the sums as an .npz file."""
        novel = {} if self.novel_share is None else {"novel_share": self.novel_share}
        means = {f"mean_{family}": mean for family, mean in self.means.items()}
        _save(
            path,
            {"num_rows": self.num_rows, "numbers": self.numbers, "counts": self.counts, **novel, **means},
        )

    @classmethod
    def load(cls, path: Path) -> Sums:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            means = {family: arrays[f"mean_{family}"] for family in FAMILIES}
            novel = float(arrays["novel_share"]) if "novel_share" in arrays else None
            return cls(int(arrays["num_rows"]), means, arrays["numbers"], arrays["counts"], novel)


@dataclass(frozen=True)
class Scale:
    """Coordinates of documents, scaled so that held-out rows have unit variance in each.

    Attributes:
        centre: [d] mean embedding of the held-out rows; axes: [d, k] their whitened principal components.
        ranks: [n, 4] sorted numbers of the held-out rows (see `features.NUMBERS`), which a document's numbers
            are ranked among.
        ranks_centre: [8], ranks_axes: [8, r] the same of the mid-ranks and their squares.
        label_weights: [labels] 1 / square root of each label's share of the held-out rows' predictions.
        held_out: [n, d] embeddings of the held-out rows, of unit length.
        far: distance from its nearest held-out row that 95% of the held-out rows do not exceed.
    """

    centre: np.ndarray
    axes: np.ndarray
    ranks: np.ndarray
    ranks_centre: np.ndarray
    ranks_axes: np.ndarray
    label_weights: np.ndarray
    held_out: np.ndarray
    far: np.ndarray

    @classmethod
    def fit(cls, held_out: Features, num_labels: int) -> Scale:
        """Return the scale of held-out rows.

        Args:
            num_labels: labels that the model predicts.
        """
        centre, axes = _whitening(held_out.embeddings.astype(np.float64), MAX_COMPONENTS)
        ranks = np.sort(held_out.numbers, axis=0)
        ranks_centre, ranks_axes = _whitening(_mid_ranks(ranks, held_out.numbers), 2 * ranks.shape[1])
        shares = np.bincount(held_out.predicted, minlength=num_labels) / len(held_out)
        unit = _unit(held_out.embeddings)
        nearest = _nearest(unit, unit, itself=True)
        weights = 1 / np.sqrt(np.maximum(shares, _LEAST_SHARE))
        return cls(centre, axes, ranks, ranks_centre, ranks_axes, weights, unit, np.quantile(nearest, _FAR))

    def coordinates(self, features: Features) -> dict[str, np.ndarray]:
        """Return the coordinates [n, ...] of documents by family.

        Raises:
            ValueError: the documents were read by another model than the held-out rows.
        """
        if features.embeddings.shape[1] != len(self.centre):
            raise ValueError(
                f"embeddings have {features.embeddings.shape[1]} dimensions, those of the held-out rows"
                f" {len(self.centre)}: they were read by different models"
            )
        return {
            "embeddings": (features.embeddings - self.centre) @ self.axes,
            "text_statistics": (
                (_mid_ranks(self.ranks, features.numbers) - self.ranks_centre) @ self.ranks_axes
            ),
            "predicted_labels": np.eye(len(self.label_weights))[features.predicted] * self.label_weights,
        }

    def sums(self, features: Features) -> Sums:
        """Return the sums of a window's documents."""
        coordinates, distances = self.coordinates(features), self.distances(features)
        # Rounded, and no negative zero: a share of exactly 5% is 0, and was shown as -4e-17.
        novel = None if distances is None else round(float((distances > 1).mean()) - (1 - _FAR), 9) + 0.0
        return Sums(
            num_rows=len(features),
            means={family: values.mean(axis=0) for family, values in coordinates.items()},
            numbers=features.numbers.mean(axis=0),
            counts=np.bincount(features.predicted, minlength=len(self.label_weights)),
            novel_share=novel,
        )

    def distances(self, features: Features) -> np.ndarray | None:
        """Return each document's distance from its nearest held-out row, in multiples of `far`; None without
        held-out rows.
        """
        if not len(self.held_out):
            return None
        return _nearest(_unit(features.embeddings), self.held_out) / max(float(self.far), 1e-12)

    def with_content_of(self, other: Scale) -> Scale:
        """Return the scale with the axes of the embeddings of another one, on which earlier windows were
        read.
        """
        return replace(self, centre=other.centre, axes=other.axes)

    def without_rows(self) -> Scale:
        """Return the scale without the embeddings of single rows; the coordinates stay as they are."""
        return replace(self, held_out=self.held_out[:0])

    def save(self, path: Path) -> None:
        """Write the scale as an .npz file."""
        _save(path, {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Scale:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            missing = [field.name for field in fields(cls) if field.name not in arrays]
            if missing:
                raise StoreError(f"{path}: no array `{missing[0]}`; materialise the drift report again")
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def _save(path: Path, arrays: Mapping[str, np.ndarray | float]) -> None:
    # Through an untyped name: the stub of `savez` takes each keyword for its option `allow_pickle`.
    save: Callable[..., None] = np.savez
    save(path, **arrays)


def _whitening(rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [d] and the axes [d, k] on which rows [n, d] have unit variance: the first principal
    components.
    """
    centre = rows.mean(axis=0)
    values, vectors = np.linalg.eigh(
        np.cov(rows - centre, rowvar=False, bias=True).reshape(len(centre), len(centre))
    )
    most = min(most, max(1, len(rows) // _ROWS_A_COMPONENT))
    kept = np.flatnonzero(values > max(values[-1], 1e-12) * 1e-6)[::-1][:most]
    return centre, vectors[:, kept] / np.sqrt(values[kept])


def _mid_ranks(ordered: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the mid-ranks [n, c], 0 to 1, of numbers among each column's ordered ones, and their squares, as
    [n, 2 c].
    """
    columns = [
        (np.searchsorted(reference, mine, "left") + np.searchsorted(reference, mine, "right"))
        / (2 * len(reference))
        for reference, mine in zip(ordered.T, numbers.T, strict=True)
    ]
    ranks = np.stack(columns, axis=1)
    return np.concatenate([ranks, np.square(ranks)], axis=1)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.maximum(lengths, 1e-12)).astype(np.float32)


def _nearest(rows: np.ndarray, held_out: np.ndarray, *, itself: bool = False) -> np.ndarray:
    """Return each row's cosine distance from its nearest held-out row, not counting itself."""
    likeness = rows @ held_out.T
    if itself:
        np.fill_diagonal(likeness, -1)
    return 1 - likeness.max(axis=1)
