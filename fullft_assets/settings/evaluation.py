"""The sections `planning` and `evaluation`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from fullft_assets.settings.base import Float, OneOf, Settings
from fullft_assets.task import BASELINES, METRICS

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

    REMOVED: ClassVar[Mapping[str, str]] = {
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


BaselineName = Annotated[str, OneOf("baseline", lambda: BASELINES.names)]


class TargetSettings(Settings):
    """A machine of the user's own, which the plan compares with the instances of its table."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "tflops": "name `gpu` as nvidia-smi does: the peaks of known GPUs are in a table",
    }

    name: str = Field(min_length=1, description="Name in the plan's table.")
    gpu: str = Field(min_length=1, description="GPU, as nvidia-smi names it, such as `RTX 4090` or `A100`.")
    gpus: int = Field(default=1, ge=1, le=64, description="Number of these GPUs.")
    memory_gib: Float = Field(gt=0, description="Memory of each GPU in GiB.")
    hourly_usd: Float = Field(default=0.0, ge=0, description="What an hour on it costs in US dollars.")


class BedrockSettings(Settings):
    """The baseline `bedrock`: a model of Amazon Bedrock that is asked for each row's label. Texts of rows
    leave this machine.
    """

    REMOVED: ClassVar[Mapping[str, str]] = {
        "region": "set AWS_DEFAULT_REGION, or give the model's ARN, whose region is asked",
        "examples": "each request shows 8 training rows with their labels",
        "max_characters": "the first 8,000 characters of a text are sent",
        "parallel_requests": "four requests are sent at a time",
        "usd_per_1k_input_tokens": "give both prices: `usd_per_1k_tokens: [0.001, 0.005]`",
        "usd_per_1k_output_tokens": "give both prices: `usd_per_1k_tokens: [0.001, 0.005]`",
    }

    model: str = Field(
        min_length=1,
        description=(
            "Id or ARN of the model, or of an inference profile. An ARN's region is asked, else that of the"
            " AWS environment."
        ),
    )
    endpoint_url: str | None = Field(
        default=None,
        description="Endpoint of the service, such as one in a private network. Default: AWS's own.",
    )
    usd_per_1k_tokens: list[Float] = Field(
        default=[0.0, 0.0],
        min_length=2,
        max_length=2,
        description="Prices of 1,000 tokens of requests, and of answers, in US dollars.",
    )


class PlanningSettings(Settings):
    """What the fine-tuning may cost, and the gain that it must promise."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "apply": "copy the lines that `fullft plan` recommends",
        "baselines: smaller_model": "make a use case of its own with that base_model",
        "baselines: few_shot_conversations": "remove it; no use case could ship it",
        "if_not_justified": (
            "the check `full_finetuning_is_justified` warns; to refuse, raise `min_predicted_gain` or"
            " `release.min_gain_over_baselines`"
        ),
        "lora": "adapters have rank 16 and ten times training.learning_rate",
        "pilot_seeds": "raise `pilot_share`, which says more for the same time",
        "pilot_unknown": "a training is refused only where the pilot predicts too little gain",
        "prompting": "a few-shot prompt shows 8 training rows and 1,024 tokens at most",
        "retrains_a_year": "set `retraining.max_age_days`",
        "smaller_model": "make a use case of its own with that base_model, and compare the two reports",
    }

    max_hours: Float = Field(
        default=24.0, gt=0, description="Maximum training time in hours; a longer plan blocks training."
    )
    max_usd: Float | None = Field(
        default=None,
        gt=0,
        description=(
            "Maximum cost of a model in US dollars, its pilot, baselines and evaluation included. Default: no"
            " limit."
        ),
    )
    hourly_usd: Float = Field(
        default=0.0,
        ge=0,
        description=(
            "Price of the training machine, or of all machines that share a training, in US dollars an hour."
        ),
    )
    targets: list[TargetSettings] = Field(
        default_factory=list,
        max_length=50,
        description="Your own machines, compared with this machine and with the usual GPU instances of EC2.",
    )
    price_factor: Float = Field(
        default=1.0,
        gt=0,
        le=10,
        description=(
            "Factor on the table's prices of instances, which are those of us-east-1 on demand: for another"
            " region, or a discount."
        ),
    )
    max_memory_gib: Float | None = Field(
        default=None,
        gt=0,
        description="Maximum memory of a training process in GiB. Default: the memory of the device.",
    )
    pilot_share: Float = Field(
        default=0.1, gt=0, le=1, description="Share of the training rows that the pilot is trained on."
    )
    min_predicted_gain: Float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description=(
            "Minimum gain in the primary metric over the best baseline; training is refused where the"
            " 90% interval that the pilot predicts ends below."
        ),
    )
    usd_per_point: Float | None = Field(
        default=None,
        gt=0,
        description=(
            "What one point (0.01) of the primary metric over the best baseline is worth in a year, in US"
            " dollars: the gain is then weighed against training and a year of retraining, and the more a run"
            " costs, the more labels a drift needs for another retrain. Default: not asked."
        ),
    )
    baselines: list[BaselineName] | None = Field(
        default=None,
        min_length=1,
        description=(
            "Registered baselines that the model must beat. Default: the task's own, listed in its"
            " documentation."
        ),
    )
    bedrock: BedrockSettings | None = Field(
        default=None,
        description=(
            "The model behind the baseline `bedrock`, which sends texts of rows to AWS where"
            " planning.baselines names it."
        ),
    )
