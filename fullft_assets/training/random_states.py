"""The state of the random number generators of a process: for a pass that is made twice, and for a
checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def current() -> dict[str, Any]:
    """Return the state of this process's generators, of a GPU that of its own; `torch.load` reads it as
    weights only.
    """
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore(state: Mapping[str, Any]) -> None:
    """Set the generators back to a `current` state; a GPU's stays where the state is of a process without
    one.
    """
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
