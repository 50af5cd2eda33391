"""The section `evaluation`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fullft_assets.settings.base import Float, OneOf, Settings
from fullft_assets.task import METRICS

#: Names of the models that an evaluation compares: the candidate, the champion, and the first one.
MODELS = ("finetuned", "champion", "first_champion")
MetricName = Annotated[str, OneOf("metric", lambda: METRICS.names)]


class ExternalSettings(Settings):
    """A system that is not made here, such as a vendor's or a RAG: what it answered for the test rows, or
    only its score.
    """

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]{0,63}$",
        description=(
            "Name in the report: lower-case letters, digits and underscores, no registered baseline's."
        ),
    )
    file: str | None = Field(
        default=None,
        description=(
            "JSON lines with `id` and `label`, `labels` or `spans` (with `start`, `end`, `label`) of every"
            " test row, relative to the project. It is scored as the baselines are, and the model must"
            " beat it."
        ),
    )
    score: Float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Its score in the primary metric, instead of a file: shown, but compared with nothing.",
    )
    low: Float | None = Field(default=None, ge=0, le=1, description="Lower end of the score's interval.")
    high: Float | None = Field(default=None, ge=0, le=1, description="Upper end of the score's interval.")
    seconds: Float | None = Field(default=None, ge=0, description="Time that it took, for the report.")
    usd: Float | None = Field(default=None, ge=0, description="What it cost in US dollars, for the report.")

    @model_validator(mode="after")
    def _has_one_source(self) -> ExternalSettings:
        if (self.file is None) == (self.score is None):
            raise ValueError("give either file (predictions for the test rows) or score")
        if self.score is None and (self.low is not None or self.high is not None):
            raise ValueError(
                "low and high are of a score that is given; that of a file is computed with its interval"
            )
        if (self.low is None) != (self.high is None):
            raise ValueError("give both low and high, or neither")
        if (
            self.score is not None
            and self.low is not None
            and self.high is not None
            and not self.low <= self.score <= self.high
        ):
            raise ValueError(f"score {self.score:g} is not between low {self.low:g} and high {self.high:g}")
        return self


class LmEvalSettings(Settings):
    """Tasks of the lm-evaluation-harness in YAML files of the user's own, which the fine-tuned model, the
    champion and the base model take.
    """

    folder: str = Field(
        min_length=1,
        description=(
            "Folder with the tasks' YAML files and what they read, relative to the project; files that a YAML"
            " names are relative to it. Code in it (`!function`) is run."
        ),
    )
    tasks: list[str] = Field(min_length=1, description="Names of the tasks, as `task:` in their YAML files.")
    limit: int | None = Field(
        default=None, ge=1, description="Rows of each task, from its beginning. Default: all."
    )


class EvaluationSettings(Settings):
    """Which metric decides, and how its confidence intervals are computed."""

    primary_metric: MetricName | None = Field(
        default=None,
        description=(
            "The metric that decides, one of the task's own. Default: macro_f1; for token_classification"
            " micro_f1 of exact spans; for sft and language_modeling token_probability, the geometric mean of"
            " the probabilities of the trained tokens (1 / perplexity)."
        ),
    )
    metrics: list[MetricName] = Field(
        default_factory=list,
        description=(
            "Further registered metrics that the report shows beside the task's own, each with its interval."
        ),
    )
    confidence: Float = Field(default=0.95, gt=0.5, lt=1, description="Level of the confidence intervals.")
    resamples: int = Field(
        default=1_000,
        ge=100,
        le=100_000,
        description="Number of bootstrap resamples; whole groups are drawn.",
    )
    slices: list[Literal["source", "length", "label", "language", "domain", "slice_by", "annotator"]] = Field(
        default_factory=lambda: ["source", "length", "label", "language", "domain", "slice_by"],
        description=(
            "By what the test rows are cut into slices, each scored and compared with the champion, else with"
            " the best baseline: file, quarter of the lengths, label, language, the user's own fields"
            " (examples.domain, examples.slice_by), annotator. Beside a champion of an older snapshot its"
            " test rows are a slice, too. Default: all but annotator."
        ),
    )
    generated_answers: int = Field(
        default=100,
        ge=0,
        le=10_000,
        description=(
            "For sft: number of test conversations whose last answer the fine-tuned model, the champion and"
            " the base model write, to be compared with the held-out one. 0: none."
        ),
    )
    answer_tokens: int = Field(
        default=256,
        ge=1,
        le=8_192,
        description=(
            "Tokens that a model may write for an answer; conversations whose held-out answer has more are"
            " excluded."
        ),
    )
    robustness_rows: int = Field(
        default=300,
        ge=0,
        le=100_000,
        description=(
            "For classification and multi_label: number of test rows of which perturbed copies (typing"
            " errors, upper and lower case, the first half) are read by the fine-tuned model and the"
            " champion. Each row costs up to four more passes. 0: none."
        ),
    )
    calibration_bins: int = Field(
        default=10, ge=2, le=100, description="Number of bins of the reliability diagram."
    )
    external: list[ExternalSettings] = Field(
        default_factory=list,
        description="Systems that are not made here, to compare the model with on the same test rows.",
    )
    lm_eval: LmEvalSettings | None = Field(
        default=None,
        description=(
            "For sft and language_modeling: tasks of the lm-evaluation-harness, shown beside the scores; no"
            " gate reads them. Needs the extra `lm-eval`."
        ),
    )
