"""evaluation: how good, how sure, where weak, and was full fine-tuning worth it.

`figures` has what all tasks share (intervals, resampling over groups, the justification), `counts` and `rows` what those with labels
share, `classification`, `multi_label`, `spans` and `language` the metrics of their tasks. An evaluation is kept as JSON and read again by `read_evaluation`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fullft_assets.evaluation import classification, language, multi_label, spans
from fullft_assets.evaluation.classification import ClassificationEvaluation
from fullft_assets.evaluation.figures import (
    FINETUNED,
    Evaluation,
)
from fullft_assets.evaluation.language import LanguageEvaluation
from fullft_assets.evaluation.multi_label import MultiLabelEvaluation
from fullft_assets.evaluation.spans import SpanEvaluation

VERSION = "2"


def read_evaluation(text: str | bytes) -> Evaluation:
    """Return an evaluation that was kept as JSON, as the kind that it is."""
    found = json.loads(text)
    kinds = {"num_test_tokens": LanguageEvaluation, "labels_a_row": MultiLabelEvaluation, "num_spans": SpanEvaluation}
    kind = next((kind for field, kind in kinds.items() if field in found), ClassificationEvaluation)
    return kind.model_validate(found)


def shown_metrics(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the metrics that an `evaluation_report`'s metadata has side by side with the one that decides."""
    if figures["primary_metric"] in language.METRICS:
        return language.SHOWN
    if "num_test_spans" in figures:
        return spans.SHOWN
    return multi_label.METRICS if "labels_a_row" in figures else classification.METRICS


def systems(figures: Mapping[str, Any]) -> list[str]:
    """Return the systems that an `evaluation_report`'s metadata has figures of, the fine-tuned model first."""
    ending = f"_{figures['primary_metric']}"
    return [FINETUNED, *(name.removesuffix(ending) for name in figures if name.endswith(ending))]
