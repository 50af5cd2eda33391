"""Alerts in the log of the daemon."""

from __future__ import annotations

import logging
from typing import ClassVar

from fullft_assets.alerts.alert import Alert
from fullft_assets.settings.alerts import ChannelSettings

_LOGGER = logging.getLogger("fullft_assets.alerts")


class Log:
    """Writes each alert as a warning of the logger `fullft_assets.alerts`."""

    settings_class: ClassVar[type[ChannelSettings]] = ChannelSettings

    def __init__(self, settings: ChannelSettings):
        self.settings = settings

    def send(self, alert: Alert) -> None:
        """Log an alert."""
        _LOGGER.warning("%s", alert.text)
