"""evaluation: how good, how sure, where weak, and was full fine-tuning worth it."""

from fullft_assets.evaluation.classification import ClassificationEvaluation, accuracy, macro_f1
from fullft_assets.evaluation.figures import (
    BASE_MODEL,
    CHAMPION,
    FINETUNED,
    MAX_HALF_WIDTH,
    Evaluation,
    Interval,
    Justification,
    Terms,
    title,
)
from fullft_assets.evaluation.language import LanguageEvaluation
from fullft_assets.evaluation.multi_label import MultiLabelEvaluation
from fullft_assets.evaluation.reading import VERSION, read_evaluation, shown_metrics, systems
from fullft_assets.evaluation.spans import SpanEvaluation

__all__ = [
    "BASE_MODEL",
    "CHAMPION",
    "ClassificationEvaluation",
    "Evaluation",
    "FINETUNED",
    "Interval",
    "Justification",
    "LanguageEvaluation",
    "MAX_HALF_WIDTH",
    "MultiLabelEvaluation",
    "SpanEvaluation",
    "Terms",
    "VERSION",
    "accuracy",
    "macro_f1",
    "read_evaluation",
    "shown_metrics",
    "systems",
    "title",
]
