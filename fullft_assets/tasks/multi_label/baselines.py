"""The baseline that only classifiers with several labels a row have; the others are those of classification.

Each gives a probability for each label; its thresholds are chosen on the validation rows, as the fine-tuned model's are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import Baseline, BaselineContext


class LabelShares(Baseline):
    """Each label with its share of the training rows, whatever the text: at its threshold, always or never."""

    name, title, tasks = "label_shares", "labels by their shares", ("multi_label",)

    def __init__(self, shares: np.ndarray):
        self.shares = shares

    @classmethod
    def fit(cls, train: Split, context: BaselineContext) -> LabelShares:
        """Count the training labels."""
        return cls(train.labels.mean(0))

    def predict(self, rows: Split) -> np.ndarray:
        """Return the training shares for every row [rows, labels]."""
        return np.tile(self.shares, (len(rows), 1))

    def save(self, folder: Path) -> None:
        """Write `label_shares.npz`."""
        np.savez(folder / "label_shares.npz", shares=self.shares)

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> LabelShares:
        """Read what `save` wrote."""
        return cls(np.load(folder / "label_shares.npz")["shares"])
