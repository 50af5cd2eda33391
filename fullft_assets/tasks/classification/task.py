"""The tasks classification and multi_label."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from fullft_assets.registry import load_attribute
from fullft_assets.task import Task

_HERE = "fullft_assets.tasks.classification"
_TEMPLATES = Path(__file__).parent / "templates"


class _Labels(Task):
    """What both tasks share.

    Attributes:
        recipe: `module:class` of the recipe.
    """

    recipe: ClassVar[str]

    def open_recipe(self, data: Any) -> Any:
        return load_attribute(self.recipe)(
            data.base_model,
            data.train,
            data.validation,
            data.labels,
            data.added_tokens,
            data.general,
            data.start,
            data.probe,
        )

    def _probabilities(
        self, model: Any, settings: Any, labels: Sequence[str], texts: Sequence[str]
    ) -> Iterator[dict[str, float]]:
        from fullft_assets.tasks.classification.baselines import classify

        for row in classify(model, settings, texts):
            yield dict(sorted(zip(labels, map(float, row), strict=True), key=lambda pair: -pair[1]))


class Classification(_Labels):
    """One label a row."""

    name = "classification"
    target = "label"
    min_labels = 2
    metrics = ("macro_f1", "accuracy")
    shown_metrics = metrics
    slice_metric = "accuracy"
    baselines = ("majority", "tfidf", "frozen_probe")
    more_baselines = ("lora", "few_shot", "zero_shot")
    has_one_label = True
    templates = _TEMPLATES / "classification"
    recipe = f"{_HERE}.recipe:ClassificationRecipe"
    scoring = f"{_HERE}.scoring:evaluate"
    evaluation = f"{_HERE}.assessment:ClassificationEvaluation"

    def draw(self, evaluation: Any) -> Mapping[str, Any]:
        from fullft_assets.report import pictures

        return {
            "confusion": pictures.confusion(evaluation.confusion, evaluation.labels),
            "reliability": pictures.reliability(evaluation.reliability, evaluation.num_test_rows),
        }

    def predict(
        self, model: Any, settings: Any, labels: Sequence[str], texts: Sequence[str], max_new_tokens: int
    ) -> Iterator[dict[str, Any]]:
        for ranked in self._probabilities(model, settings, labels, texts):
            label, probability = next(iter(ranked.items()))
            yield {"label": label, "probability": probability, "probabilities": ranked}

    def show(self, prediction: Mapping[str, Any]) -> Iterator[str]:
        yield from (
            f"{probability:6.1%}  {label}" for label, probability in prediction["probabilities"].items()
        )


class MultiLabel(_Labels):
    """Several labels a row, or none: each is a decision of its own."""

    name = "multi_label"
    target = "labels"
    metrics = ("macro_f1", "micro_f1", "subset_accuracy")
    shown_metrics = metrics
    slice_metric = "subset_accuracy"
    baselines = ("label_shares", "tfidf", "frozen_probe")
    more_baselines = ("lora",)
    no_label_weights = "the thresholds of several labels are chosen on the validation rows"
    templates = _TEMPLATES / "multi_label"
    recipe = f"{_HERE}.recipe:MultiLabelRecipe"
    scoring = f"{_HERE}.scoring:evaluate_decisions"
    evaluation = f"{_HERE}.assessment:MultiLabelEvaluation"

    def predict(
        self, model: Any, settings: Any, labels: Sequence[str], texts: Sequence[str], max_new_tokens: int
    ) -> Iterator[dict[str, Any]]:
        from fullft_assets.tasks.classification.scoring import read_thresholds

        thresholds = dict(zip(labels, map(float, read_thresholds(model)), strict=True))
        for ranked in self._probabilities(model, settings, labels, texts):
            labels_given = [
                label for label, probability in ranked.items() if probability >= thresholds[label]
            ]
            yield {
                "labels": labels_given,
                "probabilities": {label: ranked[label] for label in dict.fromkeys([*labels_given, *ranked])},
                "thresholds": thresholds,
            }

    def show(self, prediction: Mapping[str, Any]) -> Iterator[str]:
        for label, probability in prediction["probabilities"].items():
            answer = "yes" if label in prediction["labels"] else "no"
            yield f"{answer:<3} {probability:6.1%}  {label} (from {prediction['thresholds'][label]:.1%} on)"


CLASSIFICATION = Classification()
MULTI_LABEL = MultiLabel()
