"""Training jobs in processes of their own that need no imports: forks of one server, which has them all.

A fork does what `python -m fullft_assets.launch.workloads.training --job URI` does; it saves the seconds in
which a new process loads torch.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fullft_assets.launch.entry import run_workload
from fullft_assets.launch.workloads.training import work
from fullft_assets.training import spot

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([__name__])


class ForkedTraining:
    """A started training, with the methods of `subprocess.Popen` that tests use.

    Args:
        uri: of the job.
        env: its environment.
        folder: for what it prints.
    """

    def __init__(self, uri: str, env: Mapping[str, str], folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._printed = [folder / f"{time.time_ns()}.{name}" for name in ("out", "err")]
        self._process = _SERVER.Process(
            target=_train, args=(uri, dict(env), [str(path) for path in self._printed])
        )
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what was printed to stdout and stderr."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still at work after {timeout} s"
        output, errors = (path.read_text() for path in self._printed)
        return output, errors


def _train(uri: str, env: dict[str, str], printed: list[str]) -> None:
    os.setsid()
    os.environ.update(env)
    for descriptor, path in zip((1, 2), printed, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    # A training of seconds is over before the first look of a real one.
    spot.POLL_SECONDS = 0.05
    sys.argv = ["fullft_assets.launch.workloads.training", "--job", uri]
    run_workload(work)
