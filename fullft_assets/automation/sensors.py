"""The sensors and schedules: new deliveries, new windows of production documents, the retraining decision,
the periodic evaluation and clean-up, and the look for jobs that no run follows.

Where a definition is called directly, Dagster passes the resources that it requires once more, as keywords:
`**_`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from fullft_assets import documents, release
from fullft_assets.artifacts import FINETUNED_CHECKPOINT, LIVE_QUALITY, RAW_DOCUMENTS
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.automation.decision import decide_and_record
from fullft_assets.automation.jobs import build_clean_schedule, build_jobs
from fullft_assets.automation.orphans import build_orphans_schedule
from fullft_assets.automation.runs import Due, find_due, runs_in_flight
from fullft_assets.automation.ticks import sensor
from fullft_assets.chunks import ingestion
from fullft_assets.resources import latest, one_line_errors
from fullft_assets.store import Store, digest

#: Batches whose names one line has.
_MOST_NAMED = 5


def build_live_sensor(graph: CaseGraph) -> list[dg.SensorDefinition]:
    """Return the sensor that measures live quality as soon as something came for it; none where it is not
    measured.
    """
    if not graph.has_live_quality:
        return []
    return [
        dg.AutomationConditionSensorDefinition(
            f"{graph.name}_live_quality_when_due",
            target=dg.AssetSelection.assets(graph.key(LIVE_QUALITY)),
            run_tags={"use_case": graph.name},
            default_status=_status(graph),
            minimum_interval_seconds=graph.look_seconds,
            description="Measures live quality when labels or predictions came, or another champion.",
        )
    ]


def build_sensors(
    graph: CaseGraph, jobs: Sequence[dg.JobDefinition] | None = None
) -> list[dg.SensorDefinition]:
    """Return the sensors of a use case; they are stopped until a person or `automation.enabled` turns them
    on.

    Args:
        jobs: of the use case, the very objects that are in its definitions with these sensors. Default: made
            anew, without definitions.
    """
    sensors = [
        _delivery_sensor(graph, "batch"),
        _retraining_sensor(graph, build_jobs(graph) if jobs is None else jobs),
    ]
    if graph.has_windows:
        sensors.append(_delivery_sensor(graph, "window"))
    return sensors


def _status(graph: CaseGraph) -> dg.DefaultSensorStatus:
    return (
        dg.DefaultSensorStatus.RUNNING
        if graph.settings.automation.enabled
        else dg.DefaultSensorStatus.STOPPED
    )


def _delivery_sensor(graph: CaseGraph, kind: documents.Kind) -> dg.SensorDefinition:
    is_batch = kind == "batch"
    job = f"{graph.name}_ingest" if is_batch else f"{graph.name}_monitor"
    partitions = graph.batches if is_batch else graph.windows
    partitions_name = partitions.name
    assert partitions_name is not None, "the partitions of a use case have a name"
    settings = graph.settings
    path = settings.documents.path if kind == "batch" else settings.monitoring.path
    deps = settings.documents.deps if kind == "batch" else []

    @sensor(
        name=f"{graph.name}_new_documents" if is_batch else f"{graph.name}_new_production_documents",
        job_name=job,
        required_resource_keys={graph.store_key},
        minimum_interval_seconds=settings.documents.poll_seconds * (1 if kind == "batch" else 2),
        default_status=dg.DefaultSensorStatus.RUNNING if deps else _status(graph),
        description=(
            f"Cuts new and changed files into {kind}es and runs each once."
            if kind == "batch"
            else (
                "Runs each new window of production documents through the champion, and compares it with the"
                " first windows under it."
            )
        ),
    )
    def new_files(context: dg.SensorEvaluationContext, **_: Any):
        store = graph.store(context)
        # A run that fails because there is no model would use up the window's run key. Drift is looked for
        # before the first champion, too, with the newest model.
        is_readable = (
            kind == "batch"
            or release.read_champion(store, graph.name) is not None
            or latest(store, graph.name, FINETUNED_CHECKPOINT) is not None
        )
        if not is_readable:
            return dg.SkipReason("no model yet to read it with; run the model job first")
        # An edit of the YAML makes batches due again.
        version = ingestion.version(graph.use_case)[:8] if deps else ""
        newest = f"{_newest_materializations(context.instance, deps)}/{version}"
        ingested, shown_digest = (context.cursor or "").rpartition(" ")[::2]
        if deps and ingested == newest:
            return dg.SkipReason(f"no new materialization of {' or '.join(deps)}, nor an edit of the YAML")
        with one_line_errors(store, graph.name):
            look = documents.look(store, graph.use_case, kind)
            due = find_due(graph, context.instance, store, kind, job)
        # A partition that a tick or an instance has lost would hide its batch from the snapshot.
        known_partitions = set(context.instance.get_dynamic_partitions(partitions_name))
        if lost_partitions := sorted((due.done | due.running) - known_partitions):
            context.instance.add_dynamic_partitions(partitions_name, lost_partitions)
        cursor, events = _left_in_place(graph, store, shown_digest or None) if kind == "batch" else (None, [])
        if deps:
            # What a run that fails, a listing or a file that grows needs further ticks for.
            is_over = not (due.requests or due.running or due.next_at or look.num_unsettled or look.goes_on)
            cursor = f"{newest if is_over else ingested} {cursor or ''}"
        held_lines = _held(due, kind, graph.name, job)
        if not due.requests:
            runs_line = [f"{len(due.running):,} {kind}(es) in flight"] if due.running else []
            reason = "; ".join([f"nothing new in {path}", *look.notes, *runs_line, *held_lines])
            return (
                dg.SensorResult(skip_reason=reason, asset_events=events, cursor=cursor)
                if events or deps
                else dg.SkipReason(reason)
            )
        for note in [*look.notes, *held_lines]:
            context.log.info(note)
        return dg.SensorResult(
            run_requests=due.requests,
            dynamic_partitions_requests=[
                partitions.build_add_request([str(request.partition_key) for request in due.requests])
            ],
            asset_events=events,
            cursor=cursor,
        )

    return new_files


def _newest_materializations(instance: dg.DagsterInstance, keys: Sequence[str]) -> str:
    newest = [
        instance.fetch_materializations(dg.AssetKey.from_user_string(key), limit=1).records for key in keys
    ]
    return ",".join(str(records[0].storage_id) if records else "0" for records in newest)


def _held(due: Due, kind: documents.Kind, case: str, job: str) -> list[str]:
    lines = []
    if due.for_a_person:
        names = [f"{name} ({why})" for name, why in due.for_a_person.items()]
        more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
        lines.append(
            f"{kind} {', '.join(names[:_MOST_NAMED])}{more}: not started again by itself; once what its"
            f" run names is fixed, or if it was cancelled, launch {job} for it, or `fullft run {case}`"
        )
    if due.next_at is not None:
        number = len(due.held) - len(due.for_a_person)
        lines.append(
            f"{number:,} {kind}(es) whose run failed are asked for again, the first at"
            f" {datetime.fromtimestamp(due.next_at, UTC):%Y-%m-%d %H:%M} UTC"
        )
    return lines


def _left_in_place(
    graph: CaseGraph, store: Store, cursor: str | None
) -> tuple[str | None, list[dg.AssetCheckEvaluation]]:
    """Return the new cursor, and the check of files that no format reads where it is not what the last tick
    showed.

    Where nothing at all is read there is no batch, and no run that could show it.
    """
    outcome = documents.check_leftovers(store, graph.name)
    outcome_digest = digest(outcome.model_dump(mode="json"))
    if outcome_digest == cursor or (outcome.passed and cursor is None):
        return cursor, []
    return outcome_digest, [
        graph.check_evaluation(outcome, RAW_DOCUMENTS, blocking=documents.FILES_ARE_READ.blocking)
    ]


def _retraining_sensor(graph: CaseGraph, jobs: Sequence[dg.JobDefinition]) -> dg.SensorDefinition:
    launched_jobs = {f"{graph.name}_model", f"{graph.name}_snapshot"}

    @sensor(
        name=f"{graph.name}_retraining",
        jobs=[job for job in jobs if job.name in launched_jobs],
        required_resource_keys={graph.store_key},
        minimum_interval_seconds=graph.look_seconds,
        default_status=_status(graph),
        description=(
            "Trains again on enough new data, drift or a worse score, within backoff and budget; alerts, asks"
            " for labels; records why."
        ),
    )
    def retrain(context: dg.SensorEvaluationContext, **_: Any):
        return decide_and_record(graph, context.instance, graph.store(context))

    return retrain


def build_schedules(graph: CaseGraph) -> list[dg.ScheduleDefinition]:
    """Return the periodic evaluation, the clean-up if it is periodic, and the end of orphans."""
    automation = graph.settings.automation
    status = dg.DefaultScheduleStatus.RUNNING if automation.enabled else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        name=f"{graph.name}_evaluation_schedule",
        job_name=f"{graph.name}_evaluate",
        required_resource_keys={graph.store_key},
        cron_schedule=graph.settings.retraining.evaluation_schedule,
        execution_timezone=automation.timezone,
        default_status=status,
        description="Scores the latest checkpoint and the champion on the newest labelled test rows.",
    )
    def evaluation_schedule(context: dg.ScheduleEvaluationContext, **_: Any):
        if latest(graph.store(context), graph.name, FINETUNED_CHECKPOINT) is None:
            return dg.SkipReason("no checkpoint yet; run the model job first")
        # Its snapshot would take the place of the one that a training is about to read.
        if runs_in_flight(graph, context.instance):
            return dg.SkipReason(
                "a run of the model or of its snapshot is in flight; the next evaluation has its rows"
            )
        return dg.RunRequest()

    return [
        evaluation_schedule,
        *build_clean_schedule(graph),
        *build_orphans_schedule(graph),
    ]
