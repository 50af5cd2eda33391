"""Baselines of classifiers: majority label, TF-IDF, a probe on the frozen base model. The last two also give
several labels a row.

Saved as JSON and npz, never pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import Baseline, BaselineContext
from fullft_assets.tasks.classification.logistic import TFIDF_C, LogisticHead

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from transformers import PreTrainedModel

    from fullft_assets.models.inference import HeadWeights

#: Coefficients of the regression on TF-IDF, all labels together; terms that are rare are left out for it.
_MOST_WEIGHTS = 8_000_000


class Majority(Baseline):
    """Always the commonest training label."""

    name = "majority"
    title = "majority label"
    tasks = ("classification",)

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


class Tfidf(Baseline):
    """TF-IDF of words, word pairs and parts of words with a logistic regression: minutes of work, no GPU."""

    name = "tfidf"
    title = "TF-IDF + logistic regression"
    tasks = ("classification", "multi_label")

    def __init__(self, vectorizers: Sequence[TfidfVectorizer], head: LogisticHead):
        self.vectorizers, self.head = vectorizers, head

    @staticmethod
    def _vectorizers(
        max_terms: int | None = None, vocabularies: Sequence[dict[str, int] | None] = (None, None)
    ) -> list[TfidfVectorizer]:
        """Return the vectorizers of words and of parts of words, each with a maximum number of terms."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        words, parts = vocabularies
        shared: dict[str, Any] = {"sublinear_tf": True, "max_features": max_terms, "dtype": np.float32}
        return [
            TfidfVectorizer(vocabulary=words, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **shared),
            TfidfVectorizer(vocabulary=parts, analyzer="char_wb", ngram_range=(2, 5), **shared),
        ]

    @classmethod
    def fit(cls, train: Split, context: BaselineContext) -> Tfidf:
        vectorizers = cls._vectorizers(_MOST_WEIGHTS // (2 * len(context.labels)))
        for vectorizer in vectorizers:
            vectorizer.fit(train.texts)
        validation: Split = cast(Any, context.open_recipe()).validation
        features, checked = (_stacked(vectorizers, rows.texts) for rows in (train, validation))
        labels = len(context.labels)
        return cls(
            vectorizers,
            LogisticHead.fit_best(features, train.labels, labels, TFIDF_C, (checked, validation.labels)),
        )

    def predict(self, rows: Split) -> np.ndarray:
        return self.head.probabilities(_stacked(self.vectorizers, rows.texts))

    def save(self, folder: Path) -> None:
        """Write `tfidf.json` (the vocabularies) and `tfidf.npz`."""
        vocabularies = [{term: int(i) for term, i in each.vocabulary_.items()} for each in self.vectorizers]
        (folder / "tfidf.json").write_text(json.dumps(vocabularies, ensure_ascii=False), encoding="utf-8")
        words, parts = self.vectorizers
        self.head.save(folder / "tfidf.npz", words_idf=words.idf_, parts_idf=parts.idf_)

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Tfidf:
        arrays = np.load(folder / "tfidf.npz")
        vectorizers = cls._vectorizers(
            vocabularies=json.loads((folder / "tfidf.json").read_text(encoding="utf-8"))
        )
        for vectorizer, name in zip(vectorizers, ("words_idf", "parts_idf"), strict=True):
            vectorizer.idf_ = arrays[name]
        return cls(vectorizers, LogisticHead.of(arrays))


def _stacked(vectorizers: Sequence[TfidfVectorizer], texts: Sequence[str]) -> Any:
    """Return the features of texts [texts, terms], sparse; words and parts of words weigh the same."""
    from scipy.sparse import hstack

    return hstack([vectorizer.transform(texts) for vectorizer in vectorizers]).tocsr()


class FrozenProbe(Baseline):
    """The base model as it was, with a logistic regression as its head: what full fine-tuning begins with."""

    name = "frozen_probe"
    title = "frozen base model + trained head"
    tasks = ("classification", "multi_label")

    def __init__(self, weights: HeadWeights, context: BaselineContext):
        self.weights, self.context = weights, context

    @classmethod
    def fit(cls, train: Any, context: BaselineContext) -> Self:
        recipe = cast(Any, context.open_recipe())
        recipe = recipe.with_model(recipe.base_model)
        weights = recipe.fit_head(
            _with_new_head(context), context.settings.training, context.progress, most_rows=None
        )
        return cls(weights, context)

    def predict(self, rows: Split) -> Any:
        from fullft_assets.models import inference

        model = _with_new_head(self.context)
        inference.set_head_weights(model, self.weights)
        return self.context.open_recipe().predict(model, rows, self.context.progress)

    def save(self, folder: Path) -> None:
        np.savez(
            folder / f"{self.name}.npz",
            coefficients=self.weights.coefficients,
            intercept=self.weights.intercept,
        )

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        from fullft_assets.models.inference import HeadWeights

        arrays = np.load(folder / f"{cls.name}.npz")
        return cls(HeadWeights(arrays["coefficients"], arrays["intercept"]), context)


def _with_new_head(context: BaselineContext) -> PreTrainedModel:
    """Return the base model with an untrained head; what is random below its output layer is the same each
    time.
    """
    import torch

    from fullft_assets.models import precision

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = context.open_recipe().load_original(
            context.settings.training.model_copy(update={"weights": "fp32"})
        )
    precision.set_scoring(model, None)
    return model
