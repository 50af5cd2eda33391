"""The cheaper ways that a fine-tuned model must beat: majority label, TF-IDF, a probe on the frozen backbone.

Saved as JSON and npz, never pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from fullft_assets.base_model import ModelFolder
from fullft_assets.models.inference import embed
from fullft_assets.snapshot import Split


class Baseline(Protocol):
    """A cheaper way to the same answer."""

    def predict(self, split: Split) -> np.ndarray:
        """Return label probabilities [rows, labels]."""


class Majority:
    """Always the commonest training label."""

    def __init__(self, shares: np.ndarray):
        self.shares = shares

    @classmethod
    def fit(cls, train: Split, num_labels: int) -> Majority:
        """Count the training labels."""
        return cls(np.bincount(train.labels, minlength=num_labels) / len(train))

    def predict(self, split: Split) -> np.ndarray:
        """Return the training shares for every row."""
        return np.tile(self.shares, (len(split), 1))

    def save(self, folder: Path) -> None:
        """Write `majority.npz`."""
        np.savez(folder / "majority.npz", shares=self.shares)

    @classmethod
    def load(cls, folder: Path, base_model: ModelFolder, added_tokens: Sequence[str] = ()) -> Majority:
        """Read what `save` wrote."""
        return cls(np.load(folder / "majority.npz")["shares"])


class Tfidf:
    """TF-IDF of words and word pairs with a logistic regression: minutes of work, no GPU."""

    def __init__(self, vectorizer: TfidfVectorizer, coefficients: np.ndarray, intercept: np.ndarray):
        self.vectorizer, self.coefficients, self.intercept = vectorizer, coefficients, intercept

    @staticmethod
    def _vectorizer(vocabulary: dict[str, int] | None = None) -> TfidfVectorizer:
        return TfidfVectorizer(
            vocabulary=vocabulary, ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=50_000, token_pattern=r"(?u)\b\w+\b"
        )

    @classmethod
    def fit(cls, train: Split, num_labels: int) -> Tfidf:
        """Fit vectorizer and regression on the training texts."""
        vectorizer = cls._vectorizer()
        features = vectorizer.fit_transform(train.texts)
        coefficients, intercept = _fit_logistic(features, train.labels, num_labels, C=10.0)
        return cls(vectorizer, coefficients, intercept)

    def predict(self, split: Split) -> np.ndarray:
        """Return label probabilities [rows, labels]."""
        return _softmax(self.vectorizer.transform(split.texts) @ self.coefficients.T + self.intercept)

    def save(self, folder: Path) -> None:
        """Write `tfidf.json` (the vocabulary) and `tfidf.npz`."""
        vocabulary = {term: int(i) for term, i in self.vectorizer.vocabulary_.items()}
        (folder / "tfidf.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        np.savez(folder / "tfidf.npz", idf=self.vectorizer.idf_, coefficients=self.coefficients, intercept=self.intercept)

    @classmethod
    def load(cls, folder: Path, base_model: ModelFolder, added_tokens: Sequence[str] = ()) -> Tfidf:
        """Read what `save` wrote."""
        arrays = np.load(folder / "tfidf.npz")
        vectorizer = cls._vectorizer(json.loads((folder / "tfidf.json").read_text(encoding="utf-8")))
        vectorizer.idf_ = arrays["idf"]
        return cls(vectorizer, arrays["coefficients"], arrays["intercept"])


class FrozenProbe:
    """Logistic regression on the base model's embeddings: the backbone stays as it was."""

    def __init__(
        self,
        base_model: ModelFolder,
        mean: np.ndarray,
        scale: np.ndarray,
        coefficients: np.ndarray,
        intercept: np.ndarray,
        added_tokens: Sequence[str] = (),
    ):
        self.base_model, self.added_tokens, self.mean, self.scale = base_model, added_tokens, mean, scale
        self.coefficients, self.intercept = coefficients, intercept

    @classmethod
    def fit(
        cls, base_model: ModelFolder, embeddings: np.ndarray, labels: np.ndarray, num_labels: int, added_tokens: Sequence[str] = ()
    ) -> FrozenProbe:
        """Fit on embeddings [rows, hidden] of the training rows."""
        mean, scale = embeddings.mean(0), embeddings.std(0) + 1e-6
        coefficients, intercept = _fit_logistic((embeddings - mean) / scale, labels, num_labels, C=0.1)
        return cls(base_model, mean, scale, coefficients, intercept, added_tokens)

    def predict(self, split: Split) -> np.ndarray:
        """Return label probabilities [rows, labels]."""
        return self.predict_embedded(embed(self.base_model, split.windows, added_tokens=self.added_tokens))

    def predict_embedded(self, embeddings: np.ndarray) -> np.ndarray:
        """Return label probabilities [rows, labels] from embeddings [rows, hidden]."""
        return _softmax((embeddings - self.mean) / self.scale @ self.coefficients.T + self.intercept)

    def save(self, folder: Path) -> None:
        """Write `frozen_probe.npz`."""
        np.savez(folder / "frozen_probe.npz", mean=self.mean, scale=self.scale, coefficients=self.coefficients, intercept=self.intercept)

    @classmethod
    def load(cls, folder: Path, base_model: ModelFolder, added_tokens: Sequence[str] = ()) -> FrozenProbe:
        """Read what `save` wrote."""
        arrays = np.load(folder / "frozen_probe.npz")
        return cls(base_model, arrays["mean"], arrays["scale"], arrays["coefficients"], arrays["intercept"], added_tokens)


#: Cheapest first.
KINDS = {"majority": Majority, "tfidf": Tfidf, "frozen_probe": FrozenProbe}


def load(folder: Path, base_model: ModelFolder, added_tokens: Sequence[str] = ()) -> dict[str, Baseline]:
    """Return the baselines of a `cheaper_baselines` artifact by name; `added_tokens` are those of the windows they will read."""
    return {name: kind.load(folder, base_model, added_tokens) for name, kind in KINDS.items()}


def _fit_logistic(features, labels: np.ndarray, num_labels: int, *, C: float) -> tuple[np.ndarray, np.ndarray]:
    model = LogisticRegression(C=C, max_iter=1_000).fit(features, labels)
    if len(model.classes_) == 2:  # one row stands for both classes
        coefficients, intercept = np.vstack([-model.coef_, model.coef_]) / 2, np.append(-model.intercept_, model.intercept_) / 2
    else:
        coefficients, intercept = model.coef_, model.intercept_
    assert len(coefficients) == num_labels, "the snapshot guarantees every label in the training rows"
    return coefficients, intercept


def _softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
