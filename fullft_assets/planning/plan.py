"""The plan of a training, and the gates on it: does it fit, and is it within the budget."""

from __future__ import annotations

from fullft_assets.planning.cost import WITHIN_BUDGET, budget_check, stop_seconds
from fullft_assets.planning.measurements import Measured
from fullft_assets.planning.memory import FITS_IN_MEMORY, memory_check
from fullft_assets.planning.metadata import PlanMetadata
from fullft_assets.planning.pilot import PILOT_PREDICTS_GAIN
from fullft_assets.settings import PlanningSettings, TrainingSettings
from fullft_assets.store import CheckOutcome, Manifest

VERSION = "14"
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
) -> tuple[PlanMetadata, list[CheckOutcome]]:
    """Return the plan and the gates on memory, time and price.

    Args:
        training: the settings that were measured. Default: the default settings.
        processes: number of processes that will train. With `sharding` each holds a part of the state,
            without it all of it, and buckets of its gradients. On a CPU they share the machine's memory.
        trainings: what a model takes with its pilot, baselines and evaluation, in trainings.
    """
    training = training or TrainingSettings()
    hours = measured.predicted_seconds / 3600
    memory, fits_in_memory = memory_check(measured, settings, training, processes)
    plan = PlanMetadata(
        **measured.model_dump(),
        planned_hours=hours,
        planned_usd=hours * settings.hourly_usd,
        peak_memory_gib=memory.peak / 2**30,
        state_memory_gib=memory.state / 2**30,
        stop_seconds=stop_seconds(measured, training),
        padding_share=1 - measured.num_tokens / measured.num_padded_tokens,
    )
    return plan, [fits_in_memory, budget_check(hours, settings, trainings)]


def refusal(pilot: Manifest) -> str | None:
    """Return why a pilot refuses the training; None where it does not."""
    check = pilot.check(PILOT_PREDICTS_GAIN.name)
    return f"not trained: {pilot.stage}.{check.name} is red: {check.description}" if check.is_red else None
