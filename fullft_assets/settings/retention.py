"""The section `retention`."""

from __future__ import annotations

from pydantic import Field

from fullft_assets.settings.base import Float, Settings


class RetentionSettings(Settings):
    """What `fullft clean` leaves in the store."""

    keep_champions: int = Field(
        default=3,
        ge=1,
        le=50,
        description=(
            "Past champions that a roll-back can return to, beside the champion itself and the first one. All"
            " that they were made from stays."
        ),
    )
    keep_days: Float = Field(
        default=90.0, ge=1, description="Age from which what nothing in use was made from is removed."
    )
    schedule: str | None = Field(
        default=None,
        description="Cron of the clean-up, such as `0 5 * * 6`. Default: only when somebody asks for it.",
    )
