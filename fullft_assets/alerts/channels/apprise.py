"""Alerts by chat, mail or paging services: what an address of apprise names, such as `slack://`,
`msteams://`, `pagerduty://` or `mailtos://`.
"""

from __future__ import annotations

import logging
from typing import ClassVar

from pydantic import Field

from fullft_assets.alerts.alert import Alert
from fullft_assets.alerts.registered import AlertError
from fullft_assets.alerts.secrets import SecretReference, read_secret
from fullft_assets.errors import SettingsError
from fullft_assets.extras import require
from fullft_assets.settings.alerts import ChannelSettings


class AppriseSettings(ChannelSettings):
    """The service, as an address of apprise."""

    url: SecretReference = Field(
        description=(
            "Where the service's address is, which has its token or password: `env:NAME` or `secret:ID` (AWS"
            " Secrets Manager). github.com/caronc/apprise lists the services."
        )
    )


class Apprise:
    """Sends each alert to a service."""

    settings_class: ClassVar[type[ChannelSettings]] = AppriseSettings

    def __init__(self, settings: AppriseSettings):
        require("apprise", "the channel")
        self.settings = settings

    def send(self, alert: Alert) -> None:
        """Send an alert."""
        import apprise

        # Its messages may have the address.
        logging.getLogger("apprise").disabled = True
        service = apprise.Apprise()
        if not service.add(read_secret(self.settings.url)):
            raise SettingsError(f"{self.settings.url} is no address of a service that apprise knows")
        if not service.notify(title=" ".join(alert.subject.split()), body=alert.text, body_format="text"):
            raise AlertError(f"{self.settings.url}: the service did not take the message")
