"""One thing that happened and that somebody should know."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from fullft_assets.settings.alerts import Event


@dataclass(frozen=True)
class Alert:
    """One thing that happened.

    Attributes:
        key: identity of what happened (such as an event and a run id): the same key is sent to a channel
            once.
        title: what happened, in one line, without the content of any document.
        action: what to do next.
        url: page of Dagster's UI that shows it.
        at: when it happened, in seconds since the epoch.
    """

    event: Event
    use_case: str
    key: str
    title: str
    action: str
    url: str
    at: float

    @property
    def subject(self) -> str:
        """The use case and what happened, in one line."""
        return f"[{self.use_case}] {self.title}"

    @property
    def text(self) -> str:
        """The whole alert as plain text."""
        when = datetime.fromtimestamp(self.at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        return f"{self.subject}\n{when}, event {self.event}\nNext: {self.action}\n{self.url}"
