"""Baselines of classifiers: majority label, TF-IDF, a probe on the frozen base model. The last two also give several labels a row.

Saved as JSON and npz, never pickled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import Baseline, BaselineContext

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

#: Log-odds of a label that no training row has, or that all have.
_CERTAIN = 20.0


class Majority(Baseline):
    """Always the commonest training label."""

    name, title, tasks = "majority", "majority label", ("classification",)

    def __init__(self, shares: np.ndarray):
        self.shares = shares

    @classmethod
    def fit(cls, train: Split, context: BaselineContext) -> Self:
        return cls(np.bincount(train.labels, minlength=len(context.labels)) / len(train))

    def predict(self, rows: Split) -> np.ndarray:
        return np.tile(self.shares, (len(rows), 1))

    def save(self, folder: Path) -> None:
        np.savez(folder / f"{self.name}.npz", shares=self.shares)

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        return cls(np.load(folder / f"{cls.name}.npz")["shares"])


@dataclass(frozen=True)
class LogisticHead:
    """Logistic regression on features: softmax over labels where a row has one, else each label against the rest.

    Attributes:
        coefficients: [labels, features].
        intercept: [labels].
    """

    coefficients: np.ndarray
    intercept: np.ndarray
    is_exclusive: bool

    @classmethod
    def fit(cls, features: Any, labels: np.ndarray, num_labels: int, *, C: float) -> LogisticHead:
        """Fit on features [rows, features]; labels are int [rows], or bool [rows, labels]."""
        if labels.ndim == 1:
            return cls(*_fit_softmax(features, labels, num_labels, C=C), is_exclusive=True)
        return cls(*_fit_each(features, labels, C=C), is_exclusive=False)

    def probabilities(self, features: Any) -> np.ndarray:
        """Return label probabilities [rows, labels]."""
        scores = features @ self.coefficients.T + self.intercept
        return _softmax(scores) if self.is_exclusive else _sigmoid(scores)

    def save(self, path: Path, **arrays: np.ndarray) -> None:
        """Write the head, and further arrays beside it, as npz."""
        about = {"coefficients": self.coefficients, "intercept": self.intercept, "is_exclusive": np.array(self.is_exclusive)}
        np.savez(path, allow_pickle=False, **about, **arrays)

    @classmethod
    def of(cls, arrays: Any) -> LogisticHead:
        """Return the head of arrays that were saved."""
        return cls(arrays["coefficients"], arrays["intercept"], bool(arrays["is_exclusive"]))


class Tfidf(Baseline):
    """TF-IDF of words and word pairs with a logistic regression: minutes of work, no GPU."""

    name, title, tasks = "tfidf", "TF-IDF + logistic regression", ("classification", "multi_label")

    def __init__(self, vectorizer: TfidfVectorizer, head: LogisticHead):
        self.vectorizer, self.head = vectorizer, head

    @staticmethod
    def _vectorizer(vocabulary: dict[str, int] | None = None) -> TfidfVectorizer:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(
            vocabulary=vocabulary, ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=50_000, token_pattern=r"(?u)\b\w+\b"
        )

    @classmethod
    def fit(cls, train: Split, context: BaselineContext) -> Tfidf:
        vectorizer = cls._vectorizer()
        features = vectorizer.fit_transform(train.texts)
        return cls(vectorizer, LogisticHead.fit(features, train.labels, len(context.labels), C=10.0))

    def predict(self, rows: Split) -> np.ndarray:
        return self.head.probabilities(self.vectorizer.transform(rows.texts))

    def save(self, folder: Path) -> None:
        """Write `tfidf.json` (the vocabulary) and `tfidf.npz`."""
        vocabulary = {term: int(i) for term, i in self.vectorizer.vocabulary_.items()}
        (folder / "tfidf.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        self.head.save(folder / "tfidf.npz", idf=self.vectorizer.idf_)

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Tfidf:
        arrays = np.load(folder / "tfidf.npz")
        vectorizer = cls._vectorizer(json.loads((folder / "tfidf.json").read_text(encoding="utf-8")))
        vectorizer.idf_ = arrays["idf"]
        return cls(vectorizer, LogisticHead.of(arrays))


class FrozenProbe(Baseline):
    """Logistic regression on the base model's embeddings: its weights stay as they were."""

    name, title, tasks = "frozen_probe", "frozen base model + trained head", ("classification", "multi_label")

    def __init__(self, mean: np.ndarray, scale: np.ndarray, head: LogisticHead, context: BaselineContext):
        self.mean, self.scale, self.head, self.context = mean, scale, head, context

    @classmethod
    def fit(cls, train: Split, context: BaselineContext) -> FrozenProbe:
        embeddings = _embed(train, context)
        mean, scale = embeddings.mean(0), embeddings.std(0) + 1e-6
        head = LogisticHead.fit((embeddings - mean) / scale, train.labels, len(context.labels), C=0.1)
        return cls(mean, scale, head, context)

    def predict(self, rows: Split) -> np.ndarray:
        return self.predict_embedded(_embed(rows, self.context))

    def predict_embedded(self, embeddings: np.ndarray) -> np.ndarray:
        """Return label probabilities [rows, labels] from embeddings [rows, hidden]."""
        return self.head.probabilities((embeddings - self.mean) / self.scale)

    def save(self, folder: Path) -> None:
        self.head.save(folder / "frozen_probe.npz", mean=self.mean, scale=self.scale)

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> FrozenProbe:
        arrays = np.load(folder / "frozen_probe.npz")
        return cls(arrays["mean"], arrays["scale"], LogisticHead.of(arrays), context)


def _embed(rows: Split, context: BaselineContext) -> np.ndarray:
    from fullft_assets.models.inference import embed

    return embed(context.base_model, rows.windows, added_tokens=context.added_tokens, progress=context.progress)


def _fit_softmax(features: Any, labels: np.ndarray, num_labels: int, *, C: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=C, max_iter=1_000).fit(features, labels)
    if len(model.classes_) == 2:  # there is one row for both classes
        coefficients, intercept = np.vstack([-model.coef_, model.coef_]) / 2, np.append(-model.intercept_, model.intercept_) / 2
    else:
        coefficients, intercept = model.coef_, model.intercept_
    assert len(coefficients) == num_labels, "the snapshot guarantees every label in the training rows"
    return coefficients, intercept


def _softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _fit_each(features: Any, labels: np.ndarray, *, C: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

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
