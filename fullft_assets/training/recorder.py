"""Records a training segment as it goes: each line to the step log and to the trackers, each step to the
progress, with the rates of the last steps.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from fullft_assets.models.hardware import peak_memory_bytes
from fullft_assets.training.checkpoints import StepLog
from fullft_assets.training.feed import sums_between
from fullft_assets.training.trackers import Trackers

if TYPE_CHECKING:
    from fullft_assets.jobs.progress import Progress


#: Steps whose rates are averaged.
_WINDOW = 20


@dataclass(frozen=True)
class ModelShape:
    """The parts of a model that cost FLOP. Embeddings are looked up and not multiplied.

    Attributes:
        num_weights: without embeddings and the output head of a language model.
        num_head_weights: of that head, which is computed where a token is predicted.
    """

    num_weights: int
    num_trained: int
    num_head_weights: int
    num_trained_head_weights: int
    num_layers: int
    hidden: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelShape:
        """Return the shape of a model whose frozen weights are frozen already."""
        head = model.get_output_embeddings()
        head_weights = [] if head is None else list(head.parameters())
        embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        excluded = {
            id(weight)
            for weight in [
                *head_weights,
                *(weight for module in embeddings for weight in module.parameters()),
            ]
        }
        weights = [weight for weight in model.parameters() if id(weight) not in excluded]
        return cls(
            num_weights=sum(weight.numel() for weight in weights),
            num_trained=sum(weight.numel() for weight in weights if weight.requires_grad),
            num_head_weights=sum(weight.numel() for weight in head_weights),
            num_trained_head_weights=sum(weight.numel() for weight in head_weights if weight.requires_grad),
            num_layers=getattr(model.config, "num_hidden_layers", 0),
            hidden=getattr(model.config, "hidden_size", 0),
        )


def step_flops(
    lengths: np.ndarray, num_predicted: np.ndarray, bounds: np.ndarray, shape: ModelShape
) -> np.ndarray:
    """Return the useful FLOP of each optimizer step [steps]: padding and recomputation do not count.

    2 a weight and token forward, 4 more where the weight is trained, and 12 x layers x hidden x length a
    token for attention (Chowdhery et al. 2022, appendix B).

    Args:
        lengths: tokens of each document that attends to itself alone, in the order of training.
        bounds: [steps + 1] the documents of each step.
    """
    sizes = np.asarray(lengths, np.float64)
    flops = (
        sizes * (2 * shape.num_weights + 4 * shape.num_trained)
        + 12 * shape.num_layers * shape.hidden * sizes**2
    )
    flops += np.asarray(num_predicted) * float(
        2 * shape.num_head_weights + 4 * shape.num_trained_head_weights
    )
    return sums_between(flops, bounds)


@dataclass(frozen=True)
class Rates:
    """Rates over the last steps; `mfu` is the share of the card's peak, None where the peak is not known."""

    tokens_per_second: float
    data_wait_share: float
    mfu: float | None


class Meter:
    """Times the steps; the time between them (validation, checkpoints) does not count.

    Args:
        tokens: useful tokens of each step, over all processes.
        flops: useful FLOP of each step, over all processes.
        peak: FLOP/s of all cards together, or None.
    """

    def __init__(self, tokens: np.ndarray, flops: np.ndarray, peak: float | None):
        self._tokens = tokens
        self._flops = flops
        self._peak = peak
        self._recent: deque[tuple[float, float, float, float]] = deque(maxlen=_WINDOW)
        self._waited = 0.0
        self._num_steps = 0
        self._started = time.perf_counter()

    def start(self) -> None:
        """Start to time the next step."""
        self._started, self._waited = time.perf_counter(), 0.0

    def waited(self, seconds: float) -> None:
        """Count time that was spent waiting for the next batches."""
        self._waited += seconds

    def step_done(self, step: int) -> Rates:
        """Return the rates of the last steps, this one (1 = the first) included."""
        now = time.perf_counter()
        if self._num_steps == 1:
            # The first step of a process compiles, allocates and skips what was trained before.
            self._recent.clear()
        self._num_steps += 1
        self._recent.append(
            (now - self._started, self._waited, float(self._tokens[step - 1]), float(self._flops[step - 1]))
        )
        self._started, self._waited = now, 0.0
        seconds, waited, tokens, flops = np.sum(self._recent, axis=0)
        seconds = max(seconds, 1e-9)
        mfu = None if self._peak is None else float(flops / seconds / self._peak)
        return Rates(float(tokens / seconds), float(min(1.0, waited / seconds)), mfu)


#: Metrics of a step that its progress line shows.
_SHOWN = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gib")


class StepRecorder:
    """Writes down the metrics of each step, of each validation and of each event."""

    def __init__(self, log: StepLog, trackers: Trackers, meter: Meter, progress: Progress):
        self.log = log
        self.trackers = trackers
        self.meter = meter
        self.progress = progress
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
