"""What a training takes: real passes of the sizes that occur, timed on the training machine, and their peak
memory.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fullft_assets.models import layers, precision
from fullft_assets.models.hardware import (
    gpu_name,
    memory_limit,
    num_gpus,
    peak_memory_bytes,
)
from fullft_assets.models.inference import device, move
from fullft_assets.planning import Measured
from fullft_assets.settings import TrainingSettings, UseCaseSettings
from fullft_assets.training import kernels, ranks, regularization, sharding
from fullft_assets.training.optimizers.low_memory import LowMemoryOptimizer
from fullft_assets.training.recipe import Prepared, Recipe
from fullft_assets.training.trainer import accumulation_steps, training_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Passes that are timed, spread over the sizes that occur.
_TIMED_PASSES = 6
#: A training's peak was up to 7% above that of the same passes alone: logs, checkpoints and the memory's
#: pieces come on top.
_MEMORY_MARGIN = 1.08


def measure(recipe: Recipe, use_case: UseCaseSettings, processes: int) -> tuple[Measured, dict[str, Any]]:
    """Time real training passes of the sizes that occur and predict the time of the complete run from them.

    Loading, scoring the validation rows and writing checkpoints are not included. Processes that share the
    model make the passes together, each on the same rows, and the largest memory of them counts.

    Args:
        recipe: the task's, with the rows that train.
        use_case: the settings.
        processes: that share the model; 1 if this process holds all of it.

    Returns:
        The measurements, and what the recipe reports about the training.
    """
    settings, seed = use_case.training, use_case.seed
    model = recipe.load(settings)
    layers.freeze(model, settings)
    # Processes share the passes of training; here each pass is timed alone.
    prepared = kernels.apply(model, recipe.prepare(model, settings, seed, 1), settings)
    feed = prepared.feed
    model.train()
    if processes == 1:
        move(model)
    if settings.compile:
        layers.compile_below_head(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    # Held for their memory alone: copies of the pretrained weights.
    anchors = regularization.anchors(recipe, settings, seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": trained, "lr": 0.0, "weight_decay": 0.0}]
    optimizer = settings.chosen_optimizer.build(groups, settings.weights, settings.max_grad_norm, seed)
    if processes > 1:
        model, optimizer = _shard(model, optimizer, prepared, settings, processes)
    chosen = precision.of(settings)
    seconds_of_passes, seconds_of_a_step = _time_passes(model, optimizer, prepared, chosen)
    del anchors
    num_steps = -(-feed.num_passes // accumulation_steps(settings, 1))
    # Processes on GPUs of their own share the passes; on a CPU they share its cores, as they did here if the
    # model is sharded.
    sharing = processes if processes > 1 else min(use_case.launcher.processes, max(1, num_gpus()))
    measured = Measured(
        num_parameters=model.num_parameters(),
        num_trained_parameters=model.num_parameters(only_trainable=True),
        num_rows=recipe.num_rows,
        num_steps=num_steps,
        num_tokens=int(feed.lengths.sum()),
        num_padded_tokens=int(feed.sizes.sum()),
        predicted_seconds=seconds_of_passes / sharing + num_steps * seconds_of_a_step,
        peak_memory_bytes=int(_MEMORY_MARGIN * ranks.largest(peak_memory_bytes())),
        available_memory_bytes=_available_memory_bytes(processes, use_case.launcher.processes),
        device=gpu_name() or f"CPU {platform.machine()}",
        precision=chosen,
        num_processes=processes,
    )
    return measured, prepared.about


def _shard(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    prepared: Prepared,
    settings: TrainingSettings,
    processes: int,
) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """Return model and optimizer sharded as in training."""
    with tempfile.TemporaryDirectory(prefix="fullft-plan-") as folder:
        arguments = training_arguments(
            settings,
            model,
            Path(folder),
            seed=0,
            num_processes=processes,
            items_a_pass=prepared.feed.items_a_pass,
            num_steps=1,
            resumable=False,
        )
        return sharding.shard(model, optimizer, arguments)


def _time_passes(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, prepared: Prepared, chosen: precision.Precision
) -> tuple[float, float]:
    """Return the seconds of all passes of the feed, interpolated linearly between the sizes that are timed,
    and those of an optimizer step.
    """
    feed = prepared.feed
    by_size = np.argsort(-feed.sizes, kind="stable")
    # The largest pass first: it decides the memory, and warms everything up.
    picks = by_size[
        np.linspace(0, feed.num_passes - 1, min(_TIMED_PASSES, feed.num_passes)).round().astype(int)
    ]
    _timed_pass(model, optimizer, prepared, int(picks[0]), chosen)
    timed = np.array([_timed_pass(model, optimizer, prepared, int(pick), chosen) for pick in picks])
    sizes, which = np.unique(feed.sizes[picks], return_inverse=True)
    seconds = np.bincount(which, timed[:, 0]) / np.bincount(which)
    return float(np.interp(feed.sizes, sizes, seconds).sum()), float(np.median(timed[:, 1]))


def _timed_pass(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    prepared: Prepared,
    number: int,
    chosen: precision.Precision,
) -> tuple[float, float]:
    """Return the seconds of one pass forward and backward, and of one optimizer step."""
    inputs = {name: value.to(device()) for name, value in prepared.feed.batch(number).items()}
    labels = inputs.pop("labels")
    started = _now()

    def make_pass() -> None:
        with precision.autocast(chosen):
            loss = prepared.total_loss(model, inputs, labels) / labels.numel()
        loss.backward()

    if isinstance(optimizer, LowMemoryOptimizer) and optimizer.in_backward:
        if optimizer.measures_first:
            with optimizer.measuring():
                make_pass()
        with optimizer.updating():
            make_pass()
        return _now() - started, 0.0
    make_pass()
    passed = _now()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return passed - started, _now() - passed


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _available_memory_bytes(processes: int, training_processes: int) -> int:
    if torch.cuda.is_available():
        # What others hold there is not free for this training.
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    # Processes share the machine's memory; those that were measured together may run on several hosts.
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if processes > 1 else training_processes
    return memory_limit() // sharing
