"""The section `evaluation`."""

from __future__ import annotations

from typing import Annotated

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

    REMOVED = {
        "low": "the report shows the score alone",
        "high": "the report shows the score alone",
        "seconds": "the report shows the score alone",
        "usd": "the report shows the score alone",
    }

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

    @model_validator(mode="after")
    def _has_one_source(self) -> ExternalSettings:
        if (self.file is None) == (self.score is None):
            raise ValueError("give either file (predictions for the test rows) or score")
        return self


class LmEvalSettings(Settings):
    """Tasks of the lm-evaluation-harness in YAML files of the user's own, which the fine-tuned model, the
    champion and the base model take.
    """

    REMOVED = {"limit": "bring a task with fewer rows"}

    folder: str = Field(
        min_length=1,
        description=(
            "Folder with the tasks' YAML files and what they read, relative to the project; files that a YAML"
            " names are relative to it. Code in it (`!function`) is run."
        ),
    )
    tasks: list[str] = Field(min_length=1, description="Names of the tasks, as `task:` in their YAML files.")


class ModuleSettings(Settings):
    """A module of the library `evaluate`, as a metric of one label a row or of written answers."""

    module: str = Field(
        pattern=r"^[\w./-]*\w$",
        description=(
            "Folder with the module, relative to the project, or the name of one that is in the hub's cache."
            " The folder's name is the metric's."
        ),
    )
    digest: str = Field(
        pattern=r"^[0-9a-f]{20}$",
        description=(
            "Digest of its Python files, which run in the evaluation. A wrong one is refused with the right"
            " one: read the files before you set it."
        ),
    )

    @property
    def name(self) -> str:
        """Name of the metric."""
        return self.module.rsplit("/", 1)[-1]

    @model_validator(mode="after")
    def _has_a_name_of_its_own(self) -> ModuleSettings:
        if self.name in METRICS:
            raise ValueError(f"{self.name} is the name of a registered metric; rename the module")
        return self


class EvaluationSettings(Settings):
    """Which metric decides, and how its confidence intervals are computed."""

    REMOVED = {
        "resamples": "1,000 resamples are drawn",
        "calibration_bins": "the reliability diagram has 10 bins",
        "robustness_rows": "perturbed copies are not scored any more",
        "answer_tokens": "a model may write 256 tokens for an answer",
        "slices": "all kinds of slices but `annotator` are scored",
    }

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
    modules: list[ModuleSettings] = Field(
        default_factory=list,
        description="Modules of the library `evaluate` that the report shows beside, each with its interval.",
    )
    confidence: Float = Field(default=0.95, gt=0.5, lt=1, description="Level of the confidence intervals.")
    generated_answers: int = Field(
        default=100,
        ge=0,
        le=10_000,
        description=(
            "For sft: number of test conversations whose last answer the fine-tuned model, the champion and"
            " the base model write, to be compared with the held-out one. 0: none."
        ),
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
