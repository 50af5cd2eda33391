"""The task classification."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fullft_assets.task import Task


class Classification(Task):
    """One label a row."""

    name = "classification"
    target = "label"
    min_labels = 2
    metrics = ("macro_f1", "accuracy")
    shown_metrics = metrics
    slice_metric = "accuracy"
    baselines = ("majority", "tfidf", "frozen_probe")
    more_baselines = ("lora", "smaller_model", "few_shot", "zero_shot")
    detects_drift = True
    templates = Path(__file__).parent / "templates"
    scoring = "fullft_assets.tasks.classification.scoring:evaluate"
    evaluation = "fullft_assets.tasks.classification.assessment:ClassificationEvaluation"

    def open_recipe(self, data: Any) -> Any:
        from fullft_assets.tasks.classification.recipe import ClassificationRecipe

        return ClassificationRecipe(
            data.base_model,
            data.train,
            data.validation,
            data.labels,
            data.added_tokens,
            data.general,
            data.start,
        )

    def draw(self, evaluation: Any) -> Mapping[str, Any]:
        from fullft_assets.tasks.classification import pictures

        return {"confusion": pictures.confusion(evaluation), "reliability": pictures.reliability(evaluation)}

    def predict(
        self, model: Any, settings: Any, labels: Sequence[str], texts: Sequence[str], max_new_tokens: int
    ) -> Iterator[dict[str, Any]]:
        """See `Task`: each label with its probability, the likeliest first."""
        from fullft_assets.chunks import Tokenization
        from fullft_assets.models.inference import predict

        for probabilities in predict(
            model, Tokenization.load_saved(model, settings.chunks).windows(texts)
        ).probabilities:
            ranked = sorted(zip(labels, map(float, probabilities), strict=True), key=lambda pair: -pair[1])
            yield {"label": ranked[0][0], "probability": ranked[0][1], "probabilities": dict(ranked)}

    def show(self, prediction: Mapping[str, Any]) -> Iterator[str]:
        for label, probability in prediction["probabilities"].items():
            yield f"{probability:6.1%}  {label}"


TASK = Classification()
