"""The GPUs of this machine that runs may use; `jobs.leases` gives each run its own ones.

This file stays light: the supervisor of a local workload imports it, and must start fast.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from fullft_assets.errors import WorkloadError

#: Environment variable of CUDA with the GPUs that a process may use, by index or UUID.
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Environment variable with the number of GPUs that all runs on this machine share.
NUM_GPUS = "FULLFT_NUM_GPUS"
#: Exit codes of nvidia-smi where no process can compute on a GPU: none found, no driver, no library of the
#: driver.
_NO_GPU = frozenset({6, 9, 12})
_ASK_SECONDS = 60.0


def shared_gpus() -> list[str]:
    """Return the GPUs that runs on this machine may use, by UUID where nvidia-smi knows it; none without
    nvidia-smi.

    Raises:
        WorkloadError: nvidia-smi failed twice, so that other runs' GPUs would be used.
    """
    visible = os.environ.get(VISIBLE)
    if not shutil.which("nvidia-smi") or (visible is not None and visible.strip() in ("", "-1")):
        return []
    uuids = dict(line.split(", ", 1) for line in _listed().splitlines() if ", " in line)
    if visible is None:
        return list(uuids.values())
    return [
        uuids.get(each.strip(), each.strip()) for each in visible.split(",") if each.strip() not in ("", "-1")
    ]


def _listed() -> str:
    reason = ""
    for _ in range(2):
        try:
            command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
            listed = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_ASK_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            reason = f"no answer within {_ASK_SECONDS:g} s"
            continue
        if listed.returncode == 0:
            return listed.stdout
        if listed.returncode in _NO_GPU:
            return ""
        said = (listed.stdout + listed.stderr).split("\n")
        reason = next((line.strip() for line in said if line.strip()), f"exit code {listed.returncode}")
    raise WorkloadError(
        f"nvidia-smi: {reason}; repair the GPUs of this machine, or set {VISIBLE}= to compute without",
        "infrastructure",
    )
