"""The CPU cores of this machine that this process may use, and the threads that torch computes with on them.

This file stays light: the supervisor of a local workload imports it, and must start fast.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

#: Environment variable of OpenMP with the number of threads of each process.
THREADS = "OMP_NUM_THREADS"


def allowed_cores() -> list[int]:
    """Return the numbers of the cores that this process may run on."""
    return (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return the allowed cores, at most as many as the time that the control group, such as a container, has
    of them; at least one.
    """
    cores = allowed_cores()
    limit = _quota(cgroup)
    return cores if limit is None else cores[: max(1, math.ceil(limit))]


def threads_of_process(environment: Mapping[str, str]) -> int | None:
    """Return how many threads the environment gives each process; None if it leaves that to torch."""
    number = re.match(r"\s*(\d+)", environment.get(THREADS, ""))
    return max(1, int(number[1])) if number else None


def _quota(cgroup: Path) -> float | None:
    """Return how many cores' time a control group has (v2: cpu.max, v1: cpu.cfs_quota_us); None without a
    limit.
    """
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such file, or `max`
        return None
