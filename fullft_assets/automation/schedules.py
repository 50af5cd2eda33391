"""The schedules: the periodic evaluation, the clean-up, and the look for jobs that no
run follows.

Where a definition is called directly, Dagster passes the resources that it requires once more, as keywords:
`**_`.
"""

import time
from typing import Any

import dagster as dg

from fullft_assets.assets.case import Case
from fullft_assets.automation import by_hand
from fullft_assets.automation.budget import evaluation_above_budget
from fullft_assets.automation.cleaning import build_clean_schedule
from fullft_assets.automation.orphans import build_orphans_schedule
from fullft_assets.automation.runs import runs_in_flight
from fullft_assets.resources import latest


def build_schedules(case: Case) -> list[dg.ScheduleDefinition]:
    """Return the periodic evaluation, the clean-up if it is periodic, and the end of orphans."""
    automation = case.settings.automation
    status = dg.DefaultScheduleStatus.RUNNING if automation.enabled else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        name=f"{case.name}_evaluation_schedule",
        job_name=f"{case.name}_evaluate",
        required_resource_keys={case.store_key},
        cron_schedule=case.settings.retraining.evaluation_schedule,
        execution_timezone=automation.timezone,
        default_status=status,
        description="Scores the latest checkpoint and the champion on the newest labelled test rows.",
    )
    def evaluation_schedule(context: dg.ScheduleEvaluationContext, **_: Any):
        if latest(case.store(context), case.name, "finetuned_checkpoint") is None:
            return dg.SkipReason("no checkpoint yet; run the model job first")
        # Its snapshot would take the place of the one that a training is about to read.
        if runs_in_flight(case, context.instance):
            return dg.SkipReason(
                "a run of the model or of its snapshot is in flight; the next evaluation has its rows"
            )
        if reason := evaluation_above_budget(case, context.instance, time.time()):
            return dg.SkipReason(reason)
        return dg.RunRequest()

    return [
        evaluation_schedule,
        *build_clean_schedule(case, by_hand.job_name(case.name), by_hand.run_config(case.name, "clean")),
        *build_orphans_schedule(case),
    ]
