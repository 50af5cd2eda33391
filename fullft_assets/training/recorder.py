"""Records a training segment as it goes: each line to the step log and to the trackers, each step to the
progress.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from fullft_assets.models.hardware import peak_memory_bytes
from fullft_assets.training.checkpoints import StepLog
from fullft_assets.training.throughput import Meter
from fullft_assets.training.trackers import Trackers

if TYPE_CHECKING:
    from fullft_assets.jobs.progress import Progress

#: Metrics of a step that its progress line shows.
_SHOWN = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gib")


class StepRecorder:
    """Writes down the metrics of each step, of each validation and of each event."""

    def __init__(self, log: StepLog, trackers: Trackers, meter: Meter, progress: Progress):
        self.log, self.trackers, self.meter, self.progress = log, trackers, meter, progress
        self._started = time.monotonic()

    def start(self) -> None:
        """Start to count the training time."""
        self._started = time.monotonic()
        self.meter.start()

    @property
    def seconds(self) -> float:
        """Training seconds so far, those of earlier segments included."""
        return self.log.seconds_before + time.monotonic() - self._started

    def record(self, line: dict[str, Any]) -> None:
        """Write one line, which has a `step`."""
        self.log.append(line)
        self.trackers.log(line)

    def record_step(
        self, step: int, num_steps: int, logs: dict[str, Any], *, is_fp16: bool
    ) -> dict[str, Any]:
        """Write the line of an optimizer step and report it; return the line."""
        rates = self.meter.step_done(step)
        norm = logs.get("grad_norm")
        # In fp16 the loss scaler tries a scale, skips the step that overflows, and lowers the scale: this is
        # not a divergence.
        if is_fp16 and norm is not None and not math.isfinite(norm):
            norm = None
        line = {
            "step": step,
            "loss": logs["loss"],
            "grad_norm": norm,
            "learning_rate": logs["learning_rate"],
            "tokens_per_second": round(rates.tokens_per_second, 1),
            "memory_gib": round(peak_memory_bytes() / 2**30, 3),
            "seconds": round(self.seconds, 3),
        }
        if rates.mfu is not None:
            line["mfu"] = round(rates.mfu, 4)
        if torch.cuda.is_available():
            line["data_wait_share"] = round(rates.data_wait_share, 4)
        self.record(line)
        self.progress.step(step, num_steps, **{name: line[name] for name in _SHOWN})
        return line
