"""The sections `retraining` and `automation`."""

from __future__ import annotations

from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field

from fullft_assets.settings.base import Float, Settings


class RetrainingSettings(Settings):
    """When to train again, and when not to."""

    min_new_examples: int = Field(
        default=500,
        ge=1,
        description=(
            "Number of rows by which a snapshot must grow since the last training or attempt for a retrain."
        ),
    )
    min_growth: Float = Field(
        default=0.2,
        ge=0,
        le=10,
        description="The same as a share of the rows of the last training's snapshot; both must be reached.",
    )
    drift_windows: int = Field(
        default=2,
        ge=1,
        le=3,
        description="How many of the last three windows must have confirmed drift for it to count.",
    )
    drift_horizon_days: Float = Field(
        default=30.0, gt=0, description="Age from which a window no longer counts as evidence of drift."
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
    backoff_hours: Float = Field(
        default=48.0,
        gt=0,
        description=(
            "Wait after an attempt that gave no champion, or that did not end a drift; it doubles with each"
            " further one in a row."
        ),
    )
    max_backoff_days: Float = Field(default=90.0, gt=0, description="Longest such wait.")
    max_retries: int = Field(
        default=3,
        ge=0,
        le=10,
        description=(
            "Attempts in a row that are repeated after a preemption or a failure of the infrastructure."
        ),
    )
    alert_after_attempts: int = Field(
        default=3,
        ge=1,
        description=(
            "Attempts in a row without a champion (or that did not end a drift) after which a person is"
            " alerted."
        ),
    )
    alert_after_windows: int = Field(
        default=10,
        ge=1,
        description=(
            "Windows in a row without a verdict after which a person is alerted, and `production_is_seen`"
            " turns yellow."
        ),
    )
    alert_after_days: Float = Field(
        default=30.0,
        gt=0,
        description=(
            "Days without a verdict on a window, where there is a champion, after which a person is alerted."
        ),
    )
    remind_days: Float = Field(
        default=30.0,
        gt=0,
        description="Time after which an alert or a request for labels is repeated while its reason lasts.",
    )
    max_hours_per_month: Float = Field(
        default=100.0,
        gt=0,
        description=(
            "Hours of automatic runs in a calendar month above which no retrain and no periodic evaluation is"
            " started: of the model job from plan to evaluation, of periodic evaluations, of windows of"
            " production and of snapshots."
        ),
    )
    max_usd_per_month: Float | None = Field(
        default=None, gt=0, description="The same in US dollars, at planning.hourly_usd. Default: no limit."
    )
    schedule: str = Field(
        default="0 3 * * 0",
        description=(
            "Cron of the periodic retraining decision, for those who turn its schedule on and leave the"
            " sensor off."
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
            "Whether the sensors and schedules of the use case start turned on; the retraining schedule,"
            " which decides as the sensor does, does not. What a person turned on or off in the UI stays so."
        ),
    )
    timezone: Annotated[str, AfterValidator(_known)] = Field(
        default="UTC", description="Time zone of the schedules, and of the calendar month of the budget."
    )
