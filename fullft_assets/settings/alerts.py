"""The section `alerts`, and the base of each channel's settings."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field

from fullft_assets.settings.base import Float, Settings

Event = Literal[
    "run_failed",
    "gate_closed",
    "drift",
    "quality_drop",
    "feed_silent",
    "sensor_failing",
    "decision_needed",
]
EVENTS: tuple[Event, ...] = get_args(Event)


class ChannelSettings(Settings):
    """Base of each channel's settings, also of those in other packages."""

    kind: str = Field(
        default="",
        description="Registered name of the channel. Default: the name that the YAML gives this entry.",
    )


class AlertsSettings(Settings):
    """Who is notified of what happened, and how."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "events: budget": "`decision_needed` says that the month's budget holds a retrain back",
        "dagster_url": "set $FULLFT_DAGSTER_URL, the address of Dagster's UI",
        "max_per_hour": "of more than ten alerts at once a channel gets ten and a summary",
    }

    channels: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description=(
            "Channels by a name of your choice or by their registered name (`log`, `webhook`, `apprise`,"
            " `sns`, `cloudwatch`), each with its own settings. Default: none."
        ),
    )
    events: list[Event] = Field(
        default=list(EVENTS),
        description=(
            "Events that are sent: `run_failed` (after its last retry), `gate_closed` (a batch held back, a"
            " window without texts, a candidate not promoted), `drift`, `quality_drop`,"
            " `feed_silent`, `sensor_failing`, `decision_needed` (labels are asked for, jobs that no run"
            " followed were ended, or a person is needed)."
        ),
    )
    silent_hours: Float | None = Field(
        default=None,
        gt=0,
        description=(
            "Hours without a new batch (or window) after which `feed_silent` is sent. Default: never."
        ),
    )

    @property
    def dagster_url(self) -> str:
        """Address of Dagster's UI, for the links in alerts."""
        return os.environ.get("FULLFT_DAGSTER_URL", "http://localhost:3000")
