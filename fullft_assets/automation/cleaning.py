"""What cleans the store up, by hand and by schedule, and who they wait for."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import dagster as dg

from fullft_assets import retention
from fullft_assets.assets.case import Case
from fullft_assets.automation.runs import IN_FLIGHT
from fullft_assets.errors import StoreError
from fullft_assets.resources import one_line_errors


def clean(case: Case, context: dg.OpExecutionContext) -> None:
    """Remove from the store what no kept champion and nothing else in use was made from, by the settings of
    `retention`.
    """
    store = case.store(context)
    with one_line_errors(store, case.name):
        removal = retention.clean(
            store, case.use_case, require_idle=idle_from_now(case.name, context.instance, but=context.run_id)
        )
    for line in removal.lines:
        context.log.info(line)


def build_clean_schedule(case: Case, job: str, run_config: dict[str, Any]) -> list[dg.ScheduleDefinition]:
    """Return the schedule of the clean-up, if the YAML has one."""
    cron = case.settings.retention.schedule
    if cron is None:
        return []

    @dg.schedule(
        name=f"{case.name}_clean_schedule",
        job_name=job,
        cron_schedule=cron,
        execution_timezone=case.settings.automation.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING
        if case.settings.automation.enabled
        else dg.DefaultScheduleStatus.STOPPED,
        description="Cleans the store up, unless a run of the use case is in progress.",
    )
    def clean_schedule(context: dg.ScheduleEvaluationContext, **_: Any):
        try:
            require_idle(case.name, context.instance)
        except StoreError as error:
            return dg.SkipReason(str(error))
        return dg.RunRequest(run_config=run_config)

    return [clean_schedule]


def idle_from_now(case: str, instance: dg.DagsterInstance, *, but: str | None = None) -> Callable[[], None]:
    """Return what a clean-up that begins now asks before each removal: see `require_idle`."""
    return partial(require_idle, case, instance, but=but, since=datetime.now(UTC))


def require_idle(
    case: str, instance: dg.DagsterInstance, *, but: str | None = None, since: datetime | None = None
) -> None:
    """Refuse to clean up while a run of the use case is in progress: it may have found an old artifact that
    nothing names yet.

    Args:
        but: id of the run that asks.
        since: a run that has ended counts as well if it did so after this.

    Raises:
        StoreError: names such a run.
    """
    ended = [] if since is None else instance.get_runs(dg.RunsFilter(updated_after=since))
    for run in [*instance.get_runs(dg.RunsFilter(statuses=IN_FLIGHT)), *ended]:
        is_ours = run.tags.get("use_case") == case or any(
            key.path[0] == case for key in run.asset_selection or ()
        )
        if is_ours and run.run_id != but:
            state = "is in progress" if run.status in IN_FLIGHT else "was in progress during the clean-up"
            raise StoreError(
                f"{case}: run {run.run_id[:8]} ({run.job_name}) {state}; clean up when it has ended"
            )
