"""The cheaper ways to several labels a row: the labels' shares, TF-IDF and a probe on the frozen backbone, one against the rest.

Each gives a probability for each label; its thresholds are fixed on the validation rows, as the fine-tuned model's are. Saved as
JSON and npz, never pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from fullft_assets.base_model import ModelFolder
from fullft_assets.snapshot import Split
from fullft_assets.tasks.classification.baselines import Baseline, FrozenProbe, Tfidf

#: Log-odds of a label that no training row has, or that all have.
_CERTAIN = 20.0


class Shares:
    """Each label with its share of the training rows, whatever the text: at its threshold, always or never."""

    def __init__(self, shares: np.ndarray):
        self.shares = shares

    @classmethod
    def fit(cls, train: Split, num_labels: int) -> Shares:
        """Count the training labels."""
        return cls(train.labels.mean(0))

    def predict(self, split: Split) -> np.ndarray:
        """Return the training shares for every row [rows, labels]."""
        return np.tile(self.shares, (len(split), 1))

    def save(self, folder: Path) -> None:
        """Write `label_shares.npz`."""
        np.savez(folder / "label_shares.npz", shares=self.shares)

    @classmethod
    def load(cls, folder: Path, base_model: ModelFolder, added_tokens: Sequence[str] = ()) -> Shares:
        """Read what `save` wrote."""
        return cls(np.load(folder / "label_shares.npz")["shares"])


class TfidfOfEach(Tfidf):
    """TF-IDF with a logistic regression for each label against the rest."""

    @classmethod
    def fit(cls, train: Split, num_labels: int) -> TfidfOfEach:
        """Fit vectorizer and regressions on the training texts."""
        vectorizer = cls._vectorizer()
        return cls(vectorizer, *_fit_each(vectorizer.fit_transform(train.texts), train.labels, C=10.0))

    def predict(self, split: Split) -> np.ndarray:
        """Return each label's probability [rows, labels]."""
        return _sigmoid(self.vectorizer.transform(split.texts) @ self.coefficients.T + self.intercept)


class ProbeOfEach(FrozenProbe):
    """Logistic regressions on the base model's embeddings, one for each label against the rest."""

    @classmethod
    def fit(
        cls, base_model: ModelFolder, embeddings: np.ndarray, labels: np.ndarray, num_labels: int, added_tokens: Sequence[str] = ()
    ) -> ProbeOfEach:
        """Fit on embeddings [rows, hidden] and labels [rows, labels] of the training rows."""
        mean, scale = embeddings.mean(0), embeddings.std(0) + 1e-6
        coefficients, intercept = _fit_each((embeddings - mean) / scale, labels, C=0.1)
        return cls(base_model, mean, scale, coefficients, intercept, added_tokens)

    def predict_embedded(self, embeddings: np.ndarray) -> np.ndarray:
        """Return each label's probability [rows, labels] from embeddings [rows, hidden]."""
        return _sigmoid((embeddings - self.mean) / self.scale @ self.coefficients.T + self.intercept)


#: Cheapest first.
KINDS = {"label_shares": Shares, "tfidf": TfidfOfEach, "frozen_probe": ProbeOfEach}


def load(folder: Path, base_model: ModelFolder, added_tokens: Sequence[str] = ()) -> dict[str, tuple[Baseline, np.ndarray]]:
    """Return the baselines of a `cheaper_baselines` artifact by name, each with its labels' thresholds."""
    return {
        name: (kind.load(folder, base_model, added_tokens), np.load(folder / f"{name}_thresholds.npz")["thresholds"])
        for name, kind in KINDS.items()
    }


def _fit_each(features, labels: np.ndarray, *, C: float) -> tuple[np.ndarray, np.ndarray]:
    coefficients, intercept = np.zeros((labels.shape[1], features.shape[1])), np.zeros(labels.shape[1])
    for i, column in enumerate(labels.T):
        if column.all() or not column.any():
            intercept[i] = _CERTAIN if column.all() else -_CERTAIN
            continue
        model = LogisticRegression(C=C, max_iter=1_000).fit(features, column)
        coefficients[i], intercept[i] = model.coef_[0], model.intercept_[0]
    return coefficients, intercept


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
