"""The section `evaluation`."""

from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from fullft_assets.settings.base import OneOf, Settings
from fullft_assets.task import METRICS

#: Names of the models that an evaluation compares: the candidate, the champion, and the first one.
MODELS = ("finetuned", "champion", "first_champion")
MetricName = Annotated[str, OneOf("metric", lambda: METRICS.names)]


class Module(NamedTuple):
    """A module of the library `evaluate`: its folder or its name, and the digest of its Python files."""

    module: str
    digest: str

    @property
    def name(self) -> str:
        """Name of the metric."""
        return self.module.rsplit("/", 1)[-1]


class EvaluationSettings(Settings):
    """Which metric decides, and what else is scored and compared."""

    REMOVED = {
        "confidence": "intervals are of 95%",
        "resamples": "1,000 resamples are drawn",
        "calibration_bins": "the reliability diagram has 10 bins",
        "robustness_rows": "perturbed copies are not scored any more",
        "answer_tokens": "a model may write 256 tokens for an answer",
        "slices": "all kinds of slices but `annotator` are scored",
        "lm_eval": "run lm-eval on the champion's folder, which transformers loads",
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
    modules: dict[
        Annotated[str, Field(pattern=r"^[\w./-]*\w$")], Annotated[str, Field(pattern=r"^[0-9a-f]{20}$")]
    ] = Field(
        default_factory=dict,
        description=(
            "Modules of the library `evaluate` that the report shows beside, each with its interval, as"
            " metrics of one label a row or of written answers: a folder relative to the project, or the name"
            " of a module that is in the hub's cache, and the digest of its Python files, which run in the"
            " evaluation. A wrong digest is refused with the right one: read the files before you set it."
        ),
    )
    #: Level of the confidence intervals.
    confidence: ClassVar[float] = 0.95
    generated_answers: int = Field(
        default=100,
        ge=0,
        le=10_000,
        description=(
            "For sft: number of test conversations whose last answer the fine-tuned model, the champion and"
            " the base model write, to be compared with the held-out one. 0: none."
        ),
    )
    external: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")], str] = Field(
        default_factory=dict,
        description=(
            "Systems that are not made here, such as a vendor's, to compare the model with: by name a file,"
            " relative to the project, of JSON lines with `id` and `label`, `labels` or `spans` (with"
            " `start`, `end`, `label`) of every test row, which is scored as the baselines are and must be"
            " beaten."
        ),
    )

    @property
    def named_modules(self) -> list[Module]:
        """The modules of `evaluate` in the order of the YAML."""
        return [Module(*item) for item in self.modules.items()]

    @field_validator("modules")
    @classmethod
    def _have_names_of_their_own(cls, modules: dict[str, str]) -> dict[str, str]:
        for item in modules.items():
            if (name := Module(*item).name) in METRICS:
                raise ValueError(f"{name} is the name of a registered metric; rename the module")
        return modules

    @field_validator("external", "modules", mode="before")
    @classmethod
    def _is_a_mapping(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, list):
            form = "NAME: FILE" if info.field_name == "external" else "MODULE: DIGEST"
            raise ValueError(f"is a list; give each entry as {form}")
        return value
