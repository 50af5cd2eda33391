"""Alerts as counters in a text file, which Prometheus' node exporter reads (textfile collector)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from fullft_assets.alerts.alert import Alert
from fullft_assets.alerts.registered import AlertError
from fullft_assets.settings.alerts import ChannelSettings
from fullft_assets.store.disk import replace_synced

_METRIC = "fullft_alerts_total"
_LINE = re.compile(rf'^{_METRIC}{{use_case="([^"]*)",event="([^"]*)"}} (\d+)$')
_HEADER = f"# HELP {_METRIC} Alerts sent.\n# TYPE {_METRIC} counter\n"


class PrometheusSettings(ChannelSettings):
    """The file that is read."""

    path: str = Field(
        pattern=r"\.prom$",
        description="File in the collector's folder, such as /var/lib/node_exporter/fullft.prom.",
    )


class Prometheus:
    """Counts each alert in the file."""

    settings_class: ClassVar[type[ChannelSettings]] = PrometheusSettings

    def __init__(self, settings: PrometheusSettings):
        self.path = Path(settings.path)

    def send(self, alert: Alert) -> None:
        """Count an alert; the file is replaced at once."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
            counters = [match.groups() for match in map(_LINE.match, lines) if match]
            counts = {(use_case, event): int(count) for use_case, event, count in counters}
            key = (alert.use_case, alert.event)
            counts[key] = counts.get(key, 0) + 1
            text = "".join(
                f'{_METRIC}{{use_case="{case}",event="{event}"}} {count}\n'
                for (case, event), count in sorted(counts.items())
            )
            replace_synced(self.path, (_HEADER + text).encode())
        except OSError as error:
            raise AlertError(f"{self.path} cannot be written ({error.strerror})") from error
