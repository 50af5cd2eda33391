"""The section `planning`."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from fullft_assets.settings.base import Float, OneOf, Settings
from fullft_assets.task import BASELINES

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
        default=0.25,
        gt=0,
        le=1,
        description=(
            "Share of the training rows that the pilot's largest training has; the smaller ones have a half,"
            " a quarter and an eighth of it."
        ),
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
            " dollars: the gain is then weighed against training and a year of retraining. Default: not"
            " asked."
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
