"""`fullft tour`: the whole loop on a small use case with Dagster's UI open, said step by step.

Documents arrive, a window drifts, the policy asks for labels, the labels arrive, its sensor launches a
training, and alerts are received.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import psutil

from fullft_assets import release
from fullft_assets.artifacts import DRIFT_REPORT, EVALUATION_REPORT
from fullft_assets.automation.decision import entries_since
from fullft_assets.automation.runs import REASONS_TAG
from fullft_assets.cli.follower import Terminal
from fullft_assets.demos.tour import (
    CASE,
    NUM_DRIFTED,
    NUM_LABELLED,
    NUM_NEW_LABELLED,
    NUM_USUAL,
    WEBHOOK,
    WINDOW_ROWS,
    TourProject,
)
from fullft_assets.errors import FullftError
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.extras import require
from fullft_assets.launch.contract import adopt_orphans
from fullft_assets.launch.supervisor import is_alive, kill_until_gone
from fullft_assets.monitoring import DriftMetadata
from fullft_assets.resources import latest, latest_by_partition
from fullft_assets.store import Store

#: Longest wait for one thing to happen: many times what it takes on two idle cores.
_STEP_SECONDS = 1_800.0
_POLL_SECONDS = 0.5
#: How long the services may take to end by themselves.
_STOP_SECONDS = 20.0
_MODEL_JOB = f"{CASE}_model"
T = TypeVar("T")


def tour(folder: Path) -> int:
    """Give the tour in a folder that is not there yet; return the exit status for the shell. No process is
    left, however it ends.
    """
    project = TourProject(folder.resolve())
    terminal = Terminal(sys.stdout)
    # A closed terminal or a plain `kill` stops the services as Ctrl-C does; a shell's background job begins
    # with Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    project.write()
    try:
        with (
            _alerts_received(terminal) as (webhook, alerts),
            _services(project, {WEBHOOK: webhook}) as services,
        ):
            _Tour(project, services, alerts, terminal.line, Store(str(project.home / "store"))).give()
            if sys.stdin.isatty():
                input("\nThe UI stays open until you press Enter. ")
        return 0
    except KeyboardInterrupt:
        print("\nThe tour was stopped.", file=sys.stderr)
        return 130
    finally:
        terminal.line(f"No process of the tour is left. To remove it: rm -r {project.root}")


@dataclass
class _Tour:
    project: TourProject
    services: "_Services"
    alerts: list[dict[str, Any]]
    say: Callable[[str], None]
    store: Store
    num_steps: int = 0

    def give(self) -> None:
        url = self.services.url
        decisions = f"{url}/assets/{CASE}/retraining_decisions"
        self.say(f"Dagster's UI is open: {url}")
        self._step(
            f"{NUM_LABELLED} labelled documents are there. `fullft run {CASE}` makes the first model of"
            " them.",
            f"{url}/locations/tour_project/asset-groups/{CASE}/lineage",
        )
        self.services.fullft_run()
        self.say(self._release_ended(None))
        self._step(
            f"{NUM_USUAL} windows of {WINDOW_ROWS} production documents were read: later ones are compared"
            " with them.",
            f"{url}/assets/{CASE}/drift_report",
        )
        self.say(f"their verdicts: {self._verdicts()}")
        first = latest(self.store, CASE, EVALUATION_REPORT)

        self.services.turn_sensors_on()
        self.project.send_other_documents()
        self._step(
            f"The sensors are on. {NUM_DRIFTED} windows of packages' tags arrive: production changes.",
            f"{url}/automation",
        )
        self._wait("a window drifts for sure", lambda: "confirmed" in self._verdicts())
        self.say(f"the verdicts now: {self._verdicts()}")

        self._step(
            "The policy decides. There is nothing to learn the change from, so it asks for labels.", decisions
        )
        decision = self._wait(
            "labels are asked for",
            lambda: next(
                (
                    entry.decision
                    for _, entry in entries_since(self.store, CASE, 0.0)
                    if entry.decision.action == "request_labels"
                ),
                None,
            ),
        )
        self.say(f"decision: {decision.action}: {'; '.join(decision.reasons)}")

        self.project.send_labels()
        self._step(
            f"{NUM_NEW_LABELLED} labelled tags arrive. A snapshot counts what of them is new, then it"
            " decides.",
            decisions,
        )
        with dg.DagsterInstance.from_config(str(self.project.home)) as instance:
            of_model = dg.RunsFilter(job_name=_MODEL_JOB)
            run = self._wait(
                "a training is launched",
                lambda: next((run for run in instance.get_runs(of_model) if REASONS_TAG in run.tags), None),
            )
            self.say(f"decision: retrain: {run.tags[REASONS_TAG]}")
            self._step(
                "The sensor launched a training. It is judged against the champion.",
                f"{url}/runs/{run.run_id}",
            )
            self._wait(
                "the training ends",
                lambda: (now := instance.get_run_by_id(run.run_id)) is not None and now.is_finished,
            )
        self.say(self._release_ended(first.ref if first else None))

        self._step("Alerts go to a webhook, here a small server in this terminal.", f"{url}/automation")
        self._wait(
            "alerts are received",
            lambda: {"drift", "decision_needed"} <= {alert["event"] for alert in self.alerts},
        )
        self.say(
            "That was the loop: documents -> window -> alarm -> decision -> labels -> run -> release ->"
            " alert."
        )

    def _step(self, text: str, url: str) -> None:
        self.num_steps += 1
        self.say(f"STEP {self.num_steps} of 7: {text}")
        self.say(f"         look at {url}")

    def _wait(self, event: str, find: Callable[[], T | None]) -> T:
        return self.services.wait(
            find, f"not within {_STEP_SECONDS:.0f} s: {event}; {self.services.log} and the UI's runs say more"
        )

    def _verdicts(self) -> str:
        reports = latest_by_partition(self.store, CASE, DRIFT_REPORT)
        return ", ".join(DriftMetadata.of(reports[name]).status for name in sorted(reports))

    def _release_ended(self, before: str | None) -> str:
        """Return how the newest candidate's release ended.

        Args:
            before: reference of the evaluation report before it.
        """
        report = latest(self.store, CASE, EVALUATION_REPORT)
        if report is None or report.ref == before:
            raise FullftError(f"tour: no candidate was evaluated; {self.services.url}/runs says why")
        metadata = EvaluationMetadata.of(report)
        champion = release.read_champion(self.store, CASE)
        is_champion = champion is not None and champion.checkpoint == metadata.checkpoint
        return f"release: a {'new champion' if is_champion else 'recorded refusal'}: {metadata.verdict}"


class _Services:
    def __init__(self, project: TourProject, variables: Mapping[str, str]):
        self.project = project
        self.log = project.root / "dagster-dev.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        environment = {
            name: value for name, value in os.environ.items() if name not in ("DAGSTER_HOME", "FULLFT_STORE")
        }
        path = os.pathsep.join([str(project.root), *filter(None, [environment.get("PYTHONPATH")])])
        self._env = {
            **environment,
            "DAGSTER_HOME": str(project.home),
            "PYTHONPATH": path,
            "HF_HUB_OFFLINE": "1",
            **variables,
        }
        require("dagster_webserver", "fullft tour")
        # On a fresh home the services race for the schema of the database: one command goes before.
        self._call("dagster", "instance", "info")
        with self.log.open("wb") as log:
            self._process = self._start(
                ["fullft_assets.cli", "ui", "-w", "workspace.yaml", "-p", str(self._port)], log
            )
        self.wait(self._answers, f"{self.url} does not answer; {self.log} says more")

    def wait(self, find: Callable[[], T | None], problem: str) -> T:
        """Call a function until it returns a value, and return that; raise a FullftError after a time, or if
        the services end.
        """
        deadline = time.monotonic() + _STEP_SECONDS
        while not (result := find()):
            self.require_alive()
            if time.monotonic() > deadline:
                raise FullftError(f"tour: {problem}")
            time.sleep(_POLL_SECONDS)
        return result

    def require_alive(self) -> None:
        if self._process.poll() is not None:
            raise FullftError(f"tour: `dagster dev` ended by itself; {self.log} says why")

    def fullft_run(self) -> None:
        if self._start(["fullft_assets.cli", "run", CASE, "--defs", str(self.project.defs)], None).wait():
            raise FullftError(f"tour: `fullft run` failed; its lines above and {self.url}/runs say why")

    def turn_sensors_on(self) -> None:
        self._call("dagster", "sensor", "start", "-w", "workspace.yaml", "--start-all")

    def _answers(self) -> bool:
        with (
            suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{self.url}/server_info", timeout=5) as answer,
        ):
            return answer.status == 200
        return False

    def _call(self, *command: str) -> None:
        with self.log.open("ab") as log:
            if self._start(list(command), log).wait():
                raise FullftError(f"tour: `{' '.join(command)}` failed; {self.log} says why")

    def _start(self, command: list[str], output: Any) -> subprocess.Popen[bytes]:
        """Start a module in a session of its own: Ctrl-C in the terminal reaches the tour alone, which stops
        it.
        """
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.project.root,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


@contextmanager
def _services(project: TourProject, variables: Mapping[str, str]) -> Iterator[_Services]:
    """Yield services that answer; at the end they are asked to stop, and what is left of them is killed."""
    # Orphans as well: runs are in sessions of their own.
    adopt_orphans()
    try:
        yield _Services(project, variables)
    finally:
        me = psutil.Process()
        children = me.children()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.terminate()
        psutil.wait_procs(children, timeout=_STOP_SECONDS)
        kill_until_gone(lambda: [child for child in me.children(recursive=True) if is_alive(child)])


@contextmanager
def _alerts_received(terminal: Terminal) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the address of a local webhook and the list of what it received so far; each is printed as
    well.
    """
    alerts: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            alert = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            alerts.append(alert)
            terminal.line(f"ALERT received: {alert['event']}: {alert['title']} | next: {alert['action']}")
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing of the requests themselves."""

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", alerts
    finally:
        server.shutdown()
        server.server_close()
