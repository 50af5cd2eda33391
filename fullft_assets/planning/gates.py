"""planning: does it fit, what will it cost, and does a pilot predict a gain over the cheaper ways.

The figures are measured by the planning workload on the machine that will train; what follows from
them is decided here, in plain functions.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from fullft_assets.errors import SettingsError
from fullft_assets.settings import Optimizer, PlanningSettings, TrainingSettings
from fullft_assets.settings.contradictions import contradictions
from fullft_assets.store import CheckOutcome

VERSION = "6"
#: Largest exponent of a learning curve: what theory allows and more than was ever measured (Hestness et al. 2017, sections 3 and 4).
_STEEPEST = 0.5
#: Rungs of the memory ladder, as (optimizer, weights), from what takes most to what takes least.
RUNGS: tuple[tuple[Optimizer, Literal["fp32", "bf16"]], ...] = (
    ("adamw", "fp32"),
    ("adamw_in_backward", "fp32"),
    ("adafactor", "fp32"),
    ("adamw", "bf16"),
    ("adamw_in_backward", "bf16"),
    ("adafactor_in_backward", "fp32"),
    ("adafactor_in_backward", "bf16"),
)

#: At which a disk is supposed to take a checkpoint: what a gp3 volume of EC2 has without paying for more.
_SAVED_BYTES_A_SECOND = 125 * 2**20


class Measured(BaseModel):
    """What the planning workload measured with real training steps.

    Attributes:
        num_trained_parameters: those that are not frozen. None: all.
        host_memory_bytes: of the machine, where the accelerator has memory of its own.
        num_processes: that shared the model as they were measured; the figures of memory are of each.
    """

    model_config = ConfigDict(frozen=True)

    num_parameters: int
    num_rows: int
    num_steps: int
    num_tokens: int
    num_padded_tokens: int
    predicted_seconds: float
    peak_memory_bytes: int
    available_memory_bytes: int
    device: str
    precision: str
    num_trained_parameters: int | None = None
    host_memory_bytes: int | None = None
    num_processes: int = 1

    @property
    def trained(self) -> int:
        """Parameters that are not frozen."""
        return self.num_parameters if self.num_trained_parameters is None else self.num_trained_parameters


class Point(BaseModel):
    """Validation score after training on a number of rows."""

    model_config = ConfigDict(frozen=True)

    rows: int
    score: float


class Prediction(BaseModel):
    """What the pilot's learning curve promises at the planned number of rows."""

    model_config = ConfigDict(frozen=True)

    points: list[Point]
    target_rows: int
    predicted: float
    low: float
    high: float


def hardware() -> dict[str, Any]:
    """Return what a measured plan is valid for: processors and GPUs of this machine."""
    gpus: list[str] = []
    if shutil.which("nvidia-smi"):
        names = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False)
        gpus = names.stdout.split("\n")[:-1] if names.returncode == 0 else []
    return {"cpus": os.cpu_count(), "gpus": gpus}


def state_bytes(optimizer: Optimizer, weights: Literal["fp32", "bf16"] = "fp32") -> int:
    """Return the bytes a parameter that training holds beside the activations: the weight, its gradient and its moments.

    Left out is what is small: the largest single gradient of a step in the backward pass, and Adafactor's row and column means.
    """
    width = 4 if weights == "fp32" else 2
    moments = {"adamw": 2 * width, "adamw_in_backward": 2 * width, "adamw_8bit": 2}.get(optimizer, 0)
    gradient = 0 if TrainingSettings.model_construct(optimizer=optimizer).steps_in_backward else width
    return width + gradient + moments


def _state(measured: Measured, optimizer: Optimizer, weights: Literal["fp32", "bf16"]) -> int:
    """Return the bytes of all weights, and of the gradients and moments of those that are trained."""
    of_weight = 4 if weights == "fp32" else 2
    return of_weight * measured.num_parameters + (state_bytes(optimizer, weights) - of_weight) * measured.trained


def stop_seconds(measured: Measured, training: TrainingSettings) -> float:
    """Return how long a request to stop may take to its checkpoint: the step under way, as measured, and weights and moments on a slow disk."""
    width = 4 if training.weights == "fp32" else 2
    moments = state_bytes(training.optimizer, training.weights) - width * (1 if training.steps_in_backward else 2)
    saved = width * measured.num_parameters + moments * measured.trained
    return measured.predicted_seconds / max(1, measured.num_steps) + saved / _SAVED_BYTES_A_SECOND


