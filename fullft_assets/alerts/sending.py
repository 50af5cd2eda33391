"""Each alert reaches each channel once: a ledger in the store remembers which ones did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fullft_assets.alerts.alert import Alert
from fullft_assets.alerts.registered import AlertError, Channel
from fullft_assets.errors import SettingsError
from fullft_assets.settings.alerts import AlertsSettings
from fullft_assets.store import Store

_HOUR_SECONDS = 3600.0
#: An alert is found again for as long as its run or window is looked at, which is far shorter.
_REMEMBERED_SECONDS = 90 * 24 * _HOUR_SECONDS


@dataclass
class Delivery:
    """What a delivery did: alerts sent by channel, and one line for each channel that failed."""

    sent: dict[str, list[Alert]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def deliver(
    store: Store, use_case: str, alerts: Iterable[Alert], channels: Mapping[str, Channel], settings: AlertsSettings, now: float
) -> Delivery:
    """Send each alert to each channel that does not have it yet; beyond `alerts.max_per_hour` one summary is sent for the rest.

    An alert is remembered as soon as a channel took it, so that a killed delivery repeats at most that one. A channel that fails is
    tried again with the next delivery, and does not keep the others from theirs.

    Args:
        now: seconds since the epoch.
    """
    name = f"{use_case}/alerts"
    ledger: dict[str, dict[str, float]] = (store.read_pointer(name) or {}).get("sent", {})
    chosen = [alert for alert in alerts if alert.event in settings.events]
    delivery = Delivery()
    for channel_name, channel in channels.items():
        sent = {key: at for key, at in ledger.get(channel_name, {}).items() if now - at < _REMEMBERED_SECONDS}
        due = [alert for alert in chosen if alert.key not in sent]
        room = max(0, settings.max_per_hour - sum(now - at < _HOUR_SECONDS for at in sent.values()))
        try:
            for alert in due[:room]:
                channel.send(alert)
                sent[alert.key] = now
                delivery.sent.setdefault(channel_name, []).append(alert)
                store.write_pointer(name, {"sent": {**ledger, channel_name: sent}})
            if rest := due[room:]:
                channel.send(_summary(rest))
                sent |= {alert.key: now for alert in rest}
                store.write_pointer(name, {"sent": {**ledger, channel_name: sent}})
        except (AlertError, SettingsError) as error:
            delivery.failures.append(f"alerts.channels.{channel_name}: {error}")
        ledger = {**ledger, channel_name: sent}
    return delivery


def _summary(rest: list[Alert]) -> Alert:
    counts = {event: sum(alert.event == event for alert in rest) for event in sorted({alert.event for alert in rest})}
    listed = ", ".join(f"{count} {event}" for event, count in counts.items())
    return replace(
        rest[-1],
        key=f"summary/{rest[-1].key}",
        title=f"{len(rest)} more alerts within an hour: {listed}",
        action="open Dagster's UI; each of them is shown there (alerts.max_per_hour)",
    )
