"""The place of this process among those of one training, as torchrun's environment variables give it."""

import os
from collections.abc import Sequence


def is_first_rank() -> bool:
    """Return whether this process has rank 0, which writes for all; a process without others has it."""
    return int(os.environ.get("RANK", "0")) == 0


def is_first_local_rank() -> bool:
    """Return whether this process is the first one on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def num_ranks() -> int:
    """Return how many processes train together; 1 for a process without others."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_local_ranks() -> int:
    """Return how many of these processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks()))


def torchrun_of_hosts(
    hosts: Sequence[str], host: int, processes: int, port: int | str = 29500, patience_seconds: int = 1800
) -> list[str]:
    """Return the arguments of Python that start one host's processes of a training; the workload's own
    follow.

    The first host has rank 0: torchrun's static rendezvous gives ranks by the order of the hosts, whichever
    is there first.

    Args:
        hosts: names or addresses of all hosts, in the same order on each.
        host: place of this one among them.
        processes: on each host.
        port: of the first host, on which they meet.
        patience_seconds: how long they wait for each other: images are pulled and instances started at a
            different pace.
    """
    nodes = ["--nnodes", str(len(hosts)), "--node_rank", str(host), "--nproc_per_node", str(processes)]
    meeting = [
        "--master_addr",
        hosts[0],
        "--master_port",
        str(port),
        "--rdzv_conf",
        f"timeout={patience_seconds}",
    ]
    return ["-m", "torch.distributed.run", *nodes, *meeting]
