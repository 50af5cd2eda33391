"""Statistics of the texts: length, fertility, words that are new to the training texts, and the model's
entropy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fullft_assets.monitoring.drift_test import DriftTest
from fullft_assets.monitoring.features import NUMBERS, Features
from fullft_assets.monitoring.sums import Sums, pooled_mean
from fullft_assets.monitoring.whitening import whitening

#: What a change of each number is called: if it is larger, if it is smaller, and its unit.
_WORDS = {
    "num_tokens": ("texts are longer", "texts are shorter", "tokens"),
    "fertility": ("words are split into more tokens", "words are split into fewer tokens", "tokens a word"),
    "unknown_share": (
        "more words are new to the training texts",
        "fewer words are new to the training texts",
        "of the words",
    ),
    "entropy": ("the model is less certain", "the model is more certain", "nats of entropy"),
}


class TextStatistics(DriftTest):
    """Compares ranks of the four numbers among those of the held-out rows."""

    name = "text_statistics"
    arrays = ("ranks", "ranks_centre", "ranks_axes")

    def fit(self, held_out: Features, num_labels: int) -> dict[str, np.ndarray]:
        """Return the sorted numbers [n, 4] of held-out rows, and the mean [8] and the whitened axes [8, r] of
        their mid-ranks and the squares of those.
        """
        ranks = np.sort(held_out.numbers, axis=0)
        centre, axes = whitening(_mid_ranks(ranks, held_out.numbers), 2 * ranks.shape[1])
        return {"ranks": ranks, "ranks_centre": centre, "ranks_axes": axes}

    def coordinates(self, fitted: Mapping[str, np.ndarray], features: Features) -> np.ndarray:
        """Return the whitened mid-ranks of each document's numbers."""
        ranks = _mid_ranks(fitted["ranks"], features.numbers)
        return (ranks - fitted["ranks_centre"]) @ fitted["ranks_axes"]

    def in_words(self, reference: Sequence[Sums], current: Sequence[Sums], labels: Sequence[str]) -> str:
        """Return which of the numbers changed by a tenth or more, and from what to what."""
        old, new = (pooled_mean(side, [window.numbers for window in side]) for side in (reference, current))
        changes = [
            _change(name, a, b) for name, a, b in zip(NUMBERS, old.tolist(), new.tolist(), strict=True)
        ]
        return (
            ", ".join(filter(None, changes)) or "lengths and words of the texts are distributed differently"
        )


def _mid_ranks(ordered: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the mid-ranks [n, c], 0 to 1, of numbers among each column's ordered ones, and their squares, as
    [n, 2 c].
    """
    columns = [
        (np.searchsorted(column, values, "left") + np.searchsorted(column, values, "right"))
        / (2 * len(column))
        for column, values in zip(ordered.T, numbers.T, strict=True)
    ]
    ranks = np.stack(columns, axis=1)
    return np.concatenate([ranks, np.square(ranks)], axis=1)


def _change(name: str, old: float, new: float) -> str:
    more, less, unit = _WORDS[name]
    shown = [f"{value:.1%}" if name == "unknown_share" else f"{value:.3g}" for value in (old, new)]
    # Of four numbers some always differ a little: a tenth is worth a word.
    if shown[0] == shown[1] or abs(new - old) < 0.1 * max(abs(old), abs(new)):
        return ""
    return f"{more if new > old else less}: mean {shown[0]} -> {shown[1]} {unit}"
