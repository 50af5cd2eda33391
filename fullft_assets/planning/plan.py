"""The plan of a training, and the gates on it: does it fit, and is it within the budget of time and price;
and how long it takes to stop. Memory is that of a training step whose tensors were counted, on a GPU or a
CPU.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fullft_assets.planning.metadata import Measured, PlanMetadata, StepMemory
from fullft_assets.planning.pilot import PILOT_PREDICTS_GAIN
from fullft_assets.settings import PlanningSettings, TrainingSettings
from fullft_assets.settings.optimizers import OPTIMIZERS, Weights, bytes_per_weight
from fullft_assets.store import CheckOutcome, Manifest
from fullft_assets.store.checks import CheckSpec

FITS_IN_MEMORY = CheckSpec(
    "fits_in_memory", "A training step fits in the memory that may be used.", blocking=True
)
#: Rungs of the memory ladder, as (optimizer, weights), from the most memory to the least.
MEMORY_LADDER: tuple[tuple[str, Weights], ...] = (
    ("adamw", "fp32"),
    ("adafactor", "fp32"),
    ("adamw", "bf16"),
    ("adafactor_in_backward", "fp32"),
    ("adafactor", "bf16"),
    ("adafactor_in_backward", "bf16"),
)
GIB = 2**30
#: A CPU's allocator keeps pieces of freed memory that later tensors do not fit into, and matrix
#: multiplications have work space of their own.
_CPU_MARGIN = 1.05
_CPU_FIXED = 100 * 2**20
#: A GPU's allocator rounds and splits blocks, cuBLAS has workspaces. An assumption: no GPU was at hand to
#: measure it.
_GPU_MARGIN = 1.06
_GPU_FIXED = 200 * 2**20
#: Memory of a card that the driver's context and the communication of several cards take.
GPU_CONTEXT_BYTES = 2**30


def peak_on_cpu(step: StepMemory, libraries: int) -> int:
    """Return the resident bytes of a training process on a CPU.

    Args:
        libraries: resident bytes of the process before the model is loaded.
    """
    # Nothing is reused between what passes and what stays: the blocks of passing tensors are not returned to
    # the system.
    return int(libraries + _CPU_MARGIN * (step.state + step.activations) + _CPU_FIXED)


def peak_on_gpu(step: StepMemory, processes: int = 1, *, is_sharded: bool = False) -> int:
    """Return the bytes that the allocator of each GPU needs.

    Args:
        processes: one for each GPU. Without sharding each sums its gradients in buckets, a second copy of
            these (DDP).
        is_sharded: whether the processes share the model, as they did where the step was counted (FSDP2).
    """
    return int(
        _GPU_MARGIN * (step.peak + (step.gradients if processes > 1 and not is_sharded else 0)) + _GPU_FIXED
    )


def state_bytes(optimizer: str, weights: Weights = "fp32") -> int:
    """Return the bytes of state for each parameter in training: the weight, its gradient and its moments.

    Small parts are not counted: the largest single gradient of a step in the backward pass, and Adafactor's
    row and column means.
    """
    implementation = OPTIMIZERS.get(optimizer)
    gradient = 0 if implementation.steps_in_backward else bytes_per_weight(weights)
    return bytes_per_weight(weights) + gradient + implementation.state_bytes(weights)


def total_state_bytes(num_parameters: int, num_trained: int, training: TrainingSettings) -> int:
    """Return the bytes of all weights, and of the gradients and moments of those that are trained."""
    width = bytes_per_weight(training.weights)
    return width * num_parameters + (state_bytes(training.optimizer, training.weights) - width) * num_trained


def copies_bytes(num_parameters: int, num_trained: int, training: TrainingSettings) -> int:
    """Return the bytes of what a training keeps of the base model: the teacher's weights, those that trained
    weights are pulled to, and their importance.
    """
    num_taught = 0 if training.distillation is None else num_parameters
    num_pulled = num_trained * (bool(training.l2_sp or training.ewc) + bool(training.ewc))
    return bytes_per_weight(training.weights) * (num_taught + num_pulled)


def fitting_note(fitting: Mapping[str, Any]) -> str:
    """Return the end of a sentence that names changes of `training` with which it is counted to fit."""
    changes = [f"training.{name}: {value}" for name, value in fitting.items()]
    return f"; these are counted to fit: {', '.join(changes)}" if changes else ""


def memory_check(
    measurement: Measured,
    settings: PlanningSettings,
    training: TrainingSettings,
    processes: int,
    fitting: Mapping[str, Any],
) -> tuple[int, CheckOutcome]:
    """Return the peak memory of each process in bytes, and the gate on it.

    Args:
        fitting: see `plan.plan_checks`.
    """
    most_gib = math.inf if settings.max_memory_gib is None else settings.max_memory_gib
    limit = min(measurement.available_memory_bytes, most_gib * GIB)
    state = total_state_bytes(measurement.num_parameters, measurement.num_trained_parameters, training)
    peak = measurement.peak_memory_bytes
    num_parts = measurement.num_processes
    note = ""
    if processes > 1 and training.sharding == "none":
        # Each process sums its gradients in buckets: a second copy of these (DDP).
        peak += bytes_per_weight(training.weights) * measurement.num_trained_parameters
        note = f" in each of {processes} processes: measured in one, and what sums the gradients"
    elif processes > 1 and num_parts == 1:
        num_parts = processes
        divided = state + copies_bytes(
            measurement.num_parameters, measurement.num_trained_parameters, training
        )
        peak -= divided - divided // num_parts
        note = (
            f" in each process, estimated: one with the full model was measured, and {processes} share its"
            " weights, gradients and moments"
        )
    if training.wise_ft and measurement.device.startswith("CPU"):
        # Interpolation holds three copies of the weights where gradients and moments were.
        copies = 3 * bytes_per_weight(training.weights) * measurement.num_parameters
        peak += max(0, copies - state) // num_parts
        note = ", with training.wise_ft"
    description = f"peak {peak / GIB:.2f} GiB of {limit / GIB:.2f} GiB{note}"
    is_enough = peak <= limit
    if not is_enough:
        # A step in the backward pass takes the full batch.
        rows = "batch_size and micro_batch_size" if training.steps_in_backward else "micro_batch_size"
        description += f"; lower training.{rows}, or set training.gradient_checkpointing"
        description += fitting_note(fitting)
    return peak, CheckOutcome(
        name=FITS_IN_MEMORY.name,
        passed=is_enough,
        description=description,
        metadata={"peak_memory_gib": peak / GIB, "memory_limit_gib": limit / GIB},
    )


WITHIN_BUDGET = CheckSpec("within_budget", "The planned time and price are within the limits.", blocking=True)
#: Assumed speed at which a disk takes a checkpoint: a gp3 volume of EC2 without extra throughput.
_SAVED_BYTES_PER_SECOND = 125 * 2**20


def budget_check(hours: float, settings: PlanningSettings, trainings: float = 1.0) -> CheckOutcome:
    """Return the gate on the time of a training, and on the price of a model.

    Args:
        trainings: what a model takes with its pilot, baselines and evaluation, in trainings.
    """
    usd = hours * trainings * settings.hourly_usd
    parts = " with pilot, baselines and evaluation" if trainings > 1 else ""
    breaches = []
    if hours > settings.max_hours:
        breaches.append(f"{hours:.2f} hours planned, planning.max_hours is {settings.max_hours:g}")
    if settings.max_usd is not None and usd > settings.max_usd:
        breaches.append(f"{usd:.2f} USD planned{parts}, planning.max_usd is {settings.max_usd:g}")
    return CheckOutcome(
        name=WITHIN_BUDGET.name,
        passed=not breaches,
        description=(
            f"{'; '.join(breaches)}; lower training.epochs or snapshot.max_train_rows, or raise the limit"
            if breaches
            else f"{hours * 60:.1f} minutes, {usd:.2f} USD{parts}"
        ),
        metadata={"planned_hours": hours, "planned_usd": usd},
    )


def stop_seconds(measurement: Measured, training: TrainingSettings) -> float:
    """Return the seconds from a request to stop to the checkpoint: the current step, and saving weights and
    moments to a slow disk.
    """
    weights = bytes_per_weight(training.weights) * measurement.num_parameters
    moments = training.chosen_optimizer.state_bytes(training.weights) * measurement.num_trained_parameters
    step_seconds = measurement.predicted_seconds / max(1, measurement.num_steps)
    return step_seconds + (weights + moments) / _SAVED_BYTES_PER_SECOND


def stop_note(seconds: float, grace_seconds: float) -> str:
    """Return a warning if stopping may take longer than the launcher waits, or an empty string."""
    return (
        ""
        if seconds <= grace_seconds
        else (
            f"a request to stop may take {seconds:,.0f} s to its checkpoint (the current step, and the save),"
            f" but launcher.grace_seconds kills after {grace_seconds:g}; set {math.ceil(2 * seconds):,}, or"
            " lower training.batch_size"
        )
    )


VERSION = "23"
PLAN_CHECKS = (FITS_IN_MEMORY, WITHIN_BUDGET)
#: It does not block: a refusal is an answer, so the run goes on to its end, without training.
PILOT_CHECKS = (PILOT_PREDICTS_GAIN,)


def plan_checks(
    measurement: Measured,
    settings: PlanningSettings,
    training: TrainingSettings | None = None,
    processes: int = 1,
    *,
    trainings: float = 1.0,
    fitting: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[PlanMetadata, list[CheckOutcome]]:
    """Return the plan and the gates on memory, time and price.

    Args:
        training: the settings that were measured. Default: the default settings.
        processes: number of processes that will train.
        trainings: what a model takes with its pilot, baselines and evaluation, in trainings.
        fitting: changes of `training` with which a training is counted to fit, for a red gate to name.
    """
    training = training or TrainingSettings()
    hours = measurement.predicted_seconds / 3600
    peak, fits_in_memory = memory_check(measurement, settings, training, processes, fitting)
    return PlanMetadata(
        **measurement.model_dump(),
        planned_hours=hours,
        planned_usd=hours * settings.hourly_usd,
        peak_memory_gib=peak / GIB,
        state_memory_gib=total_state_bytes(
            measurement.num_parameters, measurement.num_trained_parameters, training
        )
        / measurement.num_processes
        / GIB,
        stop_seconds=stop_seconds(measurement, training),
        padding_share=1 - measurement.num_tokens / measurement.num_padded_tokens,
    ), [fits_in_memory, budget_check(hours, settings, trainings)]


def refusal(pilot: Manifest) -> str | None:
    """Return why a pilot refuses the training; None where it does not."""
    check = pilot.check(PILOT_PREDICTS_GAIN.name)
    return f"not trained: {pilot.stage}.{check.name} is red: {check.description}" if check.is_red else None
