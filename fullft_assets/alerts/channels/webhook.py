"""Alerts as a POST: Slack, Teams, or JSON for a program."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import asdict
from typing import Any, ClassVar, Literal

from pydantic import Field

from fullft_assets.alerts.alert import Alert
from fullft_assets.alerts.registered import AlertError
from fullft_assets.alerts.secrets import SecretReference, read_secret
from fullft_assets.settings.alerts import ChannelSettings
from fullft_assets.settings.base import Float


class WebhookSettings(ChannelSettings):
    """Where to post, and in which form."""

    url: SecretReference = Field(
        description=(
            "Where the address is, which lets anybody post: `env:NAME` or `secret:ID` (AWS Secrets Manager)."
        )
    )
    style: Literal["json", "slack", "teams"] = Field(default="json", description="Form of the body.")
    timeout_seconds: Float = Field(default=10.0, gt=0, le=30, description="Longest wait for an answer.")


class Webhook:
    """Posts each alert to an address."""

    settings_class: ClassVar[type[ChannelSettings]] = WebhookSettings

    def __init__(self, settings: WebhookSettings):
        self.settings = settings

    def send(self, alert: Alert) -> None:
        """Post an alert; an answer other than 2xx is an error."""
        url = read_secret(self.settings.url)
        body = json.dumps(_body(alert, self.settings.style)).encode()
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=self.settings.timeout_seconds):
                pass
        except urllib.error.HTTPError as error:
            raise AlertError(f"{self.settings.url} answered {error.code} {error.reason}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            # The address is a secret, which some of these errors repeat.
            raise AlertError(f"{self.settings.url} cannot be reached ({type(error).__name__})") from None


def _body(alert: Alert, style: str) -> dict[str, Any]:
    if style == "slack":
        return {"text": alert.text}
    if style == "teams":
        block = {"type": "TextBlock", "wrap": True}
        facts = [
            block | {"text": alert.subject, "weight": "Bolder"},
            block | {"text": f"Next: {alert.action}"},
        ]
        card = {
            "type": "AdaptiveCard",
            "version": "1.4",
            "body": facts,
            "actions": [{"type": "Action.OpenUrl", "title": "Open", "url": alert.url}],
        }
        return {
            "type": "message",
            "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "content": card}],
        }
    return asdict(alert)
