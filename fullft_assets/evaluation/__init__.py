"""evaluation: how good, how sure, where weak, and was full fine-tuning worth it.

`figures` has what all tasks share (intervals, resampling over groups, the justification), `classification` and `language`
the metrics of their tasks. An evaluation is kept as JSON and read again by `read_evaluation`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fullft_assets.evaluation import classification, language
from fullft_assets.evaluation.classification import ClassificationEvaluation, accuracy, macro_f1
from fullft_assets.evaluation.figures import BASE_MODEL, CHAMPION, FINETUNED, MAX_HALF_WIDTH, Evaluation, Interval, Justification, title
from fullft_assets.evaluation.language import LanguageEvaluation

__all__ = [
    "BASE_MODEL", "CHAMPION", "FINETUNED", "MAX_HALF_WIDTH", "VERSION", "ClassificationEvaluation", "Evaluation", "Interval",
    "Justification", "LanguageEvaluation", "accuracy", "macro_f1", "read_evaluation", "shown_metrics", "systems", "title",
]  # fmt: skip

VERSION = "2"


def read_evaluation(text: str | bytes) -> Evaluation:
    """Return an evaluation that was kept as JSON, as the kind that it is."""
    found = json.loads(text)
    kind = LanguageEvaluation if "num_test_tokens" in found else ClassificationEvaluation
    return kind.model_validate(found)


def shown_metrics(primary_metric: str) -> tuple[str, ...]:
    """Return the metrics that are shown side by side with the one that decides."""
    return language.SHOWN if primary_metric in language.METRICS else classification.METRICS


def systems(figures: Mapping[str, Any]) -> list[str]:
    """Return the systems that an `evaluation_report`'s metadata has figures of, the fine-tuned model first."""
    ending = f"_{figures['primary_metric']}"
    return [FINETUNED, *(name.removesuffix(ending) for name in figures if name.endswith(ending))]
