"""Refuses, before any work, settings of training that contradict each other or that this machine
cannot run.
"""

from __future__ import annotations

import importlib.util

from fullft_assets.errors import SettingsError
from fullft_assets.models import precision
from fullft_assets.settings import TrainingSettings
from fullft_assets.settings.contradictions import contradictions
from fullft_assets.settings.guards import guard_settings
from fullft_assets.training.trackers import require_trackers


def accumulation_steps(settings: TrainingSettings, num_processes: int) -> int:
    """Return the forward passes of each process in one optimizer step."""
    rows_a_pass = settings.micro_batch_size * num_processes
    if settings.batch_size % rows_a_pass:
        raise SettingsError(
            f"training.batch_size: {settings.batch_size} is not a multiple of micro_batch_size x processes"
            f" ({rows_a_pass})"
        )
    return settings.batch_size // rows_a_pass


def require(settings: TrainingSettings, num_processes: int) -> None:
    """Check what training needs.

    Raises:
        SettingsError: the first problem: the batch cannot be divided, the hardware lacks the precision, two
            settings contradict each other, a package is missing, or a guard is not registered.
    """
    accumulation_steps(settings, num_processes)
    _refuse_contradictions(settings, num_processes)
    computed_in = precision.of(settings)
    if settings.precision == "auto":
        # It is fp16 on older GPUs, which only this machine knows.
        _refuse_contradictions(settings.model_copy(update={"precision": computed_in}), num_processes)
    if settings.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise SettingsError(
            "training.optimizer: adamw_8bit needs bitsandbytes; pip install bitsandbytes, or use adafactor"
        )
    require_trackers(settings.track)
    guard_settings(settings.guards)


def _refuse_contradictions(settings: TrainingSettings, num_processes: int) -> None:
    for key, message in contradictions(settings, num_processes):
        raise SettingsError(f"{'.'.join(key)}: {message}")
