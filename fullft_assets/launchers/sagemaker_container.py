"""The first process of a container of a SageMaker Training Job: one for each host of the job.

`python -m fullft_assets.launchers.sagemaker_container` reads what the launcher asked for (hyperparameters.json) and which hosts share the
work (resourceconfig.json), supervises the workload, with torchrun where several processes share it, and writes why it failed to
`output/failure`. SageMaker shows that line in the job's `FailureReason`. SIGTERM is passed on: a stop, a spot interruption, or the time
limit of the job.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fullft_assets.errors import WorkloadError
from fullft_assets.jobs.launch import ERROR_FILE, EXIT_FIXABLE, LAUNCH_ID, RUN_ID, WorkloadFailure
from fullft_assets.jobs.ranks import torchrun_of_hosts
from fullft_assets.launchers.base import LaunchSpec
from fullft_assets.launchers.machine import PATIENCE_SECONDS, ending
from fullft_assets.launchers.supervisor import Supervisor, adopt_orphans

#: Environment variable with the folder that SageMaker calls /opt/ml, for tests.
ROOT = "FULLFT_OPT_ML"
#: The last line of a container's output, before its exit code: after it nothing more is to be expected.
LAST_LINE = "fullft: the container ends with exit code"
#: Names of the hyperparameters that hold variables of the workload, in parts: a value has 2,500 characters at most.
VARIABLES = "variables_{:02}"
_MAX_LINE = 900  # of 1,024 characters that a FailureReason has


def main() -> int:
    """Run this host's share of the workload and return the exit code."""
    root = Path(os.environ.get(ROOT, "/opt/ml"))
    asked = json.loads((root / "input/config/hyperparameters.json").read_text())
    supervisor = Supervisor(float(asked["grace_seconds"]))
    adopt_orphans()
    began_at = time.time()
    hosts, host = _hosts(json.loads((root / "input/config/resourceconfig.json").read_text()))
    error_file = Path(tempfile.mkdtemp()) / "error"
    _set_variables(asked, hosts[host], error_file)
    try:
        _require_version(asked["version"])
        code = supervisor.run(_command(asked, hosts, host), [])
    except WorkloadError as error:
        WorkloadFailure(str(error), error.failure).write(error_file)
        code = EXIT_FIXABLE
    if code != 0:
        failure = _failure(code, error_file, json.loads(asked["job"]), began_at, len(hosts))
        line = f"{failure.line[:_MAX_LINE]} [{failure.failure}]"
        print(line, file=sys.stderr, flush=True)
        try:
            (root / "output/failure").write_text(line)
        except OSError as error:  # an image whose user may not write there
            print(f"{root}/output/failure cannot be written ({error.strerror})", file=sys.stderr, flush=True)
    print(f"{LAST_LINE} {code}", flush=True)
    return code


def _hosts(given: dict[str, Any]) -> tuple[list[str], int]:
    """Return the hosts of the job, the first one that of rank 0, and the place of this one; have the ranks talk over their network."""
    hosts = sorted(given["hosts"], key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    if len(hosts) > 1:
        for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            os.environ.setdefault(variable, given["network_interface_name"])
    return hosts, hosts.index(given["current_host"])


def _set_variables(asked: dict[str, str], host: str, error_file: Path) -> None:
    parts = [asked[name] for name in sorted(asked) if name.startswith(VARIABLES[:-5])]
    os.environ.update(json.loads("".join(parts)))
    os.environ.update(
        {
            LAUNCH_ID: f"{os.environ.get('TRAINING_JOB_NAME', 'fullft')}/{host}",
            RUN_ID: asked["run_id"],
            ERROR_FILE: str(error_file),
            # torchrun kills its ranks after 30 s by default, whatever our grace time is.
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(float(asked["grace_seconds"]) + PATIENCE_SECONDS)),
        }
    )


def _require_version(wanted: str) -> None:
    found = importlib.metadata.version("fullft-assets")
    if found != wanted:
        raise WorkloadError(
            f"launcher.image has fullft_assets {found}, but {wanted} launched it; build the image of this version", "settings"
        )


def _command(asked: dict[str, str], hosts: list[str], host: int) -> list[str]:
    workload, processes = ["-m", asked["module"], *json.loads(asked["job"])], int(asked["processes"])
    if len(hosts) == 1:
        return [sys.executable, *LaunchSpec("", asked["module"], tuple(json.loads(asked["job"])), processes).arguments]
    return [sys.executable, *torchrun_of_hosts(hosts, host, processes, int(os.environ.get("MASTER_PORT", "29500"))), *workload]


def _failure(code: int, error_file: Path, job: list[str], began_at: float, num_hosts: int) -> WorkloadFailure:
    """Return why the workload failed: of several hosts, the reason of the one that failed first."""
    own = WorkloadFailure.read(error_file)
    if num_hosts > 1 and (first := _recorded(job, began_at)) is not None:
        return first
    if own is not None:
        return own
    line, failure = ending(code)
    return WorkloadFailure(f"the workload {line}", failure)


def _recorded(job: list[str], began_at: float) -> WorkloadFailure | None:
    """Return the failure of this attempt that a rank recorded in the store."""
    from fullft_assets.jobs import read_job

    found = read_job(job[job.index("--job") + 1])
    record = found.open_store().read_json(f"failures/{found.case}/{found.stage}/{found.key}.json")
    return None if record is None or record["at"] < began_at else WorkloadFailure(record["reason"], record["failure"])


if __name__ == "__main__":
    sys.exit(main())
