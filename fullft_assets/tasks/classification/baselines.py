"""Baselines of classifiers: shares of the labels, TF-IDF, a probe on the frozen base model; and the logistic
regressions behind the last two, with a strength of their regularization that is chosen on validation rows.

Saved as JSON and npz, never pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from fullft_assets.chunks import Tokenization
from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import (
    Baseline,
    BaselineContext,
    OpenedModel,
    StoredBaseline,
    export_model,
)
from fullft_assets.tasks.heads import LogisticHead

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from transformers import PreTrainedModel

    from fullft_assets.models.inference import HeadWeights
    from fullft_assets.progress import Listener
    from fullft_assets.settings import UseCaseSettings

#: Coefficients of the regression on TF-IDF, all labels together; terms that are rare are left out for it.
_MOST_WEIGHTS = 8_000_000
#: Inverse strengths of the regularization that are tried.
TFIDF_C = (1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Majority(Baseline):
    """Always the commonest training label."""

    name = "majority"
    title = "majority label"
    tasks = ("classification",)

    shares: np.ndarray

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


class LabelShares(Majority):
    """Each label with its share of the training rows, whatever the text: at its threshold, always or
    never.
    """

    name = "label_shares"
    title = "labels by their shares"
    tasks = ("multi_label",)

    @classmethod
    def fit(cls, train: Split, context: BaselineContext) -> Self:
        return cls(train.labels.mean(0))


@dataclass(frozen=True)
class Tfidf(Baseline):
    """TF-IDF of words, word pairs and parts of words with a logistic regression: minutes of work, no GPU."""

    name = "tfidf"
    title = "TF-IDF + logistic regression"
    serving_rank = 0
    tasks = ("classification", "multi_label")

    vectorizers: Sequence[TfidfVectorizer]
    head: LogisticHead

    @staticmethod
    def _vectorizers(
        max_terms: int | None = None, vocabularies: Sequence[dict[str, int] | None] = (None, None)
    ) -> list[TfidfVectorizer]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        words, parts = vocabularies
        options: dict[str, Any] = {"sublinear_tf": True, "max_features": max_terms, "dtype": np.float32}
        return [
            TfidfVectorizer(vocabulary=words, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **options),
            TfidfVectorizer(vocabulary=parts, analyzer="char_wb", ngram_range=(2, 5), **options),
        ]

    @classmethod
    def fit(cls, train: Split, context: BaselineContext) -> Tfidf:
        vectorizers = cls._vectorizers(_MOST_WEIGHTS // (2 * len(context.labels)))
        for vectorizer in vectorizers:
            vectorizer.fit(train.texts)
        validation: Split = cast(Any, context.open_recipe()).validation
        return cls(
            vectorizers,
            LogisticHead.fit_best(
                _stacked(vectorizers, train.texts),
                train.labels,
                len(context.labels),
                TFIDF_C,
                (_stacked(vectorizers, validation.texts), validation.labels),
            ),
        )

    def predict(self, rows: Split) -> np.ndarray:
        return self.head.probabilities(_stacked(self.vectorizers, rows.texts))

    def save(self, folder: Path) -> None:
        vocabularies = [
            {term: int(i) for term, i in vectorizer.vocabulary_.items()} for vectorizer in self.vectorizers
        ]
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
    from scipy.sparse import hstack

    return hstack([vectorizer.transform(texts) for vectorizer in vectorizers]).tocsr()


@dataclass(frozen=True)
class FrozenProbe(Baseline):
    """The base model as it was, with a logistic regression as its head: what full fine-tuning begins with."""

    name = "frozen_probe"
    title = "frozen base model + trained head"
    tasks = ("classification", "multi_label")
    serving_rank = 2
    is_start = True
    shares_model = True

    weights: HeadWeights
    context: BaselineContext

    @classmethod
    def fit(cls, train: Any, context: BaselineContext) -> Self:
        weights = replace(cast(Any, context.open_recipe()), start=None, probe=None).fit_head(
            _with_new_head(context), context.settings.training, context.listener, most_rows=None
        )
        return cls(weights, context)

    def predict(self, rows: Split) -> Any:
        return self.context.open_recipe().predict(self._model(), rows, self.context.listener)

    def export(self, folder: Path, context: BaselineContext) -> None:
        export_model(self._model(), folder, context)

    def _model(self) -> PreTrainedModel:
        from fullft_assets.models import inference

        model = _with_new_head(self.context)
        inference.set_head_weights(model, self.weights)
        return model

    def save(self, folder: Path) -> None:
        np.savez(folder / f"{self.name}.npz", **vars(self.weights))

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        from fullft_assets.models.inference import HeadWeights

        return cls(HeadWeights(**np.load(folder / f"{cls.name}.npz")), context)


def _with_new_head(context: BaselineContext) -> PreTrainedModel:
    """Return the base model with an untrained head; what is random below its output layer is the same each
    time.
    """
    import torch

    from fullft_assets.models import precision
    from fullft_assets.training import sharding

    settings = context.settings.training.model_copy(update={"weights": "fp32"})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sharding.load_scored(
            partial(context.open_recipe().load_original, settings), settings, is_shared=context.shares_models
        )
    precision.set_scoring(model, None)
    return model


def classify(
    model: OpenedModel,
    settings: UseCaseSettings,
    texts: Sequence[str],
    progress: Listener | None = None,
    *,
    is_shared: bool = False,
) -> np.ndarray:
    """Return the probabilities [texts, labels] that a classifier gives its own labels.

    Args:
        is_shared: whether several processes, which all call this, share the model.
    """
    if isinstance(model, StoredBaseline):
        return model.predict(texts)
    # These load torch, without which TF-IDF predicts seconds earlier.
    from fullft_assets.models.inference import load_classifier, predict_with
    from fullft_assets.training import sharding

    classifier = sharding.load_scored(partial(load_classifier, model), settings.training, is_shared=is_shared)
    return predict_with(
        classifier, Tokenization.load_saved(model, settings.chunks).chunks(texts), progress=progress
    )
