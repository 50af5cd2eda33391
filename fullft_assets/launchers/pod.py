"""The first process of a pod of the launcher `kubernetes`: it supervises the workload and leaves how that ended in the termination message.

`python -m fullft_assets.launchers.pod [--hosts HOST,HOST --port PORT --patience SECONDS --processes N] [--gpus N] [--seconds SECONDS] --version VERSION --grace SECONDS -- -m MODULE ...`

SIGTERM, which a pod gets when it is deleted, evicted or out of time, is passed on to the workload. Several pods that share the work find each
other by their host names; the Job gives each its index.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from fullft_assets.jobs.launch import ERROR_FILE, EXIT_FIXABLE, LAUNCH_ID
from fullft_assets.jobs.ranks import torchrun_of_hosts
from fullft_assets.launchers import Status, supervisor
from fullft_assets.launchers.image import missing_gpus, wrong_version
from fullft_assets.launchers.machine import ended_status, patient_torchrun

#: Where Kubernetes reads a container's last words, 4,096 bytes at most.
MESSAGE = "/dev/termination-log"
_MAX_CHARACTERS = 900
#: Variable that the controller of Indexed Jobs sets.
_INDEX = "JOB_COMPLETION_INDEX"
#: Variable with the file to which torchrun itself writes why it failed; its ranks get others.
_TORCHRUN_ERROR = "TORCHELASTIC_ERROR_FILE"
_NOT_MET = re.compile(r"\bDist(?:Network|Store)Error\b")


def main() -> int:
    """Run the command line above and return the exit code of the workload."""
    parser = argparse.ArgumentParser(prog="python -m fullft_assets.launchers.pod", description=__doc__)
    parser.add_argument("--hosts", default="", metavar="HOST,HOST", help="host names of all pods, if several share the work")
    parser.add_argument("--port", type=int, help="of the first of several pods, on which they meet")
    parser.add_argument("--patience", type=int, metavar="SECONDS", help="so long several pods wait for each other")
    parser.add_argument("--processes", type=int, default=1, help="of each of several pods")
    parser.add_argument("--gpus", type=int, default=0, help="that the pod asked for, and torch has to see")
    parser.add_argument("--seconds", help="the workload is stopped after so long")
    parser.add_argument("--grace", type=float, required=True, metavar="SECONDS", help="time for a checkpoint")
    parser.add_argument("--version", required=True, help="of fullft_assets, which the image must have")
    parser.add_argument("--message", type=Path, default=Path(MESSAGE), help="where the end is written")
    parser.add_argument("arguments", nargs="+", help="of Python, after --")
    given = parser.parse_args()
    code, status = EXIT_FIXABLE, wrong_version(given.version) or missing_gpus(given.gpus, "set launcher.gpu_resource to null")
    if status is None:
        code, status = _run(given)
    if code != 0:
        print(status.reason, file=sys.stderr, flush=True)
        last_words = asdict(replace(status, reason=status.reason[:_MAX_CHARACTERS]))
        given.message.write_text(json.dumps(last_words, ensure_ascii=False))
    return code


def _run(given: argparse.Namespace) -> tuple[int, Status]:
    index, arguments = int(os.environ[_INDEX]), given.arguments
    if given.hosts:
        arguments = [*torchrun_of_hosts(given.hosts.split(","), index, given.processes, given.port, given.patience), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        files = {ERROR_FILE: f"{folder}/error", _TORCHRUN_ERROR: f"{folder}/torchrun"}
        os.environ.update(patient_torchrun(given.grace) | {LAUNCH_ID: f"{os.environ[LAUNCH_ID]}-{index}"} | files)
        limit = [] if given.seconds is None else ["--seconds", given.seconds]
        code = supervisor.main(["--folder", folder, "--grace", str(given.grace), *limit, "--", sys.executable, *arguments])
        status, torchrun = ended_status(Path(folder)), Path(folder) / "torchrun"
        if not status.is_own_line and torchrun.exists() and _NOT_MET.search(torchrun.read_text()):
            status = Status("failed", "could not reach the other pods of its training", "infrastructure")
        return code, status


if __name__ == "__main__":
    sys.exit(main())
