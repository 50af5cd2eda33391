"""Alerts, the channels that they are sent through, and their delivery: each alert reaches each channel
once, as a ledger in the store remembers which ones did.

Another package registers a class with the protocol `Channel`:

    [project.entry-points."fullft_assets.alerts"]
    pager = "their_package.pager:Pager"
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ValidationError

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


@runtime_checkable
class Meter(Protocol):
    """A channel that keeps key figures as well."""

    def measure(self, use_case: str, figures: Mapping[str, float]) -> None:
        """Keep the figures of a use case by name, or raise `AlertError`."""


CHANNELS: Registry[type[Channel]] = Registry(
    "alert channel",
    "fullft_assets.alerts",
    {
        "log": "fullft_assets.alerts.channels:Log",
        "webhook": "fullft_assets.alerts.channels:Webhook",
        "apprise": "fullft_assets.alerts.channels:Apprise",
        "sns": "fullft_assets.alerts.channels:Sns",
        "cloudwatch": "fullft_assets.alerts.channels:CloudWatch",
    },
)


#: Channels of earlier releases, with what to do instead.
_REMOVED = {
    "email": "use `apprise` with an address `mailtos://...`",
    "prometheus": "use `webhook`, or a channel of your own package that counts alerts",
}


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


#: Maximum number of alerts that a channel gets at once; a summary replaces the others.
_MAX_AT_ONCE = 10
#: How long an alert is remembered. Its run or window is looked at for a far shorter time.
_REMEMBERED_SECONDS = 90 * 24 * 3600.0


@dataclass
class Delivery:
    """What a delivery did: alerts sent by channel, one line for each channel that failed, and what else a
    person should know.
    """

    sent: dict[str, list[Alert]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _ChannelLedger(BaseModel):
    """When a channel took each alert (seconds since the epoch), by its key."""

    alerts: dict[str, float] = {}


class _Ledger(BaseModel):
    channels: dict[str, _ChannelLedger] = {}


def deliver(
    store: Store,
    use_case: str,
    alerts: Iterable[Alert],
    channels: Mapping[str, Channel],
    settings: AlertsSettings,
    now: float,
) -> Delivery:
    """Send each alert to each channel that does not have it yet.

    If there are more than ten at once, the others are sent as one summary. An alert is remembered as soon as
    a channel took it, so that a killed delivery repeats at most that one. A channel that fails, however it
    does, is tried again with the next delivery, and does not keep the others from theirs.

    Args:
        now: seconds since the epoch.
    """
    pointer = f"{use_case}/alerts"
    delivery = Delivery()
    try:
        ledger = _Ledger.model_validate(store.read_pointer(pointer) or {})
    except ValueError:  # JSON that is cut off
        ledger = _Ledger()
        delivery.notes.append(
            f"the ledger {pointer}.json could not be read and begins anew: what lasts is sent once more"
        )
        store.write_pointer(pointer, ledger.model_dump(mode="json"))
    selected_alerts = {alert.key: alert for alert in alerts if alert.event in settings.events}
    for channel_name, channel in channels.items():
        channel_ledger = ledger.channels.setdefault(channel_name, _ChannelLedger())
        channel_ledger.alerts = {
            key: at for key, at in channel_ledger.alerts.items() if now - at < _REMEMBERED_SECONDS
        }
        due = [alert for key, alert in selected_alerts.items() if key not in channel_ledger.alerts]
        # Failed runs come last, where a summary may replace them.
        due.sort(key=lambda alert: alert.event == "run_failed")
        batches = [[alert] for alert in due[:_MAX_AT_ONCE]]
        if more := due[_MAX_AT_ONCE:]:
            batches.append(more)
        try:
            for batch in batches:
                alert = batch[0] if len(batch) == 1 else _summary(use_case, batch, settings, now)
                try:
                    channel.send(alert)
                except (AlertError, SettingsError):
                    raise
                except Exception as error:
                    # Without its message, which may have a secret: the channel did not foresee it.
                    raise AlertError(f"a fault of the channel: {without_message(error)}") from None
                channel_ledger.alerts |= {alert.key: now for alert in batch}
                delivery.sent.setdefault(channel_name, []).append(alert)
                store.write_pointer(pointer, ledger.model_dump(mode="json"))
        except (AlertError, SettingsError) as error:
            delivery.failures.append(f"alerts.channels.{channel_name}: {error}")
    return delivery


def _summary(use_case: str, alerts: Sequence[Alert], settings: AlertsSettings, now: float) -> Alert:
    counts = Counter[Event](alert.event for alert in alerts)
    counts_in_words = ", ".join(f"{count} {event}" for event, count in sorted(counts.items()))
    return Alert(
        event=max(counts, key=counts.__getitem__),
        use_case=use_case,
        key=f"summary/{now:.0f}",
        title=f"{len(alerts)} more alerts: {counts_in_words}",
        action="open Dagster's UI; each of them is shown there",
        url=f"{settings.dagster_url.rstrip('/')}/runs",
        at=now,
    )
