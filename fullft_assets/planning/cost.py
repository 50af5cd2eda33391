"""Cost: how long a training takes, what that costs, and how long it takes to stop."""

from __future__ import annotations

import math

from fullft_assets.planning.measurements import Measured
from fullft_assets.planning.memory import bytes_per_weight, state_bytes
from fullft_assets.settings import PlanningSettings, TrainingSettings
from fullft_assets.store import CheckOutcome
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
    width = bytes_per_weight(training.weights)
    moments = state_bytes(training.optimizer, training.weights) - width * (
        1 if training.steps_in_backward else 2
    )
    saved = width * measured.num_parameters + moments * measured.num_trained_parameters
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
