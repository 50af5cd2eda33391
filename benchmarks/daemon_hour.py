"""An hour of a daemon on a small use case: deliveries, a held batch, an empty window, a drift, a label round,
a cancelled retrain.

`python -m benchmarks.daemon_hour FOLDER [--minutes 60]` makes the project of `fullft tour` in a new folder,
with its first model, runs `dagster dev` with all sensors on for so long, and prints each alert that should
have come and each that came. It exits with 1 if one is false or missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from fullft_assets.automation.runs import REASONS_TAG
from fullft_assets.checking.validation import load_use_case
from fullft_assets.cli.export import export
from fullft_assets.cli.follower import Terminal
from fullft_assets.cli.tour import _alerts_received, _Services, _services
from fullft_assets.demos import licences
from fullft_assets.demos.tour import CASE, WEBHOOK, TourProject
from fullft_assets.monitoring import DriftMetadata
from fullft_assets.resources import latest_by_partition
from fullft_assets.store import Store

#: Longest wait for what an event leads to, and time between two looks.
_STEP_SECONDS, _LOOK_SECONDS = 1_200.0, 2.0
#: What follows the last event may take so long.
_QUIET_SECONDS = 180.0


@dataclass
class Expected:
    """An alert that should come: of which event, with what in its title, since when, and when it came."""

    because: str
    event: str
    title: str
    since: float
    came_at: float | None = None


class Hour:
    """The events, and which alerts they lead to."""

    def __init__(
        self, project: TourProject, services: _Services, received: list[dict[str, Any]], terminal: Terminal
    ):
        self.project, self.services, self.received, self.terminal = project, services, received, terminal
        self.store, self.expected = Store(str(project.home / "store")), list[Expected]()
        self.kinds = {rule["id"]: rule["kind"] for rule in licences.rules()}
        self.came: list[tuple[float, dict[str, Any]]] = []

    def expect(self, because: str, event: str, title: str) -> None:
        """Note an alert that should come from now on."""
        self.terminal.line(f"EVENT: {because}; expected: {event} ({title})")
        self.expected.append(Expected(because, event, title, time.monotonic()))

    def wait(self, what: str, find: Callable[[], Any]) -> Any:
        """Return what is found as soon as it is there, and the alerts are read meanwhile."""
        deadline = time.monotonic() + _STEP_SECONDS
        while not (found := find()):
            self.services.require_alive()
            self.look()
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {_STEP_SECONDS:.0f} s: {what}")
            time.sleep(_LOOK_SECONDS)
        return found

    def look(self) -> None:
        """Match the alerts that came since the last look with the expected ones."""
        for alert in self.received[len(self.came) :]:
            self.came.append((time.monotonic(), alert))
            matching = (each for each in self.expected if each.came_at is None)
            for each in matching:
                if each.event == alert["event"] and each.title in alert["title"]:
                    each.came_at = time.monotonic()
                    alert["expected"] = each
                    break

    def statuses(self) -> list[str]:
        """Return the verdicts on the windows, oldest first."""
        return [
            DriftMetadata.of(report).status
            for _, report in sorted(latest_by_partition(self.store, CASE, "drift_report").items())
        ]

    def live(self, instance: dg.DagsterInstance, seconds: float) -> None:
        """Let the events happen, and wait for the rest of the time."""
        until = time.monotonic() + seconds
        rules = [{**rule} for rule in licences.rules()]

        def ingested() -> int:
            return len(self.store.list_pointers(f"latest/{CASE}/labeled_examples"))

        before = ingested()
        self.terminal.line("EVENT: 30 labelled documents are delivered; expected: nothing")
        self.project._deliver("documents", "usual.jsonl", rules[100:130])
        self.wait("they are ingested", lambda: ingested() > before)
        self.expect("a batch of documents without a label", "gate_closed", "is held back")
        self.project._deliver(
            "documents", "unlabelled.jsonl", [{**rule, "kind": ""} for rule in rules[200:240]]
        )
        self.wait("it is held back", lambda: ingested() > before + 1)
        self.expect("a window without texts", "gate_closed", "has no text")
        self.project._deliver(
            "production", "window-000-empty.jsonl", [{"id": f"e{number}", "text": ""} for number in range(60)]
        )
        self.wait("it is read", lambda: "feed_broken" in self.statuses())
        self.expect("windows of other documents", "drift", "drifted")
        self.expect("a drift without labels", "decision_needed", "labels are asked for")
        self.project.send_other_documents()
        self.wait("labels are asked for", lambda: all(each.came_at for each in self.expected))
        self._label_round()
        self.wait("a retrain is launched and works", lambda: self._retrain(instance).get("STARTED"))
        self.terminal.line("EVENT: a person cancels the retrain; expected: nothing")
        instance.run_coordinator.cancel_run(self._retrain(instance)["STARTED"])
        self.wait("it ends", lambda: self._retrain(instance).get("CANCELED"))
        until = max(until, time.monotonic() + _QUIET_SECONDS)
        while time.monotonic() < until:
            self.services.require_alive()
            self.look()
            time.sleep(_LOOK_SECONDS)
        self.look()

    def _label_round(self) -> None:
        self.expect(
            "a random sample of production is labelled",
            "quality_drop",
            "lower on labelled production documents",
        )
        out = self.project.root / "sample.jsonl"
        use_case = load_use_case(self.project.defs / CASE / "defs.yaml")
        export(use_case, self.store, out, format_name="jsonl", most=300, num_windows=6, at_random=True)
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        self.project._deliver(
            "documents", "sample.jsonl", [{**row, "kind": self.kinds[row["id"]]} for row in rows]
        )

    def _retrain(self, instance: dg.DagsterInstance) -> dict[str, str]:
        """Return the newest automatic retrain: its id by its status."""
        runs = instance.get_runs(dg.RunsFilter(job_name=f"{CASE}_model"))
        return next(({run.status.value: run.run_id} for run in runs if REASONS_TAG in run.tags), {})

    def table(self) -> Iterator[str]:
        """Yield the lines of the table: what was expected, then what came and was not."""
        yield "| because of | alert | title | seconds |"
        yield "|---|---|---|---|"
        for each in self.expected:
            came = "**missing**" if each.came_at is None else f"{each.came_at - each.since:.0f}"
            yield f"| {each.because} | {each.event} | {each.title} | {came} |"
        for _, alert in self.came:
            if "expected" not in alert:
                yield f"| nothing | {alert['event']} | {alert['title']} | **false** |"

    @property
    def is_right(self) -> bool:
        """Whether no alert is false or missing."""
        return all(each.came_at for each in self.expected) and all(
            "expected" in alert for _, alert in self.came
        )


def main() -> int:
    """Live the hour; return 1 if an alert was false or missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0, help="with the sensors on (default: 60)")
    chosen = parser.parse_args()
    project, terminal = TourProject(chosen.folder.resolve()), Terminal(sys.stdout)
    project.write()
    with (
        _alerts_received(terminal) as (webhook, received),
        _services(project, {WEBHOOK: webhook}) as services,
    ):
        services.fullft_run()
        hour = Hour(project, services, received, terminal)
        services.turn_sensors_on()
        try:
            with dg.DagsterInstance.from_config(str(project.home)) as instance:
                hour.live(instance, 60 * chosen.minutes)
        finally:
            print("\n".join(hour.table()), flush=True)
    return 0 if hour.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
