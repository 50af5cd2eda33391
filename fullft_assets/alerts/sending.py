"""Each alert reaches each channel once: a ledger in the store remembers which ones did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from fullft_assets.alerts.alert import Alert
from fullft_assets.alerts.registered import AlertError, Channel
from fullft_assets.errors import SettingsError, without_message
from fullft_assets.settings.alerts import AlertsSettings, Event
from fullft_assets.store import Store

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
    listed, number = (
        ", ".join(f"{count} {event}" for event, count in sorted(counted.items())),
        sum(counted.values()),
    )
    return Alert(
        event=max(counted, key=lambda event: counted[event]),
        use_case=use_case,
        key=f"summary/{now:.0f}",
        title=f"{number} more alert{'' if number == 1 else 's'} within an hour: {listed}",
        action="open Dagster's UI; each of them is shown there",
        url=f"{settings.dagster_url.rstrip('/')}/runs",
        at=now,
    )
