"""The first process of a container of a SageMaker job: one for each host of the job.

`python -m fullft_assets.launchers.sagemaker_container` reads what the launcher asked for
(hyperparameters.json) and which hosts share the work (resourceconfig.json), supervises the workload, with
torchrun where several processes share it, and writes why it failed to `output/failure`, which SageMaker shows
as the job's `FailureReason`. A container without a network works on a store of its own in /opt/ml/model: with
a link to each file of the use case's artifacts, which SageMaker mounts, and with its checkpoints in the
folder that SageMaker keeps a copy of. SIGTERM is passed on: a stop, a spot interruption, or the time limit of
the job.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fullft_assets.jobs.launch import EXIT_FIXABLE, LAUNCH_ID, RUN_ID, STORE
from fullft_assets.jobs.ranks import torchrun_of_hosts
from fullft_assets.launchers import LaunchSpec, Status
from fullft_assets.launchers.container import LAST_LINE, missing_gpus, run_supervised, wrong_version

#: Environment variable with the folder that SageMaker calls /opt/ml, for tests.
ROOT = "FULLFT_OPT_ML"
#: Channels of a container without a network: the artifacts of the use case, and the job file; and its folder
#: of checkpoints.
STORE_CHANNEL = "store"
JOB_CHANNEL = "job"
CHECKPOINTS = "/opt/ml/checkpoints"
#: Names of the hyperparameters that hold variables of the workload, in parts: a value has 2,500 characters at
#: most.
VARIABLES = "variables_{}"
_OTHERWISE = "choose another launcher.instance_type"
_MAX_BYTES = 900  # of 1,024 that a FailureReason has


def main() -> int:
    """Run this host's share of the workload and return the exit code."""
    root = Path(os.environ.get(ROOT, "/opt/ml"))
    config, failure = root / "input/config", root / "output/failure"
    parameters = json.loads((config / "hyperparameters.json").read_text())
    hosts, host = _hosts(json.loads((config / "resourceconfig.json").read_text()))
    code, status = (
        EXIT_FIXABLE,
        wrong_version(parameters["version"]) or missing_gpus(int(parameters["gpus"]), _OTHERWISE),
    )
    if status is None and (root / "input/data" / STORE_CHANNEL).is_dir():
        with _isolated(root, parameters) as inside:
            code, status = _run(inside, hosts, host)
    elif status is None:
        code, status = _run(parameters, hosts, host)
    if code != 0:
        line = f"{_line(status).encode()[:_MAX_BYTES].decode(errors='ignore')} [{status.failure}]"
        print(line, file=sys.stderr, flush=True)
        try:
            failure.parent.mkdir(parents=True, exist_ok=True)
            failure.write_text(line)
        except OSError as error:  # an image whose user may not write there
            print(f"{failure} cannot be written ({error.strerror})", file=sys.stderr, flush=True)
    print(f"{LAST_LINE} exit code {code}", flush=True)
    return code


def _line(status: Status) -> str:
    return status.reason if status.is_own_line else f"the workload {status.reason}"


@contextmanager
def _isolated(root: Path, parameters: dict[str, str]) -> Iterator[dict[str, str]]:
    """Make a store of this container's own in /opt/ml/model, have the workload use it, and leave only what it
    has written there.

    Yields:
        What was asked for, with the job file that SageMaker has brought.
    """
    job = json.loads(parameters["job"])
    place = job.index("--job") + 1
    case, _, _, name = job[place].rpartition("/jobs/")[2].split("/")
    store, channels = root / "model", root / "input/data"
    checkpoints, links = root / Path(CHECKPOINTS).relative_to("/opt/ml"), [store / "work"]
    checkpoints.mkdir(exist_ok=True)
    links[0].symlink_to(checkpoints, target_is_directory=True)
    for path in (channels / STORE_CHANNEL).rglob("*"):
        if path.is_file():
            links.append(store / case / path.relative_to(channels / STORE_CHANNEL))
            links[-1].parent.mkdir(parents=True, exist_ok=True)
            links[-1].symlink_to(path)
    os.environ[STORE] = str(store)
    job[place] = str(channels / JOB_CHANNEL / name)
    try:
        yield {**parameters, "job": json.dumps(job)}
    finally:
        for link in links:
            link.unlink(missing_ok=True)


def _run(parameters: dict[str, str], hosts: list[str], host: int) -> tuple[int, Status]:
    job = json.loads(parameters["job"])
    names = sorted(name for name in parameters if name.startswith(VARIABLES.format("")))
    os.environ.update(json.loads("".join(parameters[name] for name in names)))
    os.environ[LAUNCH_ID] = f"{os.environ.get('TRAINING_JOB_NAME', 'fullft')}/{hosts[host]}"
    os.environ[RUN_ID] = parameters["run_id"]
    arguments = _arguments(parameters, job, hosts, host)
    return run_supervised(arguments, float(parameters["grace_seconds"]))


def _hosts(resources: dict[str, Any]) -> tuple[list[str], int]:
    hosts = sorted(
        resources["hosts"],
        key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
    )
    if len(hosts) > 1:
        for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            os.environ.setdefault(variable, resources["network_interface_name"])
    return hosts, hosts.index(resources["current_host"])


def _arguments(parameters: dict[str, str], job: list[str], hosts: list[str], host: int) -> list[str]:
    module, processes = parameters["module"], int(parameters["processes"])
    if len(hosts) == 1:
        return LaunchSpec("", module, tuple(job), processes).arguments
    return [
        *torchrun_of_hosts(hosts, host, processes, int(os.environ.get("MASTER_PORT", "29500"))),
        "-m",
        module,
        *job,
    ]


if __name__ == "__main__":
    sys.exit(main())
