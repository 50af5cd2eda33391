"""The schedules: the periodic retraining decision and the periodic evaluation.

Where a definition is called directly, Dagster passes the resources that it requires once more, as keywords: `**_`.
"""

from typing import Any

import dagster as dg

from fullft_assets.assets.case import Case
from fullft_assets.automation.decision import decide_and_record
from fullft_assets.resources import latest


def build_schedules(case: Case) -> list[dg.ScheduleDefinition]:
    """Return the periodic retraining decision and the periodic evaluation."""

    @dg.schedule(
        name=f"{case.name}_retraining_schedule",
        job_name=f"{case.name}_model",
        required_resource_keys={case.store_key},
        cron_schedule=case.settings.retraining.schedule,
        description="Decides periodically whether to train again; a champion past its age is a reason here.",
    )
    def retraining_schedule(context: dg.ScheduleEvaluationContext, **_: Any):
        return decide_and_record(case, context.instance, case.store(context), scheduled=True)

    @dg.schedule(
        name=f"{case.name}_evaluation_schedule",
        job_name=f"{case.name}_evaluate",
        required_resource_keys={case.store_key},
        cron_schedule=case.settings.retraining.evaluation_schedule,
        description="Scores the latest checkpoint and the champion on the newest labelled test rows.",
    )
    def evaluation_schedule(context: dg.ScheduleEvaluationContext, **_: Any):
        if latest(case.store(context), case.name, "finetuned_checkpoint") is None:
            return dg.SkipReason("no checkpoint yet; run the model job first")
        return dg.RunRequest()

    return [retraining_schedule, evaluation_schedule]
