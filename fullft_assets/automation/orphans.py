"""The job and the schedule that end jobs which no run follows: see `launch.records`."""

import time
from functools import partial
from typing import Any

import dagster as dg

from fullft_assets.assets.graph import CaseGraph
from fullft_assets.errors import WorkloadError
from fullft_assets.launch import records
from fullft_assets.resources import one_line_errors
from fullft_assets.settings.launcher import ComputeSettings

#: Tag of a run with the number of jobs that it has stopped.
STOPPED_TAG = "orphans/stopped"
#: Once an hour: more than an hour is not paid unseen.
_CRON = "17 * * * *"
#: What could not be ended is tried each hour for so long, then each day.
_HOURLY_SECONDS = 24 * 3600.0
_DESCRIPTION = (
    "End jobs that run, and are paid for, though their run is over and no other one has attached to them for"
    " an hour."
)


def build_orphans_job(graph: CaseGraph) -> list[dg.JobDefinition]:
    """Return the job `<case>_end_orphans`; none where jobs end with their runs."""
    if not _outlive_runs(graph):
        return []

    @dg.op(
        name=f"{graph.name}__end_orphans",
        description=_DESCRIPTION,
        out={},
        required_resource_keys={graph.store_key},
    )
    def end_orphans(context: dg.OpExecutionContext):
        store = graph.store(context)
        now = time.time()
        num_stopped = 0
        failures: list[str] = []
        with one_line_errors(store, graph.name):
            orphans = records.orphans(store, graph.name, partial(ended_at, context.instance))
            for line, is_stopped in records.end_orphans(
                store, [launch for launch, at in orphans if at <= now]
            ):
                context.log.info(line)
                num_stopped += bool(is_stopped)
                failures += [line] if is_stopped is None else []
            context.instance.add_run_tags(context.run_id, {STOPPED_TAG: str(num_stopped)})
            if failures:
                raise WorkloadError(
                    f"{'; '.join(failures)}; end it there if it runs, or run the use case to attach to it",
                    "infrastructure",
                )

    @dg.job(name=f"{graph.name}_end_orphans", description=_DESCRIPTION, tags={"use_case": graph.name})
    def job():
        end_orphans()

    return [job]


def build_orphans_schedule(graph: CaseGraph) -> list[dg.ScheduleDefinition]:
    """Return the schedule that looks for such jobs; it runs from the start, since whoever rents machines
    wants to know.

    A tick asks no backend: it has a minute, and often not the rights of a run.
    """
    if not _outlive_runs(graph):
        return []

    @dg.schedule(
        name=f"{graph.name}_orphans_schedule",
        job_name=f"{graph.name}_end_orphans",
        required_resource_keys={graph.store_key},
        cron_schedule=_CRON,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            "Looks once an hour for jobs that may run though no run follows them, and launches the job that"
            " ends them."
        ),
    )
    def orphans_schedule(context: dg.ScheduleEvaluationContext, **_: Any):
        now = time.time()
        with graph.open_store(context) as store:
            orphans = records.orphans(store, graph.name, partial(ended_at, context.instance))
            due_at = {launch.name_in(store): at for launch, at in orphans if at <= now}
        is_new = now - max(due_at.values(), default=0.0) < _HOURLY_SECONDS
        if due_at and (is_new or context.scheduled_execution_time.hour == 0):
            return dg.RunRequest(tags={"orphans/jobs": ", ".join(due_at)[:1_000]})
        return dg.SkipReason("a run follows each job, or may attach to it yet")

    return [orphans_schedule]


def ended_at(instance: dg.DagsterInstance, run_id: str) -> float | None:
    """Return when a run ended, in seconds since the epoch; None if it goes on, or if this Dagster has no such
    run.
    """
    record = instance.get_run_record_by_id(run_id)
    return (
        record.end_time or record.update_timestamp.timestamp()
        if record is not None and record.dagster_run.is_finished
        else None
    )


def _outlive_runs(graph: CaseGraph) -> bool:
    return any(
        graph.settings.launcher_of(workload).kind != "local"
        for workload in ("training", *ComputeSettings.model_fields)
    )
