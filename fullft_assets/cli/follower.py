"""What `fullft run` prints: what happens in runs, followed to their end, with the elapsed time."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import dagster as dg

from fullft_assets.resources.run_workers import settle, waits


@dataclass
class Terminal:
    """Prints lines with the elapsed time.

    Attributes:
        stream: the stream that is printed to.
        reword: returns the line that is printed in place of a line.
    """

    stream: TextIO
    reword: Callable[[str], str] = str
    began: float = field(default_factory=time.monotonic)

    def line(self, text: str) -> None:
        """Print one line with the elapsed time."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {self.reword(text)}", file=self.stream, flush=True)


@contextmanager
def own_terminal(log: Path, reword: Callable[[str], str] = str) -> Iterator[Terminal]:
    """Keep the terminal for this process's own lines: what Dagster's processes print of each event goes to a
    file.

    Args:
        log: the file.
        reword: see `Terminal`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with os.fdopen(os.dup(1), "w") as terminal, log.open("ab") as file:
        try:
            for descriptor in saved:
                os.dup2(file.fileno(), descriptor)
            yield Terminal(terminal, reword)
        finally:
            for descriptor, copy in saved.items():
                os.dup2(copy, descriptor)
                os.close(copy)


#: What Dagster itself logs of each step, and of those that follow a failed one.
_NOISE = ("Loaded input", "Dependencies for step", "[pipes]")
#: Time between two looks at the runs.
POLL_SECONDS = 0.5
#: Time between two looks at the run that holds the slot that a step waits for.
_SLOT_SECONDS = 5.0


@dataclass
class FollowedRun:
    """One launched run and how far its events were read."""

    run_id: str
    title: str
    cursor: str | None = None
    steps: dict[str, float] = field(default_factory=dict)
    #: Steps that wait for a slot of their pool, when that was last looked at, and what was printed about it.
    blocked_steps: set[str] = field(default_factory=set)
    looked_at: float = float("-inf")
    waits: list[str] = field(default_factory=list)


@dataclass
class Follower:
    """Prints the events of runs until they end.

    Attributes:
        instance: where the runs are.
        terminal: prints the lines.
        prefix: beginning of the steps' names that is not printed.
        launch_queued: launches a run that is still in the queue of a daemon that ended.
    """

    instance: dg.DagsterInstance
    terminal: Terminal
    prefix: str
    launch_queued: Callable[[str], None]

    def follow(self, runs: list[FollowedRun]) -> bool:
        """Print the runs' events to their end; return whether all succeeded."""
        ok = True
        open_runs = list(runs)
        while open_runs:
            time.sleep(POLL_SECONDS)
            for open_run in list(open_runs):
                self.launch_queued(open_run.run_id)
                # Read before its events, so that none is missed.
                run = self.instance.get_run_by_id(open_run.run_id)
                self._show_events(open_run)
                self._look_at_slots(open_run)
                if run is None or run.is_finished:
                    open_runs.remove(open_run)
                    ok = ok and run is not None and run.is_success
        return ok

    def settle(self) -> None:
        """End runs whose processes are gone, and print a line for each."""
        for line in settle(self.instance):
            self.terminal.line(line)

    def _show_events(self, run: FollowedRun) -> None:
        page = self.instance.get_records_for_run(run.run_id, cursor=run.cursor)
        run.cursor = page.cursor
        for record in page.records:
            entry = record.event_log_entry
            step = (entry.step_key or "").removeprefix(f"{self.prefix}__")
            if entry.dagster_event is not None:
                self._show_event(run, step, entry.dagster_event, entry.timestamp)
            elif entry.user_message and not entry.user_message.startswith(_NOISE):
                self.terminal.line(f"{run.title}: {step}: {entry.user_message}")

    def _show_event(self, run: FollowedRun, step: str, event: dg.DagsterEvent, timestamp: float) -> None:
        kind = event.event_type
        if kind == dg.DagsterEventType.STEP_START:
            run.steps[step] = timestamp
            run.blocked_steps.discard(step)
        elif kind == dg.DagsterEventType.ENGINE_EVENT:
            if "pool" in event.engine_event_data.metadata:  # Dagster waits without a message
                run.blocked_steps.add(step)
        elif kind == dg.DagsterEventType.STEP_SUCCESS:
            self.terminal.line(f"{run.title}: {step} done in {timestamp - run.steps[step]:.1f} s")
        elif kind == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if not check.passed:
                level = "RED" if check.blocking else "yellow"
                self.terminal.line(
                    f"{run.title}: check {check.check_name} is {level}: {check.description or ''}"
                )
        elif kind == dg.DagsterEventType.STEP_FAILURE:
            failure = event.step_failure_data
            message = failure.user_failure_data and failure.user_failure_data.description
            self.terminal.line(f"{run.title}: {step} FAILED: {message or deepest_cause(failure.error)}")
        elif kind == dg.DagsterEventType.RUN_FAILURE and not run.steps:
            self.terminal.line(f"{run.title}: FAILED: {event.message}")

    def _look_at_slots(self, run: FollowedRun) -> None:
        """Print at once which run a blocked step waits for, and again when that changes; free what a dead run
        holds.
        """
        if not run.blocked_steps or time.monotonic() - run.looked_at < _SLOT_SECONDS:
            return
        run.looked_at = time.monotonic()
        self.settle()
        lines = waits(self.instance, run.run_id)
        for line in lines:
            if line not in run.waits:
                self.terminal.line(f"{run.title}: {line}")
        run.waits = lines


def deepest_cause(error: Any) -> str:
    """Return the first line of the error at the bottom of a chain of causes."""
    while error.cause is not None:
        error = error.cause
    return (
        "the check above is red"
        if error.cls_name == "DagsterAssetCheckFailedError"
        else error.message.strip().splitlines()[0]
    )
