"""The sections `retraining`, `automation` and `retention`."""

from collections.abc import Mapping
from typing import Annotated, ClassVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field

from fullft_assets.settings.base import Float, Settings


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
    min_new_examples_on_drift: int = Field(
        default=100,
        ge=0,
        description=(
            "With fewer new labelled examples (for drift: delivered since it began), drift or a lower score"
            " asks for labels instead of a retrain. A drift needs three times as many if they do not show"
            " that the champion is worse."
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
