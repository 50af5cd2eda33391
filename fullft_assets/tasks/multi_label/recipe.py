"""The recipe of the task multi_label, several labels a row: each label is a yes or no of its own, decided at
a threshold of its own.

The loss is the binary cross-entropy of every label of every row, summed; that of an optimizer step is the
mean over all of them, however many passes and processes they are in. Thresholds are chosen on the validation
rows, for the final weights, and saved in the model's configuration as `label_thresholds`. Scores on the
validation rows, in training and of the baselines alike, are at thresholds chosen on the same rows, so they
are somewhat too good; those on the test rows are not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from fullft_assets.errors import DataError
from fullft_assets.jobs.progress import Listener
from fullft_assets.models.inference import MULTI_LABEL, predict_with
from fullft_assets.settings import TrainingSettings
from fullft_assets.tasks.classification.recipe import ClassificationRecipe, labelled_windows, window_feed
from fullft_assets.tasks.multi_label import assessment
from fullft_assets.training.recipe import Prepared


class MultiLabelRecipe(ClassificationRecipe):
    """See `Recipe`; labels are bool [rows, labels]."""

    problem_type = MULTI_LABEL

    def prepare(
        self, model: PreTrainedModel, settings: TrainingSettings, seed: int, num_processes: int
    ) -> Prepared:
        for name, split in (("training", self.train), ("validation", self.validation)):
            if split.labels.shape != (len(split), model.config.num_labels):
                raise DataError(
                    f"the snapshot's {name} rows have labels of shape {split.labels.shape}, wanted are"
                    f" {len(split)} rows of {model.config.num_labels} labels; take the snapshot again"
                )
        feed = window_feed(*labelled_windows(self.train), model, settings, seed, _to_tensor)
        return self._prepared(model, feed, loss_of_output, settings)

    def score(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        """See `Recipe`: loss, macro-F1, micro-F1 and subset accuracy, at thresholds chosen on these rows."""
        probabilities = predict_with(model, self.validation.windows, progress=listener).probabilities
        if not np.isfinite(probabilities).all():
            return dict.fromkeys(("loss", *assessment.METRICS), math.nan)
        return {
            "loss": mean_loss(self.validation.labels, probabilities),
            **scores_at_best(self.validation.labels, probabilities),
        }

    def finish(self, model: PreTrainedModel, listener: Listener) -> dict[str, Any]:
        """See `Recipe`: the labels' thresholds."""
        probabilities = predict_with(model, self.validation.windows, progress=listener).probabilities
        thresholds = assessment.fit_thresholds(self.validation.labels, probabilities)
        model.config.label_thresholds = thresholds.tolist()
        return {"label_thresholds": dict(zip(self.labels, thresholds.round(4).tolist(), strict=True))}

    def _score_predicted(self, name: str, predicted: Any, folder: Path) -> dict[str, float]:
        truth = self.validation.labels
        np.savez(folder / thresholds_file(name), thresholds=assessment.fit_thresholds(truth, predicted))
        return scores_at_best(truth, predicted)


def thresholds_file(baseline: str) -> str:
    """Return the name of the file with a baseline's thresholds, in a `cheaper_baselines` artifact."""
    return f"{baseline}_thresholds.npz"


def _to_tensor(labels: list[list[bool]]) -> torch.Tensor:
    return torch.tensor(labels, dtype=torch.float32)


def loss_of_output(output: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the summed binary cross-entropy of a pass; labels are floats [rows, labels]."""
    return torch.nn.functional.binary_cross_entropy_with_logits(
        output.logits.float(), labels, reduction="sum"
    )


def mean_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean binary cross-entropy of probabilities [rows, labels]."""
    clipped = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.log(np.where(labels, clipped, 1 - clipped)).mean())


def scores_at_best(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return the metrics at thresholds that are chosen on the same rows."""
    return assessment.scores(labels, probabilities >= assessment.fit_thresholds(labels, probabilities))
