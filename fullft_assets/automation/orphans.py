"""The job and the schedule that end jobs which no run follows: see `launchers.orphans`."""

from functools import partial
from typing import Any

import dagster as dg

from fullft_assets.assets.case import Case
from fullft_assets.errors import WorkloadError
from fullft_assets.launchers.orphans import end_orphan, find_orphans
from fullft_assets.resources import one_line_errors
from fullft_assets.settings.launcher import ComputeSettings

#: Once an hour: more than an hour is not paid unseen.
_CRON = "17 * * * *"
_DESCRIPTION = (
    "End jobs that run, and are paid for, though their run is over and no other one has attached to them for launcher.orphan_hours."
)


def build_orphans_job(case: Case) -> list[dg.JobDefinition]:
    """Return the job `<case>_end_orphans`; none where jobs end with their runs."""
    if not _outlive_runs(case):
        return []

    @dg.op(name=f"{case.name}__end_orphans", description=_DESCRIPTION, out={}, required_resource_keys={case.store_key})
    def end_orphans(context: dg.OpExecutionContext):
        store, failed = case.store(context), []
        with one_line_errors(store, case.name):
            for orphan in find_orphans(store, case.name, partial(ended_at, context.instance)):
                context.log.info(orphan.line)
                if orphan.is_due:
                    try:
                        is_ended = end_orphan(store, orphan)
                    except WorkloadError as error:
                        failed.append(f"{orphan.name} could not be ended ({error})")
                    else:
                        context.log.info(f"{orphan.name} " + ("is ended" if is_ended else "runs on: a run has attached to it"))
            if failed:
                raise WorkloadError(f"{'; '.join(failed)}; end it there if it still runs, or launch it again to attach", "infrastructure")

    @dg.job(name=f"{case.name}_end_orphans", description=_DESCRIPTION, tags={"use_case": case.name})
    def job():
        end_orphans()

    return [job]


def build_orphans_schedule(case: Case) -> list[dg.ScheduleDefinition]:
    """Return the schedule that looks for such jobs; it runs from the start, since whoever rents machines wants to know."""
    if not _outlive_runs(case):
        return []

    @dg.schedule(
        name=f"{case.name}_orphans_schedule",
        job_name=f"{case.name}_end_orphans",
        required_resource_keys={case.store_key},
        cron_schedule=_CRON,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Looks once an hour for jobs that run though no run follows them, and launches the job that ends them.",
    )
    def orphans_schedule(context: dg.ScheduleEvaluationContext, **_: Any):
        store = case.store(context)
        with one_line_errors(store, case.name):
            found = list(find_orphans(store, case.name, partial(ended_at, context.instance)))
        lines = "; ".join(orphan.line for orphan in found)
        if any(orphan.is_due for orphan in found):
            return dg.RunRequest(tags={"orphans": lines[:1_000]})
        return dg.SkipReason(lines or "each job that runs is followed by a run")

    return [orphans_schedule]


def ended_at(instance: dg.DagsterInstance, run_id: str) -> float | None:
    """Return when a run ended, in seconds since the epoch; None of one that goes on, or is not of this Dagster."""
    record = instance.get_run_record_by_id(run_id)
    if record is None or not record.dagster_run.is_finished:
        return None
    return record.end_time or record.update_timestamp.timestamp()


def _outlive_runs(case: Case) -> bool:
    return any(case.settings.launcher_of(workload).kind != "local" for workload in ("training", *ComputeSettings.model_fields))
