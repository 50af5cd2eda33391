"""Memory: what a training will take in each process, and which settings take less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fullft_assets.planning.measurements import Measured
from fullft_assets.settings import Optimizer, PlanningSettings, TrainingSettings
from fullft_assets.settings.contradictions import contradictions
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec

FITS_IN_MEMORY = CheckSpec(
    "fits_in_memory", "A training step fits in the memory that may be used.", blocking=True
)
Weights = Literal["fp32", "bf16"]
#: Rungs of the memory ladder, as (optimizer, weights), from the most memory to the least.
MEMORY_LADDER: tuple[tuple[Optimizer, Weights], ...] = (
    ("adamw", "fp32"),
    ("adamw_in_backward", "fp32"),
    ("adafactor", "fp32"),
    ("adamw", "bf16"),
    ("adamw_in_backward", "bf16"),
    ("adafactor_in_backward", "fp32"),
    ("adafactor_in_backward", "bf16"),
)
_GIB = 2**30


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of a training, in bytes.

    Attributes:
        peak: of each process on the device that computes: on the accelerator, if there is one.
        host: of all processes in the host's memory, if the accelerator has its own memory.
        origin: how the peak was estimated, for the check's description; empty if it was measured.
    """

    peak: int
    state: int
    host: int = 0
    origin: str = ""

    def fits(self, limit: int, host_limit: int | None) -> bool:
        """Return whether the peak is within the limit, and the host's part within the host's memory."""
        return self.peak <= limit and (host_limit is None or self.host <= host_limit)


def bytes_per_weight(weights: Weights) -> int:
    """Return the bytes of one weight in this format."""
    return 4 if weights == "fp32" else 2


def state_bytes(optimizer: Optimizer, weights: Weights = "fp32") -> int:
    """Return the bytes of state for each parameter in training: the weight, its gradient and its moments.

    Small parts are not counted: the largest single gradient of a step in the backward pass, and Adafactor's
    row and column means.
    """
    width = bytes_per_weight(weights)
    moments = {"adamw": 2 * width, "adamw_in_backward": 2 * width, "adamw_8bit": 2}.get(optimizer, 0)
    gradient = 0 if TrainingSettings.model_construct(optimizer=optimizer).steps_in_backward else width
    return width + gradient + moments


def total_state_bytes(measured: Measured, training: TrainingSettings) -> int:
    """Return the bytes of all weights, and of the gradients and moments of those that are trained."""
    width = bytes_per_weight(training.weights)
    return (
        width * measured.num_parameters
        + (state_bytes(training.optimizer, training.weights) - width) * measured.num_trained_parameters
    )


def memory_check(
    measured: Measured, settings: PlanningSettings, training: TrainingSettings, processes: int
) -> tuple[MemoryEstimate, CheckOutcome]:
    """Return the estimated memory of a training, and the gate on it: red with the settings that would take
    less.
    """
    limit = _limit(measured, settings, processes)
    estimate = estimate_memory(measured, activation_bytes(measured, training), training, processes)
    description = f"peak {estimate.peak / _GIB:.2f} GiB of {limit / _GIB:.2f} GiB{estimate.origin}"
    metadata = {"peak_memory_gib": estimate.peak / _GIB, "memory_limit_gib": limit / _GIB}
    if estimate.host and measured.host_memory_bytes is not None:
        description += (
            f"; {estimate.host / _GIB:.2f} GiB of the host's {measured.host_memory_bytes / _GIB:.2f} GiB"
        )
        metadata["host_memory_gib"] = estimate.host / _GIB
    passed = estimate.fits(limit, measured.host_memory_bytes)
    if not passed:
        # A step in the backward pass takes the full batch.
        rows = (
            "training.batch_size and micro_batch_size"
            if training.steps_in_backward
            else "training.micro_batch_size"
        )
        description += f"; lower {rows} or set training.gradient_checkpointing" + next_rung(
            measured, training, limit, processes
        )
    return estimate, CheckOutcome(
        name=FITS_IN_MEMORY.name, passed=passed, description=description, metadata=metadata
    )


def activation_bytes(measured: Measured, training: TrainingSettings) -> int:
    """Return the bytes of the measured peak beside weights, gradients and moments."""
    if (
        measured.num_processes > 1
        and training.sharding == "fsdp2_offload"
        and measured.host_memory_bytes is not None
    ):
        return measured.peak_memory_bytes
    return measured.peak_memory_bytes - total_state_bytes(measured, training) // measured.num_processes


