"""What is kept of a window for the drift tests: few numbers, no text and no row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fullft_assets.monitoring.features import NUMBERS

_MEAN = "mean_"


@dataclass(frozen=True)
class Sums:
    """What is kept of a window.

    Attributes:
        num_rows: documents that count, each independent of the others.
        means: by drift test, the mean coordinates of these documents.
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
        plotted = {f"{_MEAN}{name}": float(value) for name, value in zip(NUMBERS, self.numbers, strict=True)}
        return plotted | ({} if self.novel_share is None else {"novel_share": self.novel_share})

    def save(self, path: Path) -> None:
        """Write the sums as an .npz file."""
        arrays = {f"{_MEAN}{name}": mean for name, mean in self.means.items()}
        arrays |= {"num_rows": self.num_rows, "numbers": self.numbers, "counts": self.counts}
        save_arrays(path, arrays | ({} if self.novel_share is None else {"novel_share": self.novel_share}))

    @classmethod
    def load(cls, path: Path) -> Sums:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            means = {
                name.removeprefix(_MEAN): arrays[name] for name in arrays.files if name.startswith(_MEAN)
            }
            novel_share = float(arrays["novel_share"]) if "novel_share" in arrays else None
            return cls(int(arrays["num_rows"]), means, arrays["numbers"], arrays["counts"], novel_share)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray | float]) -> None:
    """Write an .npz file."""
    # Through an untyped name: the stub of `savez` takes each keyword for its option `allow_pickle`.
    save: Callable[..., None] = np.savez
    save(path, **arrays)


def pooled_mean(windows: Sequence[Sums], means: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over all documents of windows, from the mean of each window."""
    return np.average(means, axis=0, weights=[window.num_rows for window in windows])