def stop_note(seconds: float, grace_seconds: float) -> str:
    """Return what a plan says of a request to stop that may take longer than it may, or an empty string."""
    if seconds <= grace_seconds:
        return ""
    return (
        f"a request to stop may take {seconds:,.0f} s to its checkpoint (the step under way, and its save), and launcher.grace_seconds kills "
        f"after {grace_seconds:g}; set {math.ceil(2 * seconds):,}, or lower training.batch_size"
    )


@dataclass(frozen=True)
class _Memory:
    """What a training holds at its peak, in bytes.

    Attributes:
        peak: of each process, where it computes: on the accelerator, if there is one.
        state: weights, gradients and moments in it.
        host: of all processes in the host's memory, where that is another one.
        told: how the peak comes about, where it was not measured so.
    """

    peak: int
    state: int
    host: int = 0
    told: str = ""


def _held(measured: Measured, training: TrainingSettings) -> int:
    """Return the bytes of the state that each measured process held where it computes."""
    if measured.num_processes > 1 and training.sharding == "fsdp2_offload" and measured.host_memory_bytes is not None:
        return 0
    return _state(measured, training.optimizer, training.weights) // measured.num_processes


def _buckets(measured: Measured, training: TrainingSettings, processes: int) -> int:
    """Return the bytes of the buckets in which processes with whole models sum their gradients up (DDP): a second copy of these."""
    if training.sharding != "none" or processes == 1:
        return 0
    return (4 if training.weights == "fp32" else 2) * measured.trained


