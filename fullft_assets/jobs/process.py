"""What every workload's process shares: its command line, its progress, its end.

A workload's module ends with `if __name__ == "__main__": run_workload(work)`. Launched by Dagster, its
progress arrives in the run's log; run by hand, the same line works without Dagster. Exit codes: 0 done,
3 for a reason that the user can mend (one line on stderr), 1 for anything else (traceback on stderr).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fullft_assets.errors import FullftError, Interrupted, classify
from fullft_assets.jobs import Job, read_job
from fullft_assets.jobs.launch import ERROR_FILE, EXIT_MENDABLE, Reason
from fullft_assets.store import Store

#: At most one progress line in this time.
STEP_SECONDS = 10.0
#: Lines said that reach Dagster's log whatever their pace; it slows down with thousands.
_FREE_REPORTS = 100
_LONGEST_REASON = 500


class Progress:
    """What a workload says while it works, and whether it was asked to stop.

    Args:
        report: takes a line for Dagster's log; None without Dagster.
        silent: say nothing at all (every rank but the first).
    """

    def __init__(self, report: Callable[[str], None] | None = None, *, silent: bool = False):
        #: True after SIGTERM or the first Ctrl-C: write a checkpoint, then raise `Interrupted`.
        self.stop_requested = False
        self._report = report
        self._silent = silent
        self._started = time.monotonic()
        self._num_said = 0
        self._stepped_at = float("-inf")
        #: Lines that were said and steps reach Dagster's log each at its own pace.
        self._reported_at = {"say": float("-inf"), "step": float("-inf")}
        self._phase = (0, 0, self._started)  # total, first done, when
        self._done = 0

    def say(self, message: str) -> None:
        """Print a line; the first hundred go to Dagster's log at any pace, later ones sparsely."""
        self._num_said += 1
        self._speak("say", message, always=self._num_said <= _FREE_REPORTS)

    def step(self, done: int, total: int, **numbers: float | None) -> None:
        """Print how far the work is, with these numbers and the time left; at most one line in 10 s.

        Args:
            done: steps done of `total`. A new total, or a smaller `done`, begins a new count.
            numbers: shown as they are named; None is left out.
        """
        now = time.monotonic()
        if total != self._phase[0] or done < self._done:
            self._phase = (total, done, now)
        self._done = done
        if now - self._stepped_at < STEP_SECONDS:
            return
        self._stepped_at = now
        shown = [f"{name} {_number(value)}" for name, value in numbers.items() if value is not None]
        _, first, began = self._phase
        if first < done < total:
            shown.append(f"ETA {_duration((now - began) / (done - first) * (total - done))}")
        self._speak("step", ", ".join([f"step {done:,}/{total:,} ({done / max(total, 1):.0%})", *shown]))

    def raise_if_stopped(self) -> None:
        """End work that needs no checkpoint, if it was asked to stop.

        Raises:
            Interrupted: it was.
        """
        if self.stop_requested:
            raise Interrupted("stopped on request; run the same command to start this part again")

    def _speak(self, kind: str, message: str, always: bool = False) -> None:
        if self._silent:
            return
        now = time.monotonic()
        print(f"[{now - self._started:7.1f} s] {message}", flush=True)
        # Every line of the first 10 minutes, then ever fewer: about 350 in a day.
        pause = max(STEP_SECONDS, (now - self._started) / 60)
        if self._report is not None and (always or now - self._reported_at[kind] >= pause):
            self._report(message)
            self._reported_at[kind] = now


def run_workload(work: Callable[[Job, Store, Progress], None]) -> None:
    """Run a workload's `work` on the job that the command line names, then exit.

    Args:
        work: reads the job's inputs from the store and writes its artifact there.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--job", required=True, metavar="URI", help="the job file, in the store")
    uri = parser.parse_args().job
    with _dagster_log() as report:
        code = _run(work, uri, Progress(report, silent=_rank() != 0))
    sys.exit(code)


def _run(work: Callable[[Job, Store, Progress], None], uri: str, progress: Progress) -> int:
    _listen_for_stop(progress)
    job, began_at = None, time.time()
    try:
        job = read_job(uri)
        work(job, job.open_store(), progress)
    except FullftError as error:
        _tell(Reason(" ".join(str(error).split()), error.failure), job, began_at)
        return EXIT_MENDABLE
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        line = f"{Path(sys.argv[0]).stem} failed: {reason[:_LONGEST_REASON]}; the traceback is in the step's stderr"
        _tell(Reason(line, classify(error)), job, began_at)
        return 1
    return 0


def _listen_for_stop(progress: Progress) -> None:
    def request_stop(number: int, _) -> None:
        if number == signal.SIGINT:
            # Not print: the signal may have interrupted one.
            os.write(2, b"stopping at the next checkpoint; Ctrl-C again stops at once\n")
            signal.signal(signal.SIGINT, signal.default_int_handler)
        progress.stop_requested = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)


def _tell(reason: Reason, job: Job | None, began_at: float) -> None:
    """Leave the reason of the failure for the launcher, in the store and on stderr; of several ranks, the first one's.

    A rank that lost another one to its failure fails, too, but later, and knows nothing of the cause.
    """
    path = os.environ.get(ERROR_FILE)
    if path is not None and not reason.leave(Path(path)):
        return
    print(reason.line, file=sys.stderr, flush=True)
    if job is None:
        return
    name, found = f"failures/{job.case}/{job.stage}/{job.key}.json", {"failure": reason.failure, "reason": reason.line, "at": time.time()}
    try:
        store = job.open_store()
        # Ranks that were started by hand, or on several hosts, share no file of a launcher's. All begin together: what has failed since then
        # is this attempt, be it on another host.
        told = store.read_json(name) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
        if told is None or told["at"] < began_at:
            store.write_json(name, found)
    except Exception as error:  # the store itself may be what failed; its own error must not stand in place of the reason
        print(f"the failure could not be recorded in {job.store_url}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


@contextmanager
def _dagster_log() -> Iterator[Callable[[str], None] | None]:
    from dagster_pipes import PipesEnvVarParamsLoader, open_dagster_pipes

    if _rank() != 0 or not PipesEnvVarParamsLoader().is_dagster_pipes_process():
        yield None
        return
    with open_dagster_pipes() as pipes:
        yield pipes.log.info


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _number(value: float) -> str:
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
