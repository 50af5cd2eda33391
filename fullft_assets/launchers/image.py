"""What the image of a container must have for the workload that was launched in it; the container's first
process looks.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

from fullft_assets.launchers.base import Status


def wrong_version(version: str) -> Status | None:
    """Return the failure of an image with another version, whose settings and keys may mean something
    else.
    """
    installed = importlib.metadata.version("fullft-assets")
    if installed == version:
        return None
    line = (
        f"the image has fullft_assets {installed}, and {version} launched it; set launcher.image to an image"
        " of the same version"
    )
    return Status("failed", line, "settings", is_own_line=True)


def missing_gpus(num_gpus: int, otherwise: str) -> Status | None:
    """Return the failure of an image whose torch does not see a GPU for each process: the work would go on,
    on the CPU.

    Args:
        otherwise: what else the person who launched it may do.
    """
    if num_gpus == 0:
        return None
    # Not here, where torch would stay in memory as long as the job runs.
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.split()
    num_visible = int(answer[-1]) if answer else 0
    if num_visible >= num_gpus:
        return None
    what = (
        "build the image with a torch for CUDA (deploy/docker/Dockerfile says how)"
        if num_visible == 0
        else "lower launcher.processes"
    )
    line = (
        f"torch in the image sees {num_visible} GPUs, and {num_gpus} were to be used here; {what}, "
        f"or {otherwise}"
    )
    return Status("failed", line, "settings", is_own_line=True)
