"""The task multi_label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fullft_assets.task import Task


class MultiLabel(Task):
    """Several labels a row, or none: each is a decision of its own."""

    name = "multi_label"
    target = "labels"
    metrics = ("macro_f1", "micro_f1", "subset_accuracy")
    shown_metrics = metrics
    slice_metric = "subset_accuracy"
    baselines = ("label_shares", "tfidf", "frozen_probe")
    more_baselines = ("lora", "smaller_model")
    no_label_weights = "the thresholds of several labels are chosen on the validation rows"
    templates = Path(__file__).parent / "templates"
    scoring = "fullft_assets.tasks.multi_label.scoring:evaluate"
    evaluation = "fullft_assets.tasks.multi_label.assessment:MultiLabelEvaluation"

    def open_recipe(self, data: Any) -> Any:
        from fullft_assets.tasks.multi_label.recipe import MultiLabelRecipe

        return MultiLabelRecipe(
            data.base_model,
            data.train,
            data.validation,
            data.labels,
            data.added_tokens,
            data.general,
            data.start,
        )

    def draw(self, evaluation: Any) -> Mapping[str, Any]:
        from fullft_assets.report import pictures

        return {"label_scores": pictures.label_scores(evaluation.per_label)}

    def predict(
        self, model: Any, settings: Any, labels: Sequence[str], texts: Sequence[str], max_new_tokens: int
    ) -> Iterator[dict[str, Any]]:
        """See `Task`: each label with its probability and its threshold, those that the text gets first."""
        from fullft_assets.chunks import Tokenization
        from fullft_assets.models.inference import predict
        from fullft_assets.tasks.multi_label.scoring import read_thresholds

        thresholds = dict(zip(labels, map(float, read_thresholds(model)), strict=True))
        for probabilities in predict(
            model, Tokenization.load_saved(model, settings.chunks).windows(texts)
        ).probabilities:
            each = dict(zip(labels, map(float, probabilities), strict=True))
            ranked = sorted(
                labels, key=lambda label, each=each: (each[label] < thresholds[label], -each[label])
            )
            labels_given = [label for label in ranked if each[label] >= thresholds[label]]
            yield {
                "labels": labels_given,
                "probabilities": {label: each[label] for label in ranked},
                "thresholds": thresholds,
            }

    def show(self, prediction: Mapping[str, Any]) -> Iterator[str]:
        for label, probability in prediction["probabilities"].items():
            answer = "yes" if label in prediction["labels"] else "no"
            yield f"{answer:<3} {probability:6.1%}  {label} (from {prediction['thresholds'][label]:.1%} on)"


TASK = MultiLabel()
