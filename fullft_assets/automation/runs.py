"""Runs that are not finished yet."""

import dagster as dg

from fullft_assets.assets.case import Case

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
IN_FLIGHT = [status for status in UNFINISHED if status != dg.DagsterRunStatus.NOT_STARTED]


def num_trainings_in_flight(case: Case, instance: dg.DagsterInstance) -> int:
    """Return how many unfinished runs train the case's model: those of its job, and assets materialised by hand."""
    checkpoint = case.key("finetuned_checkpoint")
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return sum(run.job_name == f"{case.name}_model" or checkpoint in (run.asset_selection or ()) for run in runs)
