"""The section `release`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fullft_assets.settings.base import Float, OneOf, Settings
from fullft_assets.task import GATES

GateName = Annotated[str, OneOf("gate", lambda: GATES.names)]


class ModelPackageSettings(Settings):
    """A model package in SageMaker's registry for each champion, to be approved there."""

    group: str = Field(
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9-]{0,62}$",
        description="Model package group that it is registered in; made where it is missing.",
    )
    image: str = Field(
        min_length=1,
        description="Inference image that serves it, such as a Hugging Face container of the region.",
    )
    url: str = Field(
        pattern=r"^s3://[^/]+.*$",
        description="s3://bucket/prefix for `model.tar.gz` and `metrics.json` of each champion.",
    )


class ReleaseSettings(Settings):
    """What a candidate must show to become champion."""

    REMOVED = {
        "max_forgetting": "set `training.max_general_rise`, which the gate takes too",
        "champion_rule": (
            "a changed recipe must be better, new data alone may lose less than the test set can detect; a"
            " negative `min_gain_over_champion` accepts a loss"
        ),
        "max_calibration_error": "set `gates: {is_calibrated: {max_error: ...}}`",
    }

    candidates: Literal["any", "finetuned"] = Field(
        default="any",
        description=(
            "What may become champion: any system that the evaluation judges and that can be stored (the"
            " fine-tuned model, a frozen probe, TF-IDF, LoRA, a dictionary, a prompt), or the fine-tuned"
            " model alone."
        ),
    )
    worth: Float = Field(
        default=0.01,
        ge=0,
        le=1,
        description=(
            "What a system that costs more to serve has to score above a cheaper one, in the primary metric;"
            " within this the cheaper one becomes champion."
        ),
    )
    min_gain_over_baselines: Float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description=(
            "The lower end of the confidence interval of the gain over each baseline must exceed this."
        ),
    )
    min_gain_over_champion: Float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description=(
            "The lower end of the interval of the gain over the champion must exceed this. Where the same"
            " recipe was trained on new data, it is enough to lose less than the test set can detect, and"
            " less than max_tolerable_loss, against the champion and against the first champion."
        ),
    )
    max_tolerable_loss: Float = Field(
        default=0.05,
        gt=0,
        le=1,
        description=(
            "The largest loss of the primary metric that may go undetected after new data. Where the"
            " test set cannot exclude a loss of this size, nothing is decided: the report says how many"
            " groups would."
        ),
    )
    min_effective_groups: Float = Field(
        default=30.0,
        ge=2,
        description=(
            "Test groups of equal weight that a decision needs; with fewer the verdict is insufficient data."
        ),
    )
    min_score: Float = Field(default=0.0, ge=0, le=1, description="The primary metric must be at least this.")
    gates: dict[GateName, dict[str, Any]] = Field(
        default_factory=dict,
        description=(
            "Further registered gates, ours or of another package, each with its own settings, such as"
            " `is_calibrated: {max_error: 0.05}` (the expected calibration error of a classifier)."
        ),
    )
    # These change no decision, so they stay out of the keys of what is judged.
    push_to: str | None = Field(
        default=None,
        exclude=True,
        pattern=r"^((s3|gs|az)://[^/]+.*|[^:]+)$",
        description=(
            "Folder (relative to the project) or s3://bucket/prefix (or gs://, az://) to which each champion"
            " is copied: a folder for each model, as the Hugging Face hub has it, and champion.json, which"
            " names the champion's. Default: it stays in the store alone."
        ),
    )
    model_package: ModelPackageSettings | None = Field(
        default=None,
        exclude=True,
        description=(
            "Registers each champion in SageMaker, pending approval, with its scores. Region and credentials"
            " are those of the AWS environment. Default: it is not registered."
        ),
    )
    license: str | None = Field(
        default=None,
        exclude=True,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$",
        description=(
            "Licence of the champion as the Hugging Face hub names licences, such as `apache-2.0`; in the"
            " front matter of its card. Default: not stated."
        ),
    )
