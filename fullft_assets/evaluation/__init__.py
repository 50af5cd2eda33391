"""evaluation: how good, how sure, where weak, and was full fine-tuning worth it. What all tasks share; each task's own is in its folder."""

from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.comparison import MAX_HALF_WIDTH, Comparison, Justification
from fullft_assets.evaluation.intervals import Interval
from fullft_assets.evaluation.reading import VERSION, read_evaluation
from fullft_assets.evaluation.titles import BASE_MODEL, CHAMPION, FINETUNED, title

__all__ = [
    "BASE_MODEL",
    "CHAMPION",
    "Comparison",
    "Evaluation",
    "FINETUNED",
    "Interval",
    "Justification",
    "MAX_HALF_WIDTH",
    "VERSION",
    "read_evaluation",
    "title",
]
