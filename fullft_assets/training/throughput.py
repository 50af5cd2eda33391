"""How fast a run trains: useful FLOP of each step, and rates over the last steps."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from fullft_assets.training.feed import sums_between

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
    found = (
        sizes * (2 * shape.num_weights + 4 * shape.num_trained)
        + 12 * shape.num_layers * shape.hidden * sizes**2
    )
    found += np.asarray(num_predicted) * float(
        2 * shape.num_head_weights + 4 * shape.num_trained_head_weights
    )
    return sums_between(found, bounds)


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
        self._tokens, self._flops, self._peak = tokens, flops, peak
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
            self._recent.clear()  # The first step of a process compiles, allocates and skips what was trained before.
        self._num_steps += 1
        self._recent.append(
            (now - self._started, self._waited, float(self._tokens[step - 1]), float(self._flops[step - 1]))
        )
        self._started, self._waited = now, 0.0
        seconds, waited, tokens, flops = np.sum(self._recent, axis=0)
        seconds = max(seconds, 1e-9)
        mfu = None if self._peak is None else float(flops / seconds / self._peak)
        return Rates(float(tokens / seconds), float(min(1.0, waited / seconds)), mfu)
