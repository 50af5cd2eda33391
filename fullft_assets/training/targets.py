"""The plan on this machine and on others, from a recipe whose model has no weights here."""

from __future__ import annotations

import os
from typing import Literal, cast

import psutil
import torch

from fullft_assets.models import precision
from fullft_assets.models.hardware import gpu_name, memory_limit, num_gpus, peak_flops
from fullft_assets.models.precision import Precision
from fullft_assets.planning.measurements import StepMemory, Work
from fullft_assets.planning.target_plans import (
    Extent,
    TargetPlan,
    plan_target,
    plan_targets,
    rung_table,
    shares,
)
from fullft_assets.planning.targets import Target
from fullft_assets.settings import TrainingSettings, UseCaseSettings
from fullft_assets.training.outline import Outline
from fullft_assets.training.recipe import Recipe

#: Floating-point operations a second that training reaches on one CPU core (MiniLM in fp32 reached 70e9).
_CPU_CORE_FLOPS = 60e9
#: How far a CPU's speed strays from what is assumed of it.
_CPU_SPREAD = (0.4, 1.5)


class TargetPlanner:
    """Plans a training on machines that are not there.

    Args:
        num_held_out_rows: validation and test rows.
    """

    def __init__(self, recipe: Recipe, settings: UseCaseSettings, num_held_out_rows: int):
        self._settings = settings = settings.with_epochs(recipe.num_rows)
        self._outline = Outline(recipe, settings.training, settings.seed)
        self._num_rows, self._num_held_out_rows = recipe.num_rows, num_held_out_rows

    def work(self) -> Work:
        """Return what the training computes.

        Raises:
            CannotCount: the model cannot be outlined.
        """
        return self._outline.work()

    def plans(self, measured_speed: float | None) -> list[TargetPlan]:
        """Return the plan on each target, this machine first.

        Args:
            measured_speed: useful FLOP/s that a training of this use case reached here. Default: an
                assumption.

        Raises:
            CannotCount: the model cannot be outlined.
        """
        here = this_machine(self._settings, measured_speed)
        return plan_targets(
            self._settings,
            here,
            self._extent(),
            self._count,
            here_precision=precision.of(self._settings.training),
        )

    def rungs(self) -> list[dict[str, str]]:
        """Return the memory of a process on a GPU at each rung of the memory ladder, a row of text each.

        Raises:
            CannotCount: the model cannot be outlined.
        """
        return rung_table(self._settings.training, self._count)

    def plan_here(self) -> TargetPlan:
        """Return the plan on this machine alone."""
        extent = self._extent()
        here, parts = (
            this_machine(self._settings, None),
            shares(self._settings, self._num_rows, self._num_held_out_rows),
        )
        return plan_target(
            here, self._settings, extent, parts, self._count, precision=precision.of(self._settings.training)
        )

    def _extent(self) -> Extent:
        return Extent(
            work=self.work(), num_training_rows=self._num_rows, num_held_out_rows=self._num_held_out_rows
        )

    def _count(
        self, settings: TrainingSettings, computed_in: str, is_gpu: bool, processes: int
    ) -> StepMemory:
        return self._outline.memory(
            settings, cast(Precision, computed_in), is_gpu=is_gpu, processes=processes
        )


def this_machine(settings: UseCaseSettings, measured_speed: float | None) -> Target:
    """Return this machine: its GPU, or its CPU, with the memory that is free on it now."""
    name = gpu_name()
    hourly_usd = settings.planning.hourly_usd
    speed = None if measured_speed is None else (measured_speed, measured_speed)
    if name is not None:
        computed_in: Literal["bf16", "fp16"] = "bf16"
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        return Target(
            name="this machine",
            gpu=name,
            gpus=num_gpus(),
            memory_bytes=free,
            flops=peak_flops(name, computed_in),
            speed=speed,
            is_measured=speed is not None,
            hourly_usd=hourly_usd,
            kind="here",
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assumed = cores * _CPU_CORE_FLOPS
    return Target(
        name=f"this machine ({os.cpu_count()} CPUs)",
        memory_bytes=memory_limit(),
        libraries_bytes=psutil.Process().memory_info().rss,
        speed=speed or (_CPU_SPREAD[0] * assumed, _CPU_SPREAD[1] * assumed),
        is_measured=speed is not None,
        hourly_usd=hourly_usd,
        kind="here",
    )
