"""What happens after training: the sections `release`, `monitoring`, `retraining`, `automation` and
`retention`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, model_validator

from fullft_assets.registry import Registry
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

    REMOVED: ClassVar[Mapping[str, str]] = {
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
            " less than max_tolerable_loss, against the champion and against the last one that was better."
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
    approvers: dict[
        Annotated[str, Field(pattern=r"^[^\s*,!?]+$")],
        Annotated[str, Field(pattern=r"^(proxy|(ssh|ecdsa|sk)-\S+ [^\n]+)$")],
    ] = Field(
        default_factory=dict,
        exclude=True,
        description=(
            "Who may promote what the gates kept, roll back, unfreeze and erase: by name, the public SSH key"
            " with which they sign at a terminal (`ssh-ed25519 AAAA...`), or `proxy` where the login before"
            " the UI names them. Default: everybody, and what they do is recorded as unverified."
        ),
    )
    approvals: int = Field(
        default=1, exclude=True, ge=1, le=2, description="How many of `approvers` have to ask for the same."
    )
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

    @model_validator(mode="after")
    def _has_enough_approvers(self) -> Self:
        if self.approvals > max(1, len(self.approvers)):
            raise ValueError("approvals: 2 needs two `approvers`")
        return self


#: Drift tests by name; another package registers a subclass of `monitoring.DriftTest` as an entry point of
#: this group.
DRIFT_TESTS: Registry[Any] = Registry(
    "drift test",
    "fullft_assets.drift_tests",
    {
        "embeddings": "fullft_assets.monitoring.drift_tests:Content",
        "text_statistics": "fullft_assets.monitoring.drift_tests:TextStatistics",
        "predicted_labels": "fullft_assets.monitoring.drift_tests:PredictedLabels",
    },
)
OUR_DRIFT_TESTS = ("embeddings", "text_statistics", "predicted_labels")
DriftTestName = Annotated[str, OneOf("drift test", lambda: DRIFT_TESTS.names)]
#: Maximum number of independent documents of a window that are compared, drawn by hash.
MAX_WINDOW_ROWS = 1_000


class WindowSettings(Settings):
    """Where a window ends: give one of the two."""

    rows: int | None = Field(
        default=None,
        ge=20,
        description=(
            "Number of rows: the file with which the window has as many is its last one. A file with more is"
            " never divided."
        ),
    )
    hours: Float | None = Field(
        default=None,
        gt=0,
        description=(
            "Hours: a file that was written so long after the first one of the window, or later, begins the"
            " next window."
        ),
    )

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if (self.rows is None) == (self.hours is None):
            raise ValueError("give either rows or hours")
        return self


class MonitoringSettings(Settings):
    """How production documents are cut into windows and compared with those of the first windows under the
    champion.
    """

    REMOVED: ClassVar[Mapping[str, str]] = {
        "log": "the champion predicts each production row anew",
        "max_new_tokens": "a language model writes 100 tokens at most for a document",
        "max_window_rows": f"at most {MAX_WINDOW_ROWS:,} documents of a window are compared",
        "reference_windows": "the first 12 windows under a champion are compared with, from the sixth on",
    }
    path: str | None = Field(
        default=None,
        description="Folder with production documents. Default: no monitoring assets for this use case.",
    )
    window: WindowSettings | None = Field(
        default=None,
        description=(
            "Windows are cut by number of rows or by time, from whole files in the order of their arrival."
            " Default: each file is a window."
        ),
    )
    #: Maximum number of tokens that a language model writes for each document of `batch_predictions`.
    max_new_tokens: ClassVar[int] = 100
    min_window_rows: int = Field(
        default=100,
        ge=20,
        le=MAX_WINDOW_ROWS,
        description=(
            "A window with fewer independent documents gives `insufficient_data` and is not compared."
        ),
    )
    drift_tests: list[DriftTestName] = Field(
        default=list(OUR_DRIFT_TESTS),
        min_length=1,
        description=(
            "Drift tests by which windows are compared: the content of the texts, their statistics, what the"
            " model predicts, or those of other packages."
        ),
    )


class RetrainingSettings(Settings):
    """When to train again, and when not to."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "min_growth": "a snapshot must grow by a fifth as well; set `min_new_examples`",
        "drift_horizon_days": "windows of the last 30 days count",
        "backoff_hours": "the wait after an attempt in vain is 48 h and doubles; set `cooldown_hours`",
        "max_backoff_days": "the longest wait is 90 days",
        "max_retries": "an attempt is repeated three times after a preemption or an outage",
        "alert_after_attempts": "a person is alerted after three attempts in vain",
        "alert_after_windows": "a person is alerted after ten windows without a verdict",
        "alert_after_days": "a person is alerted after 30 days without a verdict",
        "remind_days": "an alert is repeated after 30 days",
    }
    min_new_examples: int = Field(
        default=500,
        ge=1,
        description=(
            "Number of rows by which a snapshot must grow since the last training or attempt for a retrain."
        ),
    )
    drift_windows: int = Field(
        default=2,
        ge=1,
        le=3,
        description="How many of the last three windows must have confirmed drift for it to count.",
    )
    on_drift: Literal["labels_confirm", "labels_exist", "report"] = Field(
        default="labels_confirm",
        description=(
            "What a confirmed drift starts: a retrain once labels show that the champion is worse or are"
            " three times as many as needed; a retrain once there are enough labels; or nothing beside its"
            " alert."
        ),
    )
    min_new_examples_on_drift: int = Field(
        default=100,
        ge=0,
        description=(
            "With fewer new labelled examples (for drift: delivered since it began), drift or a lower score"
            " asks for labels instead of a retrain."
        ),
    )
    max_score_drop: Float = Field(
        default=0.03,
        gt=0,
        le=1,
        description="Drop of the champion's primary metric on newer test rows that calls for a retrain.",
    )
    max_age_days: Float = Field(
        default=180.0,
        gt=0,
        description="Age of the champion that calls for a retrain if there are other rows.",
    )
    cooldown_hours: Float = Field(
        default=24.0, ge=0, description="Minimum time between two automatic retrains."
    )
    max_hours_per_month: Float = Field(
        default=100.0,
        gt=0,
        description=(
            "Hours of automatic retrains in a calendar month, from plan to evaluation, above which none is"
            " started."
        ),
    )
    max_usd_per_month: Float | None = Field(
        default=None, gt=0, description="The same in US dollars, at planning.hourly_usd. Default: no limit."
    )
    schedule: str | None = Field(
        default=None,
        description=(
            "Cron by which a retrain is due as well, if there are other rows. Default: none is due by the"
            " calendar."
        ),
    )
    evaluation_schedule: str = Field(
        default="0 4 * * *", description="Cron of the periodic evaluation on the newest labelled rows."
    )


def _known(timezone: str) -> str:
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{timezone} is no time zone; such as `Europe/Berlin` or `UTC`") from None
    return timezone


class AutomationSettings(Settings):
    """Whether the use case runs by itself."""

    enabled: bool = Field(
        default=False,
        description=(
            "Whether the sensors and schedules of the use case start turned on. What a person turned on or"
            " off in the UI stays so."
        ),
    )
    timezone: Annotated[str, AfterValidator(_known)] = Field(
        default="UTC", description="Time zone of the schedules, and of the calendar month of the budget."
    )


class RetentionSettings(Settings):
    """What `fullft clean` leaves in the store."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "keep_days": "set `keep_champions`: what is older than the oldest kept champion goes",
    }

    keep_champions: int = Field(
        default=3,
        ge=1,
        le=50,
        description=(
            "Past champions that a roll-back can return to, beside the champion itself and the first one."
            " Weights and tables that are older, and that none of them needs, are removed."
        ),
    )
    schedule: str | None = Field(
        default=None,
        description="Cron of the clean-up, such as `0 5 * * 6`. Default: only when somebody asks for it.",
    )
