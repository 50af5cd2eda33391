"""The section `retention`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from fullft_assets.settings.base import Settings


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
