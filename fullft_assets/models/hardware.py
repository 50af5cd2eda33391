"""The hardware of this machine: its GPUs, their peak rates, the memory that a process took. Importing it
loads no torch.
"""

import ctypes
import gc
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

#: Environment variable with the number of GPUs that all runs on this machine share.
NUM_GPUS = "FULLFT_NUM_GPUS"
#: Dense peak of one card in FLOP/s by part of its name: (bf16 or fp16, fp32). From the makers' data sheets.
#: The first match counts, so narrower names come first.
_PEAKS = (
    ("B200", 2250e12, 75e12),
    ("GH200", 989e12, 67e12),
    ("H200", 989e12, 67e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("A10G", 70e12, 31e12),
    ("A10", 125e12, 31e12),
    ("A40", 150e12, 37e12),
    ("A30", 165e12, 10.3e12),
    ("L40S", 362e12, 91.6e12),
    ("L40", 181e12, 90.5e12),
    ("L4", 121e12, 30.3e12),
    ("RTX A6000", 155e12, 38.7e12),
    ("RTX 4090", 165e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
    ("V100", 125e12, 15.7e12),
    ("T4", 65e12, 8.1e12),
    ("MI300X", 1307e12, 163e12),
    ("MI250X", 383e12, 48e12),
)


def peak_flops(device: str, precision: str) -> float | None:
    """Return the dense peak of a card in FLOP/s; None where it is not known, as for every CPU.

    Args:
        precision: fp32, bf16 or fp16.
    """
    return next(
        (single if precision == "fp32" else half for name, half, single in _PEAKS if name in device), None
    )


@cache
def has_flash_attention() -> bool:
    """Return whether torch's flash attention runs on the GPU of this process: from NVIDIA's Ampere on."""
    import torch

    return torch.cuda.get_device_capability() >= (8, 0)


def local_hardware() -> dict[str, Any]:
    """Return the number of processors and the names of the GPUs of this machine."""
    gpus: list[str] = []
    if shutil.which("nvidia-smi"):
        names = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        gpus = names.stdout.split("\n")[:-1] if names.returncode == 0 else []
    return {"cpus": os.cpu_count(), "gpus": gpus}


def num_gpus() -> int:
    """Return how many GPUs of this machine the runs have, of which this process may see a part (see
    `launch.leases`).
    """
    import torch

    return int(os.environ.get(NUM_GPUS) or torch.accelerator.device_count())


def of_accelerator(name: str) -> Callable[..., Any] | None:
    """Return a function of the module of torch for this machine's kind of accelerator, such as `torch.cuda`
    or `torch.xpu`; None on a CPU, and where the kind has no such function.
    """
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    return None if kind is None else getattr(torch.get_device_module(kind), name, None)


def gpu_name() -> str | None:
    """Return the name of the GPU that this process computes on; None on a CPU."""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    get_name = of_accelerator("get_device_name")
    return get_name() if get_name is not None else None if kind is None else kind.type


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: the accelerator's, or on a CPU the resident set."""
    if (allocated := of_accelerator("max_memory_allocated")) is not None:
        return allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes of the host's memory this process and its like may take together.

    It is what other processes leave of the machine's memory, and of the limit of the process's control group,
    which a container has (version 2). Files that the kernel keeps in memory give way, so they do not count.
    """
    import psutil

    own_bytes = psutil.Process().memory_info().rss
    free = psutil.virtual_memory().available + own_bytes
    with suppress(OSError):
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        if limit.isdigit():  # else it is "max"
            free = min(free, int(limit) - max(0, used - int(statistics.get("inactive_file", 0)) - own_bytes))
    return max(0, free)


def free_memory() -> None:
    """Return unused memory to the system: torch and the C library keep it, in pieces that the next allocation
    may not fit into.
    """
    gc.collect()
    if (empty_cache := of_accelerator("empty_cache")) is not None:
        empty_cache()
    # Not every C library has it.
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
