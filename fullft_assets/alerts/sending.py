"""Alerts, the channels that they are sent through, and their delivery: each alert reaches each channel
once, as a ledger in the store remembers which ones did.

Another package registers a class with the protocol `Channel`:

    [project.entry-points."fullft_assets.alerts"]
    pager = "their_package.pager:Pager"
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from fullft_assets.errors import FullftError, SettingsError, without_message
from fullft_assets.registry import Registry
from fullft_assets.settings.alerts import AlertsSettings, ChannelSettings, Event
from fullft_assets.store import Store


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
        "log": "fullft_assets.alerts.channels:Log",
        "webhook": "fullft_assets.alerts.channels:Webhook",
        "apprise": "fullft_assets.alerts.channels:Apprise",
        "sns": "fullft_assets.alerts.channels:Sns",
        "cloudwatch": "fullft_assets.alerts.channels:CloudWatch",
        "prometheus": "fullft_assets.alerts.channels:Prometheus",
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


_HOUR_SECONDS = 3600.0
#: Maximum number of alerts in one hour to each channel.
_MAX_PER_HOUR = 20
#: An alert is found again for as long as its run or window is looked at, which is far shorter.
_REMEMBERED_SECONDS = 90 * 24 * _HOUR_SECONDS


@dataclass
class Delivery:
    """What a delivery did: alerts sent by channel, one line for each channel that failed, and what else a
    person should know.
    """

    sent: dict[str, list[Alert]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Taken(_Value):
    """What a channel took; times in seconds since the epoch.

    Attributes:
        alerts: when each was sent or counted, by its key.
        posts: when the alerts of the last hour were sent.
        counted: alerts that the next summary counts, by event.
        summary_at: when the last summary was sent.
    """

    alerts: dict[str, float] = {}
    posts: list[float] = []
    counted: dict[Event, int] = {}
    summary_at: float | None = None

    def forget(self, now: float) -> None:
        """Forget what is old; what a wrong clock has dated in the future must not count until then."""
        self.alerts = {key: min(at, now) for key, at in self.alerts.items() if now - at < _REMEMBERED_SECONDS}
        self.posts = [at for at in self.posts if 0 <= now - at < _HOUR_SECONDS]
        if self.summary_at is not None and not 0 <= now - self.summary_at < _HOUR_SECONDS:
            self.summary_at = None


class _Ledger(_Value):
    channels: dict[str, _Taken] = {}


def deliver(
    store: Store,
    use_case: str,
    alerts: Iterable[Alert],
    channels: Mapping[str, Channel],
    settings: AlertsSettings,
    now: float,
) -> Delivery:
    """Send each alert to each channel that does not have it yet.

    Beyond 20 in an hour the rest is counted, and sent as one summary an hour. An alert is remembered
    as soon as a channel took it, so that a killed delivery repeats at most that one. A channel that fails,
    however it does, is tried again with the next delivery, and does not keep the others from theirs.

    Args:
        now: seconds since the epoch.
    """
    name, delivery = f"{use_case}/alerts", Delivery()
    try:
        ledger = _Ledger.model_validate(store.read_pointer(name) or {})
    except ValueError:  # JSON that is cut off, or has other keys
        ledger = _Ledger()
        delivery.notes.append(
            f"the ledger {name}.json could not be read and begins anew: what lasts is sent once more"
        )
        store.write_pointer(name, ledger.model_dump(mode="json"))
    chosen = {alert.key: alert for alert in alerts if alert.event in settings.events}
    for channel_name, channel in channels.items():
        taken = ledger.channels.setdefault(channel_name, _Taken())
        taken.forget(now)
        due = [alert for key, alert in chosen.items() if key not in taken.alerts]
        room = max(0, _MAX_PER_HOUR - len(taken.posts))
        try:
            for alert in due[:room]:
                _send(channel, alert)
                taken.alerts[alert.key] = now
                taken.posts.append(now)
                delivery.sent.setdefault(channel_name, []).append(alert)
                store.write_pointer(name, ledger.model_dump(mode="json"))
            if rest := due[room:]:
                taken.alerts |= {alert.key: now for alert in rest}
                taken.counted = dict(
                    Counter[Event](taken.counted) + Counter[Event](alert.event for alert in rest)
                )
                store.write_pointer(name, ledger.model_dump(mode="json"))
            if taken.counted and taken.summary_at is None:
                _send(channel, _summary(use_case, taken.counted, settings, now))
                taken.counted, taken.summary_at = {}, now
                store.write_pointer(name, ledger.model_dump(mode="json"))
        except (AlertError, SettingsError) as error:
            delivery.failures.append(f"alerts.channels.{channel_name}: {error}")
    return delivery


def _send(channel: Channel, alert: Alert) -> None:
    """Send an alert; an error that the channel did not foresee becomes an `AlertError` without its message,
    which may have a secret.
    """
    try:
        channel.send(alert)
    except (AlertError, SettingsError):
        raise
    except Exception as error:
        raise AlertError(f"a fault of the channel: {without_message(error)}") from None


def _summary(use_case: str, counted: Mapping[Event, int], settings: AlertsSettings, now: float) -> Alert:
    listed = ", ".join(f"{count} {event}" for event, count in sorted(counted.items()))
    number = sum(counted.values())
    return Alert(
        event=max(counted, key=lambda event: counted[event]),
        use_case=use_case,
        key=f"summary/{now:.0f}",
        title=f"{number} more alert{'' if number == 1 else 's'} within an hour: {listed}",
        action="open Dagster's UI; each of them is shown there",
        url=f"{settings.dagster_url.rstrip('/')}/runs",
        at=now,
    )
