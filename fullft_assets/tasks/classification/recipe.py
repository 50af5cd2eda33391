"""The recipes of classifiers: a new head on the base model, each chunk a training row, padded to similar
ones.

With several labels a row each label is a yes or no of its own, decided at a threshold of its own. The loss is
the binary cross-entropy of every label of every row, summed; that of an optimizer step is the mean over all
of them, however many passes and processes they are in. Thresholds are chosen on the validation rows, for the
final weights, and saved in the model's configuration as `label_thresholds`. Scores on the validation rows, in
training and of the baselines alike, are at thresholds chosen on the same rows, so they are somewhat too good;
those on the test rows are not.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedModel

from fullft_assets.base_model import ModelFolder
from fullft_assets.evaluation.metrics import compute
from fullft_assets.models import precision
from fullft_assets.models.inference import (
    MULTI_LABEL,
    collate,
    device,
    features_of_documents,
    is_sharded,
    load_classifier,
    load_for_training,
    load_new_classifier,
    predict_with,
)
from fullft_assets.models.loading import PooledClassifier
from fullft_assets.progress import Listener
from fullft_assets.settings import TrainingSettings
from fullft_assets.snapshot import Split
from fullft_assets.tasks.classification import assessment
from fullft_assets.tasks.encoder import Encoder
from fullft_assets.tasks.heads import mean_log_loss
from fullft_assets.training.feed import Feed
from fullft_assets.training.recipe import MOST_HEAD_ROWS, Prepared

METRICS = ("accuracy", "macro_f1")
DECISION_METRICS = ("macro_f1", "micro_f1", "subset_accuracy")
#: Rows are shuffled, then sorted by length within pools of this many batches: random enough, little padding.
_POOL_BATCHES = 50
#: A new head is fitted on at least this many rows of each label, where it has them.
_ROWS_OF_EACH_LABEL = 10


class ClassificationRecipe(Encoder):
    """Each chunk of a row learns the row's label."""

    #: Of the model's configuration.
    problem_type: ClassVar[str | None] = None

    def _load(
        self,
        folder: ModelFolder,
        settings: TrainingSettings,
        added_tokens: Sequence[str] = (),
        *,
        keeps_head: bool = False,
    ) -> PreTrainedModel:
        load = load_classifier if keeps_head else load_new_classifier
        options = {
            "load": load,
            "keeps_head": keeps_head,
            "dtype": precision.of_weights(settings),
            "problem_type": self.problem_type,
        }
        return load_for_training(folder, self.labels, added_tokens, **options)

    def _states(
        self, model: PreTrainedModel, rows: Split, listener: Listener
    ) -> tuple[np.ndarray, np.ndarray]:
        if is_sharded(model) or not isinstance(model, PooledClassifier) or len(rows) > MOST_HEAD_ROWS:
            return features_of_documents(model, rows.chunks, listener), rows.labels
        # The base model does not read again what it has read.
        vectors = self.features.setdefault((precision.of_scores(model), model.dtype), {})
        unread = rows.select([row for row, name in enumerate(rows.ids) if name not in vectors])
        if unread.ids:
            features = features_of_documents(model, unread.chunks, listener)
            vectors |= zip(unread.ids, features, strict=True)
        return np.stack([vectors[name] for name in rows.ids]), rows.labels

    def _head_rows(self, most_rows: int | None) -> Split:
        if most_rows is None or len(self.train) <= most_rows:
            return self.train
        one_hot = (
            np.eye(len(self.labels), dtype=bool)[self.train.labels]
            if self.train.labels.ndim == 1
            else self.train.labels
        )
        is_early = (one_hot & (np.cumsum(one_hot, axis=0) <= _ROWS_OF_EACH_LABEL)).any(1)
        return self.train.select(np.flatnonzero(is_early | (np.arange(len(self.train)) < most_rows)).tolist())

    def prepare(self, model: PreTrainedModel, settings: TrainingSettings, seed: int) -> Prepared:
        return self._prepared(
            model,
            chunk_feed(*labelled_chunks(self.train), model, settings, seed, torch.tensor),
            _loss_of_output(self.train, len(self.labels) if settings.balance_labels else None),
            settings,
        )

    def score(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        return score(model, self.validation, listener)

    def predict(self, model: PreTrainedModel, rows: Split, listener: Listener) -> np.ndarray:
        return predict_with(model, rows.chunks, progress=listener)

    def _score_predicted(self, name: str, predictions: Any, folder: Path) -> dict[str, float]:
        return _scores(self.validation.labels, predictions, name)


def labelled_chunks(train: Split) -> tuple[list[list[int]], list[Any]]:
    """Return each chunk of the rows, and its row's label, or labels, beside it."""
    return [chunk for document in train.chunks for chunk in document], [
        label for label, document in zip(train.labels.tolist(), train.chunks, strict=True) for _ in document
    ]


def chunk_feed(
    chunks: Sequence[Sequence[int]],
    labels: Sequence[Any],
    model: PreTrainedModel,
    settings: TrainingSettings,
    seed: int,
    to_tensor: Callable[[list[Any]], torch.Tensor],
) -> Feed:
    """Return a feed of chunks, each a training row, padded to similar ones."""
    lengths = np.array([len(chunk) for chunk in chunks])
    order = planned_order(lengths.tolist(), settings.num_epochs, settings.batch_size, seed)
    bounds = np.append(np.arange(0, len(order), settings.rows_a_pass()), len(order))
    pad_id = model.config.get_text_config().pad_token_id or 0

    def batch(number: int) -> dict[str, torch.Tensor]:
        rows = order[bounds[number] : bounds[number + 1]]
        inputs = collate([chunks[row] for row in rows], pad_id)
        return inputs | {"labels": to_tensor([labels[row] for row in rows])}

    return Feed(
        batch=batch,
        num_rows=len(order),
        lengths=lengths[order],
        num_predicted=np.zeros(len(order), np.int64),
        bounds=bounds,
        sizes=np.maximum.reduceat(lengths[order], bounds[:-1]) * np.diff(bounds),
    )


def planned_order(lengths: list[int], epochs: float, batch_size: int, seed: int) -> np.ndarray:
    """Return the positions to train on, in order, for all epochs together.

    Each epoch visits every position once, a last part of an epoch a random draw of them, in batches of
    similar length in random order. What does not fill a batch moves to the next epoch's pool, so batches
    stay aligned with lengths.
    """
    rng = np.random.default_rng(seed)
    sizes = np.asarray(lengths)
    total = max(1, round(epochs * len(lengths)))
    remainder = np.empty(0, np.int64)
    full_batches: list[np.ndarray] = []
    count = 0
    while (num_missing := total - count - len(remainder)) > 0:
        pool = np.concatenate([remainder, rng.permutation(len(lengths))[:num_missing]])
        batches = []
        for start in range(0, len(pool), batch_size * _POOL_BATCHES):
            part = pool[start : start + batch_size * _POOL_BATCHES]
            part = part[np.argsort(-sizes[part], kind="stable")]
            batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        full = [batch for batch in batches if len(batch) == batch_size]
        remainder = np.concatenate([b for b in batches if len(b) < batch_size] or [np.empty(0, np.int64)])
        full_batches += [full[i] for i in rng.permutation(len(full))]
        count = sum(map(len, full_batches))
    return np.concatenate([*full_batches, remainder])


def _loss_of_output(train: Split, balanced_labels: int | None) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """Return (output, labels) -> the summed cross-entropy of a pass.

    A model's own loss is the mean over the micro-batch: with accumulation the gradients and the logged loss
    would be as many times too large as there are micro-batches.

    Args:
        balanced_labels: number of labels, to weight each by its inverse frequency; None = no weights.
    """
    weights = None
    if balanced_labels is not None:
        counts = np.bincount(
            np.repeat(train.labels, [len(document) for document in train.chunks]), minlength=balanced_labels
        )
        weights = torch.tensor(
            counts.sum() / (balanced_labels * counts), dtype=torch.float32, device=device()
        )

    def loss_of(output: Any, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(
            output.logits.float(), labels, weight=weights, reduction="sum"
        )

    return loss_of


def score(model: PreTrainedModel, split: Split, listener: Listener | None = None) -> dict[str, float]:
    """Return loss, accuracy and macro-F1 of a model on a split; all are nan if its outputs are not finite."""
    probabilities = predict_with(model, split.chunks, progress=listener)
    return (
        {"loss": mean_log_loss(split.labels, probabilities), **_scores(split.labels, probabilities)}
        if np.isfinite(probabilities).all()
        else dict.fromkeys(("loss", *METRICS), math.nan)
    )


def _scores(labels: np.ndarray, probabilities: np.ndarray, name: str = "probabilities") -> dict[str, float]:
    names = [str(label) for label in range(np.shape(probabilities)[1])]
    return compute(METRICS, assessment.predictions_of(labels, probabilities, names, name))


class MultiLabelRecipe(ClassificationRecipe):
    """See `Recipe`; labels are bool [rows, labels]."""

    problem_type = MULTI_LABEL

    def prepare(self, model: PreTrainedModel, settings: TrainingSettings, seed: int) -> Prepared:
        to_tensor = partial(torch.tensor, dtype=torch.float32)
        return self._prepared(
            model,
            chunk_feed(*labelled_chunks(self.train), model, settings, seed, to_tensor),
            lambda output, labels: torch.nn.functional.binary_cross_entropy_with_logits(
                output.logits.float(), labels, reduction="sum"
            ),
            settings,
        )

    def score(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        probabilities = predict_with(model, self.validation.chunks, progress=listener)
        return (
            {
                "loss": mean_log_loss(self.validation.labels, probabilities),
                **scores_at_best(self.validation.labels, probabilities),
            }
            if np.isfinite(probabilities).all()
            else dict.fromkeys(("loss", *DECISION_METRICS), math.nan)
        )

    def finish(self, model: PreTrainedModel, listener: Listener) -> dict[str, Any]:
        probabilities = predict_with(model, self.validation.chunks, progress=listener)
        thresholds = assessment.fit_thresholds(self.validation.labels, probabilities)
        model.config.label_thresholds = thresholds.tolist()
        return {"label_thresholds": dict(zip(self.labels, thresholds.round(4).tolist(), strict=True))}

    def _score_predicted(self, name: str, predictions: Any, folder: Path) -> dict[str, float]:
        truth = self.validation.labels
        np.savez(folder / thresholds_file(name), thresholds=assessment.fit_thresholds(truth, predictions))
        return scores_at_best(truth, predictions)


def thresholds_file(baseline: str) -> str:
    """Return the name of the file with a baseline's thresholds, in a `cheaper_baselines` artifact."""
    return f"{baseline}_thresholds.npz"


def scores_at_best(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return the metrics at thresholds that are chosen on the same rows."""
    decisions = probabilities >= assessment.fit_thresholds(labels, probabilities)
    return compute(DECISION_METRICS, assessment.decisions_of(labels, decisions))
