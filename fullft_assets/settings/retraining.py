"""The section `retraining`."""

from __future__ import annotations

from pydantic import Field

from fullft_assets.settings.base import Float, Settings


class RetrainingSettings(Settings):
    """When to train again, and when not to."""

    min_new_examples: int = Field(
        default=1_000, ge=1, description="Number of new valid examples since the last snapshot that calls for a retrain."
    )
    drift_windows: int = Field(default=2, ge=1, description="Number of consecutive drifted windows that calls for a retrain.")
    min_new_examples_on_drift: int = Field(
        default=100, ge=0, description="With fewer new labelled examples, drift or a lower score asks for labels instead of a retrain."
    )
    max_score_drop: Float = Field(
        default=0.03, gt=0, le=1, description="Drop of the champion's primary metric on newer test rows that calls for a retrain."
    )
    max_age_days: Float = Field(default=180.0, gt=0, description="Age of the champion at which the schedule retrains.")
    cooldown_hours: Float = Field(default=24.0, ge=0, description="Minimum time between two automatic retrains.")
    max_hours_per_month: Float = Field(default=100.0, gt=0, description="Maximum training hours of automatic retrains in 30 days.")
    schedule: str = Field(default="0 3 * * 0", description="Cron of the periodic retraining decision.")
    evaluation_schedule: str = Field(default="0 4 * * *", description="Cron of the periodic evaluation on the newest labelled rows.")
