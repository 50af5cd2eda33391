"""The first process of a container of `kubernetes` and `ecs`, and of a job of `ray`: it supervises the
workload and leaves how that ended.

`python -m fullft_assets.launch.container OPTIONS -m MODULE ...`, with `Options` as JSON.

SIGTERM, which a container gets when it is stopped, evicted or out of time, is passed on to the workload. How
that ended is written to a file, if one is named, else into the last line of the output. Several pods that
share the work find each other by their host names; the Job gives each its index.
"""

import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fullft_assets.launch import LaunchSpec, Status, supervisor
from fullft_assets.launch.contract import EXIT_FIXABLE, LAUNCH_ID, PROJECT_ROOT, RUN_ID
from fullft_assets.launch.machine import PATIENCE_SECONDS, ended_status, error_files, patient_torchrun
from fullft_assets.ranks import torchrun_of_hosts
from fullft_assets.settings import LauncherSettings, RemoteLauncherSettings

MODULE = "fullft_assets.launch.container"
#: How the last line of a container's output begins: after it nothing more is to be expected.
LAST_LINE = "fullft: the container ends with"
_MAX_CHARACTERS = 900


@dataclass(frozen=True)
class Options:
    """How a container runs its workload.

    Attributes:
        version: of fullft_assets, which the image must have.
        grace: seconds that a stopped workload has for its checkpoint.
        seconds: time after which the workload is stopped. Default: none.
        gpus: that the container asked for, and torch has to see.
        message: file that the end is written to. Default: the last line of the output.
        hosts: host names of all pods, if several share the work; they meet on `port` of the first one.
        patience: seconds that several pods wait for each other.
        processes: of each of several pods.
    """

    version: str
    grace: float
    seconds: float | None = None
    gpus: int = 0
    message: str | None = None
    hosts: Sequence[str] = ()
    port: int = 0
    patience: int = 0
    processes: int = 1


def command(
    python: str, settings: LauncherSettings, gpus: int, arguments: Sequence[str], **more: Any
) -> list[str]:
    """Return the command of a container.

    Args:
        python: in the image.
        gpus: that torch has to see there.
        arguments: of Python, that run the workload.
        more: further `Options`.
    """
    options = Options(
        importlib.metadata.version("fullft-assets"),
        settings.grace_seconds,
        settings.max_seconds,
        gpus,
        **more,
    )
    return [python, "-m", MODULE, json.dumps(asdict(options)), *arguments]


def variables(spec: LaunchSpec, settings: RemoteLauncherSettings) -> dict[str, str]:
    """Return the variables of a container, of which everybody who may describe it sees the values."""
    root = {} if settings.folder is None else {PROJECT_ROOT: settings.folder}
    return {**settings.environment, **spec.environment, LAUNCH_ID: spec.name, RUN_ID: spec.run_id, **root}


def last_words(lines: Iterable[str]) -> Status | None:
    """Return how a container's last line says that it ended; None where it could not say it."""
    line = next((line for line in lines if line.startswith(LAST_LINE)), None)
    return None if line is None else Status(**json.loads(line.removeprefix(LAST_LINE)))


def stop_seconds(settings: LauncherSettings) -> int:
    """Return the time that a container has to end: that of the workload, and what its supervisor takes to
    notice and to kill.
    """
    return math.ceil(settings.grace_seconds + PATIENCE_SECONDS + supervisor.KILL_SECONDS)


def main() -> int:
    """Run the command line above and return the exit code of the workload."""
    options = Options(**json.loads(sys.argv[1]))
    problem = wrong_version(options.version) or missing_gpus(options.gpus, "set launcher.gpus to false")
    code, status = _run(options, sys.argv[2:]) if problem is None else (EXIT_FIXABLE, problem)
    last_words = json.dumps(
        asdict(replace(status, reason=status.reason[:_MAX_CHARACTERS])), ensure_ascii=False
    )
    if code != 0:
        print(status.reason, file=sys.stderr, flush=True)
        if options.message is not None:
            Path(options.message).write_text(last_words)
    if options.message is None:
        print(f"{LAST_LINE} {last_words}", flush=True)
    return code


def _run(options: Options, arguments: list[str]) -> tuple[int, Status]:
    # Variable that the controller of Indexed Jobs sets.
    index = int(os.environ.get("JOB_COMPLETION_INDEX", "0"))
    if options.hosts:
        arguments = [
            *torchrun_of_hosts(options.hosts, index, options.processes, options.port, options.patience),
            *arguments,
        ]
    os.environ[LAUNCH_ID] = f"{os.environ[LAUNCH_ID]}-{index}"
    return run_supervised(arguments, options.grace, options.seconds)


def run_supervised(
    arguments: Sequence[str], grace_seconds: float, max_seconds: float | None = None
) -> tuple[int, Status]:
    """Run Python with these arguments to its end; return its exit code, and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(patient_torchrun(grace_seconds) | error_files(Path(folder)))
        code = supervisor.supervise(
            supervisor.Options(grace_seconds, max_seconds, (), folder), [sys.executable, *arguments]
        )
        return code, ended_status(Path(folder))


def wrong_version(version: str) -> Status | None:
    """Return the failure of an image with another version, whose settings and keys may mean something
    else.
    """
    installed = importlib.metadata.version("fullft-assets")
    if installed == version:
        return None
    return Status(
        "failed",
        f"there is fullft_assets {installed}, and {version} launched it; set launcher.image or"
        " launcher.python to one of the same version",
        "settings",
        is_own_line=True,
    )


def missing_gpus(num_gpus: int, otherwise: str) -> Status | None:
    """Return the failure of an image whose torch does not see a GPU for each process: the work would go on,
    on the CPU.

    Args:
        otherwise: what else the person who launched it may do.
    """
    if num_gpus == 0:
        return None
    # Not here, where torch would stay in memory as long as the job runs.
    command = [sys.executable, "-c", "import torch; print(torch.accelerator.device_count())"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.split()
    num_visible = int(answer[-1]) if answer else 0
    if num_visible >= num_gpus:
        return None
    hint = (
        "build the image with a torch for CUDA (deploy/docker/Dockerfile says how)"
        if num_visible == 0
        else "lower launcher.processes"
    )
    return Status(
        "failed",
        f"torch in the image sees {num_visible} GPUs, and {num_gpus} were to be used here; {hint}, "
        f"or {otherwise}",
        "settings",
        is_own_line=True,
    )


if __name__ == "__main__":
    sys.exit(main())
