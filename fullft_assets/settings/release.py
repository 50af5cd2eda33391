"""The section `release`."""

from __future__ import annotations

from pydantic import Field

from fullft_assets.settings.base import Float, Settings


class ReleaseSettings(Settings):
    """What a candidate must show to become champion."""

    min_gain_over_baselines: Float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="The lower end of the confidence interval of the gain over the best baseline must exceed this.",
    )
    min_gain_over_champion: Float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="The estimated gain over the champion must exceed this, and its interval must not be entirely negative.",
    )
    min_score: Float = Field(default=0.0, ge=0, le=1, description="The primary metric must be at least this.")
    max_calibration_error: Float | None = Field(
        default=None, gt=0, le=1, description="Maximum expected calibration error. Default: no gate."
    )
