"""The entry point that all workloads share: command line, progress, exit code.

A workload's module ends with `if __name__ == "__main__": run_workload(work)`. Launched by Dagster, its
progress arrives in the run's log; run by hand, the same line works without Dagster. Exit codes: 0 done, 3 for
a reason that the user can fix (one line on stderr), 1 for anything else (a traceback without messages on
stderr, the whole one in the store).
"""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fullft_assets.errors import FullftError, classify, stack_without_messages, without_message
from fullft_assets.job import Job, read_job
from fullft_assets.launch.contract import EXIT_FIXABLE, PROJECT_ROOT, STORE
from fullft_assets.progress import ERROR_FILE, Progress, WorkloadFailure
from fullft_assets.ranks import is_first_rank
from fullft_assets.store import Store


def run_workload(work: Callable[[Job, Store, Progress], None]) -> None:
    """Run a workload's `work` on the job that the command line names, then exit."""
    # Everything is imported: what that made stays, and garbage is collected at Python's usual pace again.
    gc.freeze()
    gc.set_threshold(700, 10, 10)
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--job", required=True, metavar="URI", help="the job file, in the store")
    parser.add_argument("--sha256", metavar="DIGEST", help="refuse the job file if its sha256 is another")
    arguments = parser.parse_args()
    with _dagster_log() as report:
        code = run_job(work, arguments.job, Progress(report, silent=not is_first_rank()), arguments.sha256)
    sys.exit(code)


def run_job(
    work: Callable[[Job, Store, Progress], None], uri: str, progress: Progress, sha256: str | None = None
) -> int:
    """Run `work` on the job at a URI, report a failure, and return the exit code."""
    listen_for_stop(progress)
    job = None
    try:
        job = read_job(uri, sha256)
        if (root := os.environ.get(PROJECT_ROOT)) is not None:
            job = job.model_copy(update={"project_root": str(Path(root).absolute())})
        if (folder := os.environ.get(STORE)) is not None:
            job = job.model_copy(update={"store_url": folder, "kms_key": None})
        work(job, job.open_store(), progress)
    except FullftError as error:
        report_failure(WorkloadFailure(" ".join(str(error).split()), error.failure))
        return EXIT_FIXABLE
    except Exception as error:
        # Dagster keeps the step's stderr beside its event log: neither gets a message, which may quote a
        # document.
        print(stack_without_messages(error), file=sys.stderr)
        report_failure(
            WorkloadFailure(f"{Path(sys.argv[0]).stem} failed: {_kept_reason(error, job)}", classify(error))
        )
        return 1
    return 0


def _kept_reason(error: Exception, job: Job | None) -> str:
    try:
        return without_message(error) if job is None else job.open_store().keep_traceback(job.case, error)
    except Exception:  # the store cannot even be opened
        return without_message(error)


def listen_for_stop(progress: Progress) -> None:
    """Set `progress.stop_requested` on SIGTERM and on the first Ctrl-C; a second Ctrl-C stops at once."""

    def request_stop(number: int, _) -> None:
        if number == signal.SIGINT:
            # Not print: the signal may have interrupted one.
            os.write(2, b"stopping at the next checkpoint; Ctrl-C again stops at once\n")
            signal.signal(signal.SIGINT, signal.default_int_handler)
        progress.stop_requested = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)


def report_failure(failure: WorkloadFailure) -> None:
    """Write a failure for the launcher and on stderr; of several ranks, the first one's.

    A rank that lost another one to its failure fails, too, but later, and does not know the cause.
    """
    path = os.environ.get(ERROR_FILE)
    if path is None or failure.write(Path(path)):
        print(failure.line, file=sys.stderr, flush=True)


@contextmanager
def _dagster_log() -> Iterator[Callable[[str], None] | None]:
    from dagster_pipes import PipesEnvVarParamsLoader, open_dagster_pipes

    if not is_first_rank() or not PipesEnvVarParamsLoader().is_dagster_pipes_process():
        yield None
        return
    with open_dagster_pipes() as pipes:
        yield pipes.log.info
