"""The task token_classification."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fullft_assets.task import Task


class TokenClassification(Task):
    """Spans of a text, each with a label."""

    name = "token_classification"
    target = "spans"
    metrics = ("micro_f1", "macro_f1")
    shown_metrics = ("macro_f1", "micro_f1")
    slice_metric = "micro_f1"
    baselines = ("no_spans", "dictionary", "token_probe")
    more_baselines = ("lora",)
    no_label_weights = "most tokens have none"
    templates = Path(__file__).parent / "templates"
    scoring = "fullft_assets.tasks.token_classification.recipe:evaluate"
    evaluation = "fullft_assets.tasks.token_classification.assessment:SpanEvaluation"

    def open_recipe(self, data: Any) -> Any:
        from fullft_assets.tasks.token_classification.recipe import TokenClassificationRecipe

        return TokenClassificationRecipe(
            data.base_model,
            data.train,
            data.validation,
            data.labels,
            data.added_tokens,
            data.general,
            data.start,
            tokenization=data.tokenization,
        )

    def predict(
        self, model: Any, settings: Any, labels: Sequence[str], texts: Sequence[str], max_new_tokens: int
    ) -> Iterator[dict[str, Any]]:
        from fullft_assets.tasks.token_classification.recipe import find

        spans_of_texts, names = find(model, settings, texts)
        for text, spans in zip(texts, spans_of_texts, strict=True):
            yield {
                "spans": [
                    {"start": int(s), "end": int(e), "label": names[label], "text": text[s:e]}
                    for s, e, label in spans
                ]
            }

    def show(self, prediction: Mapping[str, Any]) -> Iterator[str]:
        yield from (
            f"{span['start']:>5} to {span['end']:<5} {span['label']}: {span['text']}"
            for span in prediction["spans"]
        )


TASK = TokenClassification()
