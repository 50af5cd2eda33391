"""The plan of a training, and the gates on it: does it fit, and is it within the budget of time and price;
and how long it takes to stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fullft_assets.planning.measurements import Measured
from fullft_assets.planning.memory import FITS_IN_MEMORY, GIB, memory_check, total_state_bytes
from fullft_assets.planning.metadata import PlanMetadata
from fullft_assets.planning.pilot import PILOT_PREDICTS_GAIN
from fullft_assets.settings import PlanningSettings, TrainingSettings
from fullft_assets.settings.optimizers import bytes_per_weight
from fullft_assets.store import CheckOutcome, Manifest
from fullft_assets.store.checks import CheckSpec

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
    fix = "; lower training.epochs or snapshot.max_train_rows, or raise the limit"
    return CheckOutcome(
        name=WITHIN_BUDGET.name,
        passed=not breaches,
        description=(
            ("; ".join(breaches) + fix) if breaches else f"{hours * 60:.1f} minutes, {usd:.2f} USD{parts}"
        ),
        metadata={"planned_hours": hours, "planned_usd": usd},
    )


def stop_seconds(measured: Measured, training: TrainingSettings) -> float:
    """Return the seconds from a request to stop to the checkpoint: the current step, and saving weights and
    moments to a slow disk.
    """
    moments = training.chosen_optimizer.state_bytes(training.weights)
    weights = bytes_per_weight(training.weights) * measured.num_parameters
    saved = weights + moments * measured.num_trained_parameters
    return measured.predicted_seconds / max(1, measured.num_steps) + saved / _SAVED_BYTES_PER_SECOND


def stop_note(seconds: float, grace_seconds: float) -> str:
    """Return a warning if stopping may take longer than the launcher waits, or an empty string."""
    if seconds <= grace_seconds:
        return ""
    return (
        f"a request to stop may take {seconds:,.0f} s to its checkpoint (the current step, and the save), but"
        f" launcher.grace_seconds kills after {grace_seconds:g}; set {math.ceil(2 * seconds):,}, or lower"
        " training.batch_size"
    )


VERSION = "15"
PLAN_CHECKS = (FITS_IN_MEMORY, WITHIN_BUDGET)
#: It does not block: a refusal is an answer, so the run goes on to its end, without training.
PILOT_CHECKS = (PILOT_PREDICTS_GAIN,)


def plan_checks(
    measured: Measured,
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
    hours = measured.predicted_seconds / 3600
    peak, fits_in_memory = memory_check(measured, settings, training, processes, fitting)
    state = total_state_bytes(measured.num_parameters, measured.num_trained_parameters, training)
    plan = PlanMetadata(
        **measured.model_dump(),
        planned_hours=hours,
        planned_usd=hours * settings.hourly_usd,
        peak_memory_gib=peak / GIB,
        state_memory_gib=state / measured.num_processes / GIB,
        stop_seconds=stop_seconds(measured, training),
        padding_share=1 - measured.num_tokens / measured.num_padded_tokens,
    )
    return plan, [fits_in_memory, budget_check(hours, settings, trainings)]


def refusal(pilot: Manifest) -> str | None:
    """Return why a pilot refuses the training; None where it does not."""
    check = pilot.check(PILOT_PREDICTS_GAIN.name)
    return f"not trained: {pilot.stage}.{check.name} is red: {check.description}" if check.is_red else None
