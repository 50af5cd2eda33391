"""The first process of a container of a SageMaker job: one for each host of the job.

`python -m fullft_assets.launch.sagemaker_container` reads what the launcher asked for
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
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from fullft_assets.launch import LaunchSpec, Status
from fullft_assets.launch.container import LAST_LINE, missing_gpus, run_supervised, wrong_version
from fullft_assets.launch.contract import EXIT_FIXABLE, LAUNCH_ID, RUN_ID, STORE
from fullft_assets.ranks import torchrun_of_hosts

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
_MAX_BYTES = 900  # of 1,024 that a FailureReason has


def main() -> int:
    """Run this host's share of the workload and return the exit code."""
    root = Path(os.environ.get(ROOT, "/opt/ml"))
    config = root / "input/config"
    parameters = json.loads((config / "hyperparameters.json").read_text())
    hosts, host = _hosts(json.loads((config / "resourceconfig.json").read_text()))
    code = EXIT_FIXABLE
    status = wrong_version(parameters["version"]) or missing_gpus(
        int(parameters["gpus"]), "choose another launcher.instance_type"
    )
    if status is None:
        is_isolated = (root / "input/data" / STORE_CHANNEL).is_dir()
        with _isolated(root, parameters) if is_isolated else nullcontext(parameters) as local_parameters:
            code, status = _run(local_parameters, hosts, host)
    if code != 0:
        reason = status.reason if status.is_own_line else f"the workload {status.reason}"
        line = f"{reason.encode()[:_MAX_BYTES].decode(errors='ignore')} [{status.failure}]"
        print(line, file=sys.stderr, flush=True)
        path = root / "output/failure"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(line)
        except OSError as error:  # an image whose user may not write there
            print(f"{path} cannot be written ({error.strerror})", file=sys.stderr, flush=True)
    print(f"{LAST_LINE} exit code {code}", flush=True)
    return code


@contextmanager
def _isolated(root: Path, parameters: dict[str, str]) -> Iterator[dict[str, str]]:
    """Make a store of this container's own in /opt/ml/model, have the workload use it, and leave only what it
    has written there.

    Yields:
        The parameters, with the job file that SageMaker has brought.
    """
    job = json.loads(parameters["job"])
    position = job.index("--job") + 1
    case, _, _, name = job[position].rpartition("/jobs/")[2].split("/")
    store = root / "model"
    artifacts = root / "input/data" / STORE_CHANNEL
    checkpoints = root / Path(CHECKPOINTS).relative_to("/opt/ml")
    checkpoints.mkdir(exist_ok=True)
    links = {
        store / "work": checkpoints,
        **{
            store / case / path.relative_to(artifacts): path
            for path in artifacts.rglob("*")
            if path.is_file()
        },
    }
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    os.environ[STORE] = str(store)
    job[position] = str(root / "input/data" / JOB_CHANNEL / name)
    try:
        yield {**parameters, "job": json.dumps(job)}
    finally:
        for link in links:
            link.unlink(missing_ok=True)


def _run(parameters: dict[str, str], hosts: list[str], host: int) -> tuple[int, Status]:
    names = sorted(name for name in parameters if name.startswith(VARIABLES.format("")))
    os.environ.update(json.loads("".join(parameters[name] for name in names)))
    os.environ[LAUNCH_ID] = f"{os.environ.get('TRAINING_JOB_NAME', 'fullft')}/{hosts[host]}"
    os.environ[RUN_ID] = parameters["run_id"]
    return run_supervised(_arguments(parameters, hosts, host), float(parameters["grace_seconds"]))


def _hosts(resources: dict[str, Any]) -> tuple[list[str], int]:
    hosts = sorted(
        resources["hosts"],
        key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
    )
    if len(hosts) > 1:
        for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            os.environ.setdefault(variable, resources["network_interface_name"])
    return hosts, hosts.index(resources["current_host"])


def _arguments(parameters: dict[str, str], hosts: list[str], host: int) -> list[str]:
    job = json.loads(parameters["job"])
    processes = int(parameters["processes"])
    if len(hosts) == 1:
        return LaunchSpec("", parameters["module"], tuple(job), processes).arguments
    torchrun = torchrun_of_hosts(hosts, host, processes, int(os.environ.get("MASTER_PORT", "29500")))
    return [*torchrun, "-m", parameters["module"], *job]


if __name__ == "__main__":
    sys.exit(main())
