"""What Dagster's runs say: which are not finished yet, and what automatic retrains came to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median_low
from typing import get_args

import dagster as dg

from fullft_assets.assets.case import Case
from fullft_assets.assets.release import IS_BETTER_TAG
from fullft_assets.errors import FailureClass
from fullft_assets.retraining import DAY_SECONDS, HOUR_SECONDS, Attempt, Outcome, RunInFlight

IN_FLIGHT = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_NOT_YET_STARTED = {dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING}
#: Tags of an automatic retrain: its reasons, and what it was launched for.
REASONS_TAG, EVIDENCE_TAG = "retraining/reasons", "retraining/evidence"
NUM_EXAMPLES_TAG, SETTINGS_TAG = "retraining/num_examples", "retraining/settings_version"
NUM_DRIFT_EXAMPLES_TAG, SCORE_FELL_TAG = "retraining/num_drift_examples", "retraining/score_fell"
_ROOT_TAG, _RETRY_TAG = "dagster/root_run_id", "dagster/will_retry"
#: Tags of runs that Dagster launches; one that a person launches has neither.
_BY_ITSELF = {"dagster/sensor_name", "dagster/schedule_name"}
#: Successful runs that tell how long the next one takes.
_TYPICAL = 3
#: How long an attempt is remembered.
_DAYS = 400
_OUTCOMES: dict[dg.DagsterRunStatus, Outcome] = {
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "cancelled",
}


def runs_in_flight(case: Case, instance: dg.DagsterInstance) -> list[RunInFlight]:
    """Return the unfinished runs that train the case's model or freeze a snapshot of it, those of assets
    chosen by hand included, oldest first.

    A run that a dying daemon made and did not launch (NOT_STARTED) is none of them: the daemon launches it
    when its key is asked for again.
    """
    keys = {case.key(asset) for asset in ("training_snapshot", "finetuned_checkpoint")}
    jobs = {f"{case.name}_{job}" for job in ("model", "snapshot", "evaluate")}
    records = instance.get_run_records(dg.RunsFilter(statuses=IN_FLIGHT), ascending=True)
    return [
        RunInFlight(
            job=run.job_name,
            run_id=run.run_id,
            since=record.create_timestamp.timestamp(),
            has_started=run.status not in _NOT_YET_STARTED,
        )
        for record in records
        if (run := record.dagster_run).job_name in jobs or keys & set(run.asset_selection or ())
    ]


def model_runs(case: Case, instance: dg.DagsterInstance, now: float) -> Sequence[dg.RunRecord]:
    """Return the launched runs of the model job in the last 400 days, oldest first.

    Args:
        now: seconds since the epoch.
    """
    after = datetime.fromtimestamp(max(0.0, now - _DAYS * DAY_SECONDS), UTC)
    records = instance.get_run_records(
        dg.RunsFilter(job_name=f"{case.name}_model", created_after=after), ascending=True
    )
    return [record for record in records if record.dagster_run.status != dg.DagsterRunStatus.NOT_STARTED]


def attempts_of(records: Sequence[dg.RunRecord], instance: dg.DagsterInstance, now: float) -> list[Attempt]:
    """Return the automatic retrains among runs of the model job; a run and its retries are one attempt.

    Args:
        records: oldest first.
        now: seconds since the epoch; a run that is not finished has taken the time until then.
    """
    attempts: dict[str, list[dg.RunRecord]] = {}
    for record in records:
        run = record.dagster_run
        if EVIDENCE_TAG in run.tags:
            attempts.setdefault(run.tags.get(_ROOT_TAG, run.run_id), []).append(record)
    return [_attempt(of_one, instance, now) for of_one in attempts.values()]


def hours(record: dg.RunRecord, now: float) -> float:
    """Return how long a run took from its start; until now (seconds since the epoch) if it is not finished, 0
    if it never started.
    """
    if record.start_time is None:
        return 0.0
    return max(0.0, (record.end_time or now) - record.start_time) / HOUR_SECONDS


def typical_hours(records: Sequence[dg.RunRecord], instance: dg.DagsterInstance) -> float:
    """Return how long the next run takes after some that succeeded, oldest first: as long as the newest, or
    the median of three if that is less.

    One that took too long, as its host was suspended or a clock was set, holds none of the next ones back; a
    shorter one counts at once. What a run waited for a slot of a pool is not counted. 0 where no run is
    known.
    """
    last = [_hours_of_steps(record, instance) for record in records[-_TYPICAL:]]
    return min(last[-1], median_low(last)) if last else 0.0


def _hours_of_steps(record: dg.RunRecord, instance: dg.DagsterInstance) -> float:
    """Return the hours in which at least one step of a run was in progress."""
    stats = instance.get_run_step_stats(record.dagster_run.run_id)
    steps = sorted(
        (step.start_time, step.end_time)
        for step in stats
        if step.start_time is not None and step.end_time is not None
    )
    end = seconds = 0.0
    for begins, ends in steps:
        seconds += max(0.0, ends - max(begins, end))
        end = max(end, ends)
    return seconds / HOUR_SECONDS


def hours_beside(case: Case, instance: dg.DagsterInstance, since: float, now: float) -> float:
    """Return the hours of ended runs, failed ones included, that evaluated, read a window of production,
    measured live quality or counted rows, and that nobody launched.

    Those in progress are not in it: a decision would differ from the one before, and be recorded, at each
    tick.

    Args:
        since, now: seconds since the epoch; when the runs were created.
    """
    after, ended = datetime.fromtimestamp(since, UTC), list(_OUTCOMES)
    filters = [
        dg.RunsFilter(job_name=f"{case.name}_{job}", statuses=ended, created_after=after)
        for job in ("evaluate", "monitor", "snapshot")
    ]
    # Its runs have no job of the use case: an automation condition asks for them.
    by_condition = {"dagster/sensor_name": f"{case.name}_live_quality_when_due"}
    filters.append(dg.RunsFilter(tags=by_condition, statuses=ended, created_after=after))
    records = [record for each in filters for record in instance.get_run_records(each)]
    return sum(hours(record, now) for record in records if _BY_ITSELF & record.dagster_run.tags.keys())


def _attempt(records: list[dg.RunRecord], instance: dg.DagsterInstance, now: float) -> Attempt:
    first, last = records[0].dagster_run, records[-1].dagster_run
    outcome = _OUTCOMES.get(last.status, "in_flight")
    if outcome == "failed" and last.tags.get(_RETRY_TAG) == "true":
        outcome = "in_flight"
    return Attempt(
        started_at=records[0].create_timestamp.timestamp(),
        ended_at=None if outcome == "in_flight" else records[-1].end_time,
        hours=sum(hours(record, now) for record in records),
        num_examples=int(first.tags.get(NUM_EXAMPLES_TAG, 0)),
        evidence=first.tags[EVIDENCE_TAG],
        settings_version=first.tags.get(SETTINGS_TAG, ""),
        num_drift_examples=int(first.tags.get(NUM_DRIFT_EXAMPLES_TAG, 0)),
        score_fell=first.tags.get(SCORE_FELL_TAG) == "True",
        is_better={"True": True, "False": False}.get(last.tags.get(IS_BETTER_TAG, "")),
        outcome=outcome,
        failure=failure_of(last.run_id, instance) if outcome == "failed" else None,
    )


def failure_of(run_id: str, instance: dg.DagsterInstance) -> FailureClass:
    """Return the class of a run's failure: that of its first failed step, or that something outside of its
    steps ended it.
    """
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=1).records
    if not records:
        return "infrastructure"
    event = records[0].event_log_entry.dagster_event
    data = event.step_failure_data.user_failure_data if event is not None else None
    failure = None if data is None else data.metadata.get("failure")
    return next(
        (each for each in get_args(FailureClass) if failure is not None and each == failure.value), "unknown"
    )