def _foretell(measured: Measured, rest: int, training: TrainingSettings, processes: int) -> _Memory:
    """Return what a training would hold that has, beside its state, what another one was measured to have.

    Args:
        measured: in one process that holds the whole model, or in those that share it.
        rest: bytes beside weights, gradients and moments.
        training: what is foretold.
        processes: that will train.
    """
    state = _state(measured, training.optimizer, training.weights)
    weights = (4 if training.weights == "fp32" else 2) * measured.num_parameters
    has_own_memory = measured.host_memory_bytes is not None
    told = f" in each of {processes} processes, which share weights, gradients and moments"
    if measured.num_processes == 1:
        whole = f"{measured.peak_memory_bytes / 2**30:.2f} GiB were measured in one that holds the whole model"
        told = f" in each process, estimated: {whole}; {processes} share its weights, gradients and moments"
    if training.sharding == "fsdp2_offload" and has_own_memory:
        # Whole it goes through the card once, before training.
        return _Memory(max(rest, weights), 0, state, f"{told}, which lie in the host's memory")
    if training.sharding != "none":
        return _Memory(rest + state // processes, state // processes, 0, told)
    buckets = _buckets(measured, training, processes)
    stepping = rest + state + buckets
    told = (
        f" in each of {processes} processes, estimated: measured in one, and {buckets / 2**30:.2f} GiB to sum gradients up"
        if buckets
        else ""
    )
    if training.wise_ft and has_own_memory:
        # The first process alone interpolates.
        return _Memory(stepping, state, 2 * weights, told)
    # Gradients and moments are gone by then.
    interpolating = rest + buckets + 3 * weights if training.wise_ft else 0
    if interpolating <= stepping:
        return _Memory(stepping, state, 0, told)
    return _Memory(interpolating, state, 0, ", estimated: training.wise_ft holds three copies of the weights, the base model's among them")


def _room(measured: Measured, settings: PlanningSettings, processes: int) -> int:
    """Return the bytes that each process may take. Those on a CPU share the machine's memory; measured together, they did so already."""
    room = measured.available_memory_bytes
    if measured.host_memory_bytes is None and measured.num_processes == 1:
        room //= processes
    return room if settings.max_memory_gib is None else min(room, int(settings.max_memory_gib * 2**30))


def _fits(found: _Memory, measured: Measured, limit: int) -> bool:
    return found.peak <= limit and (measured.host_memory_bytes is None or found.host <= measured.host_memory_bytes)


def next_rung(measured: Measured, training: TrainingSettings, limit: int, processes: int = 1) -> str:
    """Return `; or set training.optimizer: ...` for the first lower rung of the memory ladder whose state would fit, or an empty string.

    Left out are rungs that contradict another setting. Of one that cannot accumulate no peak is foretold where its passes would be larger
    than those measured. The last rung is the host's memory.
    """
    rest = measured.peak_memory_bytes - _held(measured, training)
    held = _foretell(measured, rest, training, processes).state
    for optimizer, weights in RUNGS:
        rung = training.model_copy(update={"optimizer": optimizer, "weights": weights})
        found = _foretell(measured, rest, rung, processes)
        if found.state >= held or not _fits(found, measured, limit):
            continue
        if (rung.precision, weights, measured.precision) == ("auto", "fp32", "fp16"):
            rung = rung.model_copy(update={"precision": "fp16"})
        has_larger_passes = rung.steps_in_backward and rung.micro_batch_size != rung.batch_size
        if has_larger_passes:
            rung = rung.model_copy(update={"micro_batch_size": rung.batch_size})
        if any(contradictions(rung, processes)):
            continue
        named = f"training.optimizer: {optimizer}" + (" and training.weights: bf16" if weights == "bf16" else "")
        if has_larger_passes:
            return f"; or set {named} with training.micro_batch_size: {rung.batch_size}, whose passes are larger than those measured"
        return f"; or set {named} (about {found.peak / 2**30:.2f} GiB)"
    return _offloaded(measured, rest, training, limit, processes)


def _offloaded(measured: Measured, rest: int, training: TrainingSettings, limit: int, processes: int) -> str:
    """Return the advice to keep the state in the host's memory, where that fits and contradicts nothing, or an empty string."""
    changes = {"sharding": "fsdp2_offload", "optimizer": "adamw", "weights": "fp32"}
    rung = training.model_copy(update=changes)
    found = _foretell(measured, rest, rung, processes)
    is_another = measured.host_memory_bytes is not None and training.sharding != "fsdp2_offload" and measured.precision != "fp16"
    if not is_another or not _fits(found, measured, limit) or any(contradictions(rung, processes)):
        return ""
    named = " and ".join(f"training.{name}: {value}" for name, value in changes.items() if getattr(training, name) != value)
    return f"; or set {named} (about {found.peak / 2**30:.2f} GiB, and {found.host / 2**30:.2f} GiB of the host's memory)"


def plan_checks(
    measured: Measured, settings: PlanningSettings, training: TrainingSettings | None = None, processes: int = 1
) -> tuple[dict[str, Any], list[CheckOutcome]]:
    """Return the plan's headline figures and the gates on memory, time and price.

    Args:
        measured: real training steps.
        settings: the limits.
        training: what was measured. Default: that of the defaults.
        processes: that will train; with `sharding` each holds a part of the state that was measured whole, without it all of it, and buckets
            of its gradients. On a CPU they share the machine's memory.
    """
    training = training or TrainingSettings()
    hours = measured.predicted_seconds / 3600
    usd = hours * settings.hourly_usd
    memory, check = _memory_check(measured, settings, training, processes)
    too_long = hours > settings.max_hours
    too_dear = settings.max_usd is not None and usd > settings.max_usd
    budget = []
    if too_long:
        budget.append(f"{hours:.2f} hours planned, planning.max_hours is {settings.max_hours:g}")
    if too_dear:
        budget.append(f"{usd:.2f} USD planned, planning.max_usd is {settings.max_usd:g}")
    mend = "; lower training.epochs or snapshot.max_train_rows, or raise the limit"
    checks = [
        check,
        CheckOutcome(
            name="within_budget",
            passed=not budget,
            description=("; ".join(budget) + mend) if budget else f"{hours * 60:.1f} minutes, {usd:.2f} USD",
            metadata={"planned_hours": hours, "planned_usd": usd},
        ),
    ]
    headline = {
        **measured.model_dump(exclude_none=True),
        "planned_hours": hours,
        "planned_usd": usd,
        "peak_memory_gib": memory.peak / 2**30,
        "state_memory_gib": memory.state / 2**30,
        "stop_seconds": stop_seconds(measured, training),
        "padding_share": 1 - measured.num_tokens / measured.num_padded_tokens,
    }
    return headline, checks


def _memory_check(
    measured: Measured, settings: PlanningSettings, training: TrainingSettings, processes: int
) -> tuple[_Memory, CheckOutcome]:
    limit = _room(measured, settings, processes)
    rest = measured.peak_memory_bytes - _held(measured, training)
    memory = _foretell(measured, rest, training, processes)
    told = f"peak {memory.peak / 2**30:.2f} GiB of {limit / 2**30:.2f} GiB{memory.told}"
    figures = {"peak_memory_gib": memory.peak / 2**30, "memory_limit_gib": limit / 2**30}
    if memory.host and measured.host_memory_bytes is not None:
        told += f"; {memory.host / 2**30:.2f} GiB of the host's {measured.host_memory_bytes / 2**30:.2f} GiB"
        figures["host_memory_gib"] = memory.host / 2**30
    passed = _fits(memory, measured, limit)
    if not passed:
        # A step in the backward pass takes the whole batch.
        rows = "training.batch_size and micro_batch_size" if training.steps_in_backward else "training.micro_batch_size"
        told += f"; lower {rows} or set training.gradient_checkpointing" + next_rung(measured, training, limit, processes)
    return memory, CheckOutcome(name="fits_in_memory", passed=passed, description=told, metadata=figures)


def pilot_rows(num_rows: int, epochs: float, share: float, batch_size: int) -> list[int]:
    """Return the growing numbers of rows after which the pilot is scored; the last is its whole budget.

    The pilot is one run over nested, growing subsets, each row read once, so that `share` of the
    planned row visits buys the longest possible learning curve. It takes two batches at the least, as a
    curve has two points.

    Raises:
        SettingsError: there are fewer rows than two batches.
    """
    if num_rows < 2 * batch_size:
        raise SettingsError(
            f"training.batch_size: {num_rows:,} training rows are fewer than two batches of {batch_size:,}, so a pilot has no "
            f"learning curve; lower it to {max(1, num_rows // 8):,}, or deliver more"
        )
    budget = max(2 * batch_size, min(num_rows, int(num_rows * epochs * share)) // batch_size * batch_size)
    return sorted({max(batch_size, budget * part // 8 // batch_size * batch_size) for part in (1, 2, 4, 8)})


def extrapolate(points: Sequence[Point], target_rows: int) -> Prediction:
    """Extend a learning curve to `target_rows` by a power law of the error.

    error(n) = a * n^-b (Hestness et al. 2017, arXiv 1712.00409), fitted by least squares on logarithms
    over the later half of the curve, where the first steps' transient is over, with b >= 0: more data of
    the same kind does not hurt, and b <= 0.5: part of what the last point gains is its lower learning rate. The band takes b from half
    to one and a half times the fit.

    Raises:
        ValueError: fewer than two points.
    """
    if len(points) < 2:
        raise ValueError(f"a learning curve needs two points, got {len(points)}; raise planning.pilot_share")
    late = list(points)[-max(2, math.ceil(len(points) / 2)) :]
    x = np.log([point.rows for point in late])
    y = np.log([max(1e-4, 1 - point.score) for point in late])
    slope = min(_STEEPEST, max(0.0, -float(np.polyfit(x, y, 1)[0])))
    last = points[-1]
    grown = math.log(max(target_rows, last.rows) / last.rows)
    low, predicted, high = (1 - (1 - last.score) * math.exp(-slope * factor * grown) for factor in (0.5, 1.0, 1.5))
    return Prediction(points=list(points), target_rows=target_rows, predicted=predicted, low=low, high=high)


def pilot_check(prediction: Prediction, best_baseline: str, baseline_score: float, settings: PlanningSettings) -> CheckOutcome:
    """Gate: the gain that the pilot predicts over the best cheaper baseline must reach the asked one."""
    gain = prediction.predicted - baseline_score
    passed = gain >= settings.min_predicted_gain
    last = prediction.points[-1]
    text = (
        f"pilot on {last.rows:,} rows scores {last.score:.3f} and predicts {prediction.predicted:.3f} at "
        f"{prediction.target_rows:,}; best cheaper way ({best_baseline}) has {baseline_score:.3f}: gain {gain:+.3f}, "
        f"asked {settings.min_predicted_gain:+.3f}"
    )
    mend = "; use the cheaper way, deliver more labels, or lower planning.min_predicted_gain"
    return CheckOutcome(
        name="pilot_predicts_gain",
        passed=passed,
        description=text if passed else text + mend,
        metadata={"predicted_score": prediction.predicted, "predicted_gain": gain},
    )
