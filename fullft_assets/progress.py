"""What a workload reports while it works and when it fails, and whether it was asked to stop."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, Self

from fullft_assets.durations import duration
from fullft_assets.errors import FailureClass, Interrupted, without_secrets

#: Environment variable with the path of the file to which a failing workload writes its `WorkloadFailure`.
ERROR_FILE = "FULLFT_ERROR_FILE"
#: At most one progress line in this time.
STEP_SECONDS = 10.0
#: Messages that reach Dagster's log at any pace; thousands of them would slow it down.
_FREE_REPORTS = 100


class Listener(Protocol):
    """The part of a `Progress` that long forward work uses."""

    def raise_if_stopped(self) -> None:
        """End the work if it was asked to stop."""

    def step(self, done: int, total: int) -> None:
        """Report how far the work is."""


class Progress:
    """Reports what a workload does, and knows whether it was asked to stop.

    Args:
        report: writes a line to Dagster's log; None without Dagster.
        silent: report nothing (every rank but the first).
    """

    def __init__(self, report: Callable[[str], None] | None = None, *, silent: bool = False):
        #: True after SIGTERM or the first Ctrl-C: write a checkpoint, then raise `Interrupted`.
        self.stop_requested = False
        self._report = report
        self._silent = silent
        self._started = time.monotonic()
        self._num_said = 0
        self._stepped_at = float("-inf")
        #: When a message and a step last reached Dagster's log; each has its own pace.
        self._reported_at = {"say": float("-inf"), "step": float("-inf")}
        self._total = 0
        self._done = 0
        #: When the count began, and how much was done then.
        self._began = (self._started, 0)

    def say(self, message: str) -> None:
        """Print a line; the first hundred go to Dagster's log at any pace, later ones sparsely."""
        self._num_said += 1
        self._speak("say", message, always=self._num_said <= _FREE_REPORTS)

    def step(self, done: int, total: int, **numbers: float | None) -> None:
        """Print how far the work is, with these numbers and the time left; at most one line in 10 s.

        Args:
            done: steps done of `total`. A new total, or a smaller `done`, begins a new count.
            numbers: printed by name; None is not printed.
        """
        now = time.monotonic()
        if total != self._total or done < self._done:
            self._total = total
            self._began = (now, done)
        self._done = done
        if now - self._stepped_at < STEP_SECONDS:
            return
        self._stepped_at = now
        parts = [
            f"{name} {value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{name} {value:.4g}"
            for name, value in numbers.items()
            if value is not None
        ]
        began, first = self._began
        if first < done < total:
            parts.append(f"ETA {duration((now - began) / (done - first) * (total - done))}")
        self._speak("step", ", ".join([f"step {done:,}/{total:,} ({done / max(total, 1):.0%})", *parts]))

    def raise_if_stopped(self) -> None:
        """End work that needs no checkpoint, if it was asked to stop."""
        if self.stop_requested:
            raise Interrupted("stopped on request; run the same command to start this part again")

    def _speak(self, kind: str, message: str, always: bool = False) -> None:
        if self._silent:
            return
        message = without_secrets(message)
        now = time.monotonic()
        print(f"[{now - self._started:7.1f} s] {message}", flush=True)
        # Every line of the first 10 minutes, then ever fewer: about 350 in a day.
        if self._report is not None and (
            always or now - self._reported_at[kind] >= max(STEP_SECONDS, (now - self._started) / 60)
        ):
            self._report(message)
            self._reported_at[kind] = now


@dataclass(frozen=True)
class WorkloadFailure:
    """Why a workload failed: one line, and the kind of failure."""

    line: str
    failure: FailureClass

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the failure that a workload wrote, or None if it ended before it could."""
        text = path.read_text() if path.is_file() else ""
        return cls(**json.loads(text)) if text else None

    def write(self, path: Path) -> bool:
        """Write it unless another rank did. Return whether this was the first."""
        try:
            with path.open("x") as file:
                json.dump(asdict(self), file)
        except FileExistsError:
            return False
        return True
