"""The place of this process among those of one training, as torchrun's environment variables give it."""

from __future__ import annotations

import os


def is_first_rank() -> bool:
    """Return whether this process has rank 0, which writes for all; a process without others has it."""
    return int(os.environ.get("RANK", "0")) == 0


def is_first_local_rank() -> bool:
    """Return whether this process is the first one on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def num_ranks() -> int:
    """Return how many processes train together; 1 for a process without others."""
    return int(os.environ.get("WORLD_SIZE", "1"))
