"""The first process of a container of the launchers `kubernetes` and `ecs`: it supervises the workload and
leaves how that ended.

`python -m fullft_assets.launchers.container [--hosts HOST,HOST --port PORT --patience SECONDS --processes N]
[--gpus N] [--seconds SECONDS] [--message FILE] --version VERSION --grace SECONDS -- -m MODULE ...`

SIGTERM, which a container gets when it is stopped, evicted or out of time, is passed on to the workload. How
that ended is written to a file, if one is named, else into the last line of the output. Several pods that
share the work find each other by their host names; the Job gives each its index.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fullft_assets.jobs.launch import EXIT_FIXABLE, LAUNCH_ID
from fullft_assets.jobs.ranks import torchrun_of_hosts
from fullft_assets.launchers import Status, supervisor
from fullft_assets.launchers.image import missing_gpus, wrong_version
from fullft_assets.launchers.machine import PATIENCE_SECONDS, ended_status, error_files, patient_torchrun
from fullft_assets.launchers.supervisor import KILL_SECONDS

if TYPE_CHECKING:
    from fullft_assets.settings import LauncherSettings

#: How the last line of a container's output begins: after it nothing more is to be expected.
LAST_LINE = "fullft: the container ends with"
_MAX_CHARACTERS = 900
#: Variable that the controller of Indexed Jobs sets.
_INDEX = "JOB_COMPLETION_INDEX"


def command(python: str, settings: LauncherSettings, gpus: int) -> list[str]:
    """Return the command of a container, up to what the workload adds.

    Args:
        gpus: that torch has to see there.
    """
    line = [
        python,
        "-m",
        "fullft_assets.launchers.container",
        "--version",
        importlib.metadata.version("fullft-assets"),
    ]
    line += ["--grace", str(settings.grace_seconds)]
    line += ["--gpus", str(gpus)] if gpus else []
    return line + ([] if settings.max_seconds is None else ["--seconds", str(settings.max_seconds)])


def stop_seconds(settings: LauncherSettings) -> int:
    """Return the time that a container has to end: that of the workload, and what its supervisor takes to
    notice and to kill.
    """
    return math.ceil(settings.grace_seconds + PATIENCE_SECONDS + KILL_SECONDS)


def main() -> int:
    """Run the command line above and return the exit code of the workload."""
    parser = argparse.ArgumentParser(prog="python -m fullft_assets.launchers.container", description=__doc__)
    parser.add_argument(
        "--hosts", default="", metavar="HOST,HOST", help="host names of all pods, if several share the work"
    )
    parser.add_argument("--port", type=int, help="of the first of several pods, on which they meet")
    parser.add_argument(
        "--patience", type=int, metavar="SECONDS", help="so long several pods wait for each other"
    )
    parser.add_argument("--processes", type=int, default=1, help="of each of several pods")
    parser.add_argument(
        "--gpus", type=int, default=0, help="that the container asked for, and torch has to see"
    )
    parser.add_argument("--seconds", help="the workload is stopped after so long")
    parser.add_argument("--grace", type=float, required=True, metavar="SECONDS", help="time for a checkpoint")
    parser.add_argument("--version", required=True, help="of fullft_assets, which the image must have")
    parser.add_argument(
        "--message",
        type=Path,
        metavar="FILE",
        help="where the end is written; without it, into the last line of the output",
    )
    parser.add_argument("arguments", nargs="+", help="of Python, after --")
    given = parser.parse_args()
    otherwise = "set launcher.gpus to false" if given.message is None else "set launcher.gpu_resource to null"
    code, status = EXIT_FIXABLE, wrong_version(given.version) or missing_gpus(given.gpus, otherwise)
    if status is None:
        code, status = _run(given)
    last_words = json.dumps(
        asdict(replace(status, reason=status.reason[:_MAX_CHARACTERS])), ensure_ascii=False
    )
    if code != 0:
        print(status.reason, file=sys.stderr, flush=True)
        if given.message is not None:
            given.message.write_text(last_words)
    if given.message is None:
        print(f"{LAST_LINE} {last_words}", flush=True)
    return code


def _run(given: argparse.Namespace) -> tuple[int, Status]:
    index, arguments = int(os.environ.get(_INDEX, "0")), given.arguments
    if given.hosts:
        arguments = [
            *torchrun_of_hosts(given.hosts.split(","), index, given.processes, given.port, given.patience),
            *arguments,
        ]
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(
            patient_torchrun(given.grace)
            | error_files(Path(folder))
            | {LAUNCH_ID: f"{os.environ[LAUNCH_ID]}-{index}"}
        )
        limit = [] if given.seconds is None else ["--seconds", given.seconds]
        # A container has its cores for itself, and may share its disk with others.
        code = supervisor.main(
            [
                "--folder",
                folder,
                "--grace",
                str(given.grace),
                *limit,
                "--shares-cores",
                "--",
                sys.executable,
                *arguments,
            ]
        )
        return code, ended_status(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