def estimate_memory(
    measured: Measured, activations: int, training: TrainingSettings, processes: int
) -> MemoryEstimate:
    """Return the peak memory of a training, from a measured run with other settings.

    Args:
        measured: a run in one process that holds the full model, or in processes that share it.
    """
    state = total_state_bytes(measured, training)
    all_weights = bytes_per_weight(training.weights) * measured.num_parameters
    has_own_memory = measured.host_memory_bytes is not None
    origin = f" in each of {processes} processes, which share weights, gradients and moments"
    if measured.num_processes == 1:
        origin = (
            " in each process, estimated: one process with the full model was measured at"
            f" {measured.peak_memory_bytes / _GIB:.2f} GiB; {processes} share its weights, gradients and"
            " moments"
        )
    if training.sharding == "fsdp2_offload" and has_own_memory:
        # The full weights pass through the accelerator once, before training.
        return MemoryEstimate(
            max(activations, all_weights), 0, state, f"{origin}, which are kept in the host's memory"
        )
    if training.sharding != "none":
        return MemoryEstimate(activations + state // processes, state // processes, 0, origin)
    buckets = _gradient_buckets(measured, training, processes)
    stepping = activations + state + buckets
    origin = (
        f" in each of {processes} processes, estimated: measured in one, plus {buckets / _GIB:.2f} GiB to sum"
        " the gradients"
        if buckets
        else ""
    )
    if training.wise_ft and has_own_memory:
        # Only the first process interpolates.
        return MemoryEstimate(stepping, state, 2 * all_weights, origin)
    # Gradients and moments are freed before the interpolation.
    interpolating = activations + buckets + 3 * all_weights if training.wise_ft else 0
    if interpolating <= stepping:
        return MemoryEstimate(stepping, state, 0, origin)
    return MemoryEstimate(
        interpolating,
        state,
        0,
        ", estimated: training.wise_ft holds three copies of the weights, one of them the base model's",
    )


def next_rung(measured: Measured, training: TrainingSettings, limit: int, processes: int = 1) -> str:
    """Return `; or set training.optimizer: ...` for the first lower rung of the memory ladder that would fit,
    or an empty string.

    Rungs that contradict another setting are skipped. A rung that cannot accumulate gradients is named
    without a peak if its passes would be larger than the measured ones. The last rung is the host's memory.
    """
    activations = activation_bytes(measured, training)
    current = estimate_memory(measured, activations, training, processes).state
    for optimizer, weights in MEMORY_LADDER:
        rung = training.model_copy(update={"optimizer": optimizer, "weights": weights})
        estimate = estimate_memory(measured, activations, rung, processes)
        if estimate.state >= current or not estimate.fits(limit, measured.host_memory_bytes):
            continue
        if (rung.precision, weights, measured.precision) == ("auto", "fp32", "fp16"):
            rung = rung.model_copy(update={"precision": "fp16"})
        has_larger_passes = rung.steps_in_backward and rung.micro_batch_size != rung.batch_size
        if has_larger_passes:
            rung = rung.model_copy(update={"micro_batch_size": rung.batch_size})
        if any(contradictions(rung, processes)):
            continue
        changes = f"training.optimizer: {optimizer}" + (
            " and training.weights: bf16" if weights == "bf16" else ""
        )
        if has_larger_passes:
            return (
                f"; or set {changes} with training.micro_batch_size: {rung.batch_size}, whose passes are"
                " larger than those measured"
            )
        return f"; or set {changes} (about {estimate.peak / _GIB:.2f} GiB)"
    return _offloading(measured, activations, training, limit, processes)


def _offloading(
    measured: Measured, activations: int, training: TrainingSettings, limit: int, processes: int
) -> str:
    """Return the advice to keep the state in the host's memory if that fits and contradicts no setting, or an
    empty string.
    """
    changes = {"sharding": "fsdp2_offload", "optimizer": "adamw", "weights": "fp32"}
    rung = training.model_copy(update=changes)
    estimate = estimate_memory(measured, activations, rung, processes)
    is_possible = (
        measured.host_memory_bytes is not None
        and training.sharding != "fsdp2_offload"
        and measured.precision != "fp16"
    )
    if (
        not is_possible
        or not estimate.fits(limit, measured.host_memory_bytes)
        or any(contradictions(rung, processes))
    ):
        return ""
    changed = " and ".join(
        f"training.{name}: {value}" for name, value in changes.items() if getattr(training, name) != value
    )
    return (
        f"; or set {changed} (about {estimate.peak / _GIB:.2f} GiB, and {estimate.host / _GIB:.2f} GiB of the"
        " host's memory)"
    )


def _gradient_buckets(measured: Measured, training: TrainingSettings, processes: int) -> int:
    """Return the bytes of the buckets in which unsharded processes sum their gradients (DDP): a second copy
    of these.
    """
    if training.sharding != "none" or processes == 1:
        return 0
    return bytes_per_weight(training.weights) * measured.num_trained_parameters


def _limit(measured: Measured, settings: PlanningSettings, processes: int) -> int:
    """Return the bytes that each process may take. On a CPU, processes share the memory; if they were
    measured together, they did so then.
    """
    limit = measured.available_memory_bytes
    if measured.host_memory_bytes is None and measured.num_processes == 1:
        limit //= processes
    return limit if settings.max_memory_gib is None else min(limit, int(settings.max_memory_gib * _GIB))
