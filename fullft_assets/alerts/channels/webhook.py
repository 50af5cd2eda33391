"""Alerts as a POST of JSON, for a program."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict
from typing import ClassVar

from pydantic import Field

from fullft_assets.alerts.alert import Alert
from fullft_assets.alerts.registered import AlertError
from fullft_assets.alerts.secrets import SecretReference, read_secret
from fullft_assets.settings.alerts import ChannelSettings

_TIMEOUT_SECONDS = 10.0


class WebhookSettings(ChannelSettings):
    """Where to post."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "style": "use a channel `apprise` for Slack, Teams and other services",
        "timeout_seconds": "an answer is waited for 10 seconds",
    }
    url: SecretReference = Field(
        description=(
            "Where the address is, which lets anybody post: `env:NAME` or `secret:ID` (AWS Secrets Manager)."
        )
    )


class Webhook:
    """Posts each alert to an address."""

    settings_class: ClassVar[type[ChannelSettings]] = WebhookSettings

    def __init__(self, settings: WebhookSettings):
        self.settings = settings

    def send(self, alert: Alert) -> None:
        """Post an alert; an answer other than 2xx is an error."""
        url = read_secret(self.settings.url)
        body = json.dumps(asdict(alert)).encode()
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):
                pass
        except urllib.error.HTTPError as error:
            raise AlertError(f"{self.settings.url} answered {error.code} {error.reason}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            # The address is a secret, which some of these errors repeat.
            raise AlertError(f"{self.settings.url} cannot be reached ({type(error).__name__})") from None
