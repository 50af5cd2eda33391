"""The section `evaluation`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fullft_assets.settings.base import Float, OneOf, Settings
from fullft_assets.task import METRICS

MetricName = Annotated[str, OneOf("metric", lambda: METRICS.names)]


class EvaluationSettings(Settings):
    """Which metric decides, and how its confidence intervals are computed."""

    primary_metric: MetricName | None = Field(
        default=None,
        description="The metric that decides, one of the task's own. Default: macro_f1; for token_classification micro_f1 of exact spans; for sft and "
        "language_modeling token_probability, the geometric mean of the probabilities of the trained tokens (1 / perplexity).",
    )
    metrics: list[MetricName] = Field(
        default_factory=list,
        description="Further registered metrics that the report shows beside the task's own, each with its interval.",
    )
    confidence: Float = Field(default=0.95, gt=0.5, lt=1, description="Level of the confidence intervals.")
    resamples: int = Field(default=1_000, ge=100, le=100_000, description="Number of bootstrap resamples; whole groups are drawn.")
    slices: list[Literal["source", "length", "label", "language", "domain", "annotator"]] = Field(
        default_factory=lambda: ["source", "length", "label", "language", "domain"],
        description="By what the test rows are cut into slices, each scored and compared with the champion, else with the best baseline: file, quarter "
        "of the lengths, label, language, the user's own field (examples.domain), annotator. Beside a champion of an older snapshot its "
        "test rows are a slice, too. Default: all but annotator.",
    )
    calibration_bins: int = Field(default=10, ge=2, le=100, description="Number of bins of the reliability diagram.")
