"""The registered channels: ours and those of other packages, by the names that a YAML gives them.

Another package registers a class with the protocol `Channel`:

    [project.entry-points."fullft_assets.alerts"]
    pager = "their_package.pager:Pager"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

from pydantic import ValidationError

from fullft_assets.alerts.alert import Alert
from fullft_assets.errors import FullftError, SettingsError
from fullft_assets.registry import Registry
from fullft_assets.settings.alerts import AlertsSettings, ChannelSettings


class AlertError(FullftError):
    """An alert that could not be delivered; it is tried again."""


class Channel(Protocol):
    """A way to reach people. It is made from an instance of its `settings_class`."""

    settings_class: ClassVar[type[ChannelSettings]]

    def __init__(self, settings: Any) -> None: ...

    def send(self, alert: Alert) -> None:
        """Deliver an alert, or raise `AlertError` with one line that has no secret in it."""
        ...


CHANNELS: Registry[type[Channel]] = Registry(
    "alert channel",
    "fullft_assets.alerts",
    {
        "log": "fullft_assets.alerts.channels.log:Log",
        "webhook": "fullft_assets.alerts.channels.webhook:Webhook",
        "apprise": "fullft_assets.alerts.channels.apprise:Apprise",
        "sns": "fullft_assets.alerts.channels.aws:Sns",
        "cloudwatch": "fullft_assets.alerts.channels.aws:CloudWatch",
        "prometheus": "fullft_assets.alerts.channels.prometheus:Prometheus",
    },
)


#: Channels of earlier releases, with what to do instead.
_REMOVED = {"email": "use `apprise` with an address `mailtos://...`"}


def open_channels(settings: AlertsSettings) -> dict[str, Channel]:
    """Return the channels of a use case by their names in the YAML.

    Raises:
        SettingsError: a channel has a problem; see `channel_problems`.
    """
    for name, message in channel_problems(settings):
        raise SettingsError(f"alerts.channels.{name}: {message}")
    return {name: _open(name, section) for name, section in settings.channels.items()}


def channel_problems(settings: AlertsSettings) -> Iterator[tuple[str, str]]:
    """Yield (name, message) for each channel that is not registered or does not have the given settings."""
    for name, section in settings.channels.items():
        try:
            _open(name, section)
        except SettingsError as error:
            yield name, str(error)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            yield name, f"{'.'.join(map(str, first['loc'])) or name}: {first['msg']}"


def _open(name: str, section: Mapping[str, Any]) -> Channel:
    kind = section.get("kind") or name
    if kind in _REMOVED and kind not in CHANNELS:
        raise SettingsError(f"the channel `{kind}` was removed; {_REMOVED[kind]}")
    channel = CHANNELS.get(kind)
    return channel(channel.settings_class.model_validate(section))
