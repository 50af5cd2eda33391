"""What Dagster's runs say: which are not finished yet, what automatic retrains came to and took of the
month's budget, which batches need a run, and when one that failed is asked for again.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from statistics import median_low
from typing import NamedTuple, get_args
from zoneinfo import ZoneInfo

import dagster as dg

from fullft_assets import documents
from fullft_assets.artifacts import (
    CHAMPION_MODEL,
    DRIFT_REPORT,
    EVALUATION_REPORT,
    FINETUNED_CHECKPOINT,
    TRAINING_SNAPSHOT,
)
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.chunks import ingestion
from fullft_assets.errors import TRANSIENT, FailureClass
from fullft_assets.retraining import DAY_SECONDS, HOUR_SECONDS, Attempt, Outcome, RunInFlight
from fullft_assets.store import Store, digest

IN_FLIGHT = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_NOT_YET_STARTED = {dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING}
#: Tags of an automatic retrain: its reasons, and what it was launched for.
REASONS_TAG = "retraining/reasons"
EVIDENCE_TAG = "retraining/evidence"
NUM_DRIFT_EXAMPLES_TAG = "retraining/num_drift_examples"
NUM_EXAMPLES_TAG = "retraining/num_examples"
SETTINGS_TAG = "retraining/settings_version"
#: Dagster starts a failed run with this tag, set to "true", again by itself: it has not failed for good.
RETRY_TAG = "dagster/will_retry"
_ROOT_TAG = "dagster/root_run_id"
#: Successful runs that tell how long the next one takes.
_TYPICAL = 3
#: How long an attempt is remembered.
_DAYS = 400
_OUTCOMES: dict[dg.DagsterRunStatus, Outcome] = {
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "cancelled",
}


def is_of_case(run: dg.DagsterRun, case: str) -> bool:
    """Return whether a run is one of a use case's jobs, or of assets of it that were chosen by hand."""
    return run.tags.get("use_case") == case or any(key.path[0] == case for key in run.asset_selection or ())


def runs_in_flight(graph: CaseGraph, instance: dg.DagsterInstance) -> list[RunInFlight]:
    """Return the unfinished runs that train, evaluate or release the case's model or freeze a snapshot of it,
    those of assets chosen by hand included, oldest first.

    A run that a dying daemon made and did not launch (NOT_STARTED) is none of them: the daemon launches it
    when its key is asked for again.
    """
    keys = {
        graph.key(asset)
        for asset in (TRAINING_SNAPSHOT, FINETUNED_CHECKPOINT, EVALUATION_REPORT, CHAMPION_MODEL)
    }
    jobs = {f"{graph.name}_{job}" for job in ("model", "snapshot", "evaluate")}
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


def model_runs(graph: CaseGraph, instance: dg.DagsterInstance, now: float) -> Sequence[dg.RunRecord]:
    """Return the launched runs of the model job in the last 400 days, oldest first.

    Args:
        now: seconds since the epoch.
    """
    after = datetime.fromtimestamp(max(0.0, now - _DAYS * DAY_SECONDS), UTC)
    records = instance.get_run_records(
        dg.RunsFilter(job_name=f"{graph.name}_model", created_after=after), ascending=True
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
    began = record.start_time
    return 0.0 if began is None else max(0.0, (record.end_time or now) - began) / HOUR_SECONDS


def typical_hours(records: Sequence[dg.RunRecord]) -> float:
    """Return how long the next run takes after earlier ones, oldest first: as long as the newest that
    succeeded, or the median of three if that is less. 0 where none has.

    One that took too long, as its host was suspended, holds none of the next ones back; a shorter one counts
    at once.
    """
    succeeded = [record for record in records if record.dagster_run.status == dg.DagsterRunStatus.SUCCESS]
    last = [hours(record, 0.0) for record in succeeded[-_TYPICAL:]]
    return min(last[-1], median_low(last)) if last else 0.0


def _attempt(records: list[dg.RunRecord], instance: dg.DagsterInstance, now: float) -> Attempt:
    first = records[0].dagster_run
    last = records[-1].dagster_run
    outcome = _OUTCOMES.get(last.status, "in_flight")
    if outcome == "failed" and last.tags.get(RETRY_TAG) == "true":
        outcome = "in_flight"
    return Attempt(
        started_at=records[0].create_timestamp.timestamp(),
        ended_at=None if outcome == "in_flight" else records[-1].end_time,
        hours=sum(hours(record, now) for record in records),
        num_examples=int(first.tags.get(NUM_EXAMPLES_TAG, 0)),
        evidence=first.tags[EVIDENCE_TAG],
        settings_version=first.tags.get(SETTINGS_TAG, ""),
        num_drift_examples=int(first.tags.get(NUM_DRIFT_EXAMPLES_TAG, 0)),
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
        (name for name in get_args(FailureClass) if failure is not None and name == failure.value), "unknown"
    )


def month_start(graph: CaseGraph, now: float) -> float:
    """Return when the calendar month of the budget began; times in seconds since the epoch."""
    local = datetime.fromtimestamp(now, ZoneInfo(graph.settings.automation.timezone))
    return local.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()


#: Tag with the run key, on runs of the daemon and of `fullft run`: Dagster's own tag is only on those of the
#: daemon.
REQUEST_TAG = "delivery/run_key"
_RUN_KEY_TAG = "dagster/run_key"
#: Class of a failed run's failure, noted by the tick that looked it up: that reads the run's events.
_FAILURE_TAG = "delivery/failure"
#: What fails in these ways fails again, until the data or the settings change: both make another key.
_FAILS_AGAIN = ("data", "settings", "out_of_memory")
#: Hours after which a failed run is asked for again: the first time, the second time, ... and then, if an
#: outage made it fail, once a day.
_WAIT_HOURS = (1, 2, 4, 8, 16)
_LATER_HOURS = 24
#: In place of a failure's class.
CANCELLED = "cancelled"
#: Run keys looked up in one query.
_KEYS_PER_QUERY = 100


@dataclass(frozen=True)
class Due:
    """Which batches of the ledger need a run, have one, or are done. What had a run is among these only if it
    was looked at.
    """

    #: Those that never had a run first, oldest first; then those to ask for again. At most
    #: `documents.MAX_RUNS_A_TICK`.
    requests: list[dg.RunRequest]
    #: Those that are not asked for by themselves now, as their wait is not over or a person has to act; the
    #: longest ago first.
    held: list[dg.RunRequest]
    running: set[str]
    done: set[str]
    #: Why a person has to ask for each of these: it was cancelled, or what class of failure it had.
    for_a_person: dict[str, str]
    #: When the next of the others that are held is asked for, in seconds since the epoch; None: of none.
    next_at: float | None


class Again(NamedTuple):
    """How a batch that had runs is asked for; the least one first."""

    last_end: float
    batch: str
    run_key: str
    #: Seconds since the epoch.
    at: float
    #: Why a person has to, in place of the sensor; empty where nobody has.
    why: str = ""
    #: It failed so often that it is asked for once a day.
    is_late: bool = False


def find_due(
    graph: CaseGraph, instance: dg.DagsterInstance, store: Store, kind: documents.Kind, job: str
) -> Due:
    """Return which batches to launch. The ledger in the store is the truth, not the sensor's cursor.

    The next tick launches what a tick that died did not launch, and an edit of the YAML makes batches due
    again. A batch whose run failed comes after all that never had one: under a new run key an hour later,
    then after two hours and so on, five times, and then once a day where an outage made it fail. What fails
    again unless something changes is not asked for again, nor is what a person cancelled; `fullft run` tries
    each of them. Batches in flight do not count among the runs of a tick, so that they never keep the others
    waiting.
    """
    if kind == "batch":
        done_names = ingestion.done(store, graph.use_case)
        version = ingestion.version(graph.use_case)
    else:
        done_names = set(store.list_pointers(f"latest/{graph.name}/{DRIFT_REPORT}"))
        version = digest(graph.settings.model_dump(mode="json"))[:12]

    def request(batch: str, run_key: str) -> dg.RunRequest:
        return dg.RunRequest(run_key=run_key, partition_key=batch, tags={REQUEST_TAG: f"{batch}-{version}"})

    batches = [
        batch for batch in documents.list_batches(store, graph.name, kind) if batch.name not in done_names
    ]
    in_flight = instance.get_runs(dg.RunsFilter(job_name=job, statuses=IN_FLIGHT)) if batches else []
    names = {batch.name for batch in batches}
    running = {name for run in in_flight if (name := run.tags.get("dagster/partition")) in names}
    most = documents.MAX_RUNS_A_TICK
    source = documents.source_of(graph.use_case, kind)
    # A batch that could not be read and whose files were fixed or removed since then would fail again.
    launchable = (
        batch.name
        for batch in batches
        if batch.name not in running
        and (documents.is_delivered(source, batch) or documents.was_kept(store, graph.name, batch.name, kind))
    )
    requests: list[dg.RunRequest] = []
    retries: list[Again] = []
    while len(requests) < most and (next_names := list(islice(launchable, _KEYS_PER_QUERY))):
        runs = runs_by_key(instance, [f"{name}-{version}" for name in next_names])
        for name in next_names:
            key = f"{name}-{version}"
            if key not in runs:
                requests.append(request(name, key))
            else:
                # Who lacks what a run made has restored an older copy of the store.
                retries.append(ask_again(name, key, runs[key], instance))
    now = time.time()
    held_retries: list[Again] = []
    for retry in sorted(retries):
        if retry.why or retry.at > now:
            held_retries.append(retry)
        else:
            requests.append(request(retry.batch, retry.run_key))
    return Due(
        requests[:most],
        [request(retry.batch, retry.run_key) for retry in held_retries],
        running,
        done_names,
        {retry.batch: retry.why for retry in held_retries if retry.why},
        min((retry.at for retry in held_retries if not retry.why), default=None),
    )


def runs_by_key(instance: dg.DagsterInstance, keys: Iterable[str]) -> dict[str, list[dg.RunRecord]]:
    """Return the runs of each key that had one, oldest first."""
    records: dict[str, list[dg.RunRecord]] = {}
    for record in instance.get_run_records(dg.RunsFilter(tags={REQUEST_TAG: list(keys)}), ascending=True):
        # A daemon that died between making a run and launching it does so when the same key is asked for
        # again.
        if record.dagster_run.status != dg.DagsterRunStatus.NOT_STARTED:
            records.setdefault(record.dagster_run.tags[REQUEST_TAG], []).append(record)
    return records


def ask_again(batch: str, key: str, runs: Sequence[dg.RunRecord], instance: dg.DagsterInstance) -> Again:
    """Return how a batch that is not done is asked for again."""
    last = runs[-1]
    last_end = last.end_time or last.create_timestamp.timestamp()
    # Runs of `fullft run` have none.
    num_asked = sum(_RUN_KEY_TAG in run.dagster_run.tags for run in runs)
    if num_asked == 0:
        return Again(last_end, batch, key, last_end)
    is_late = num_asked > len(_WAIT_HOURS)
    again = Again(
        last_end,
        batch,
        f"{key}-{num_asked}",
        last_end + (_LATER_HOURS if is_late else _WAIT_HOURS[num_asked - 1]) * HOUR_SECONDS,
        is_late=is_late,
    )
    if last.dagster_run.status == dg.DagsterRunStatus.CANCELED:
        return again._replace(why=CANCELLED)
    if last.dagster_run.status == dg.DagsterRunStatus.SUCCESS:
        return again
    failure = _failure_of(last.dagster_run, instance)
    return again._replace(
        why=failure if failure in _FAILS_AGAIN or (is_late and failure not in TRANSIENT) else ""
    )


def _failure_of(run: dg.DagsterRun, instance: dg.DagsterInstance) -> str:
    failure = run.tags.get(_FAILURE_TAG)
    if failure is None:
        failure = failure_of(run.run_id, instance)
        instance.add_run_tags(run.run_id, {_FAILURE_TAG: failure})
    return failure


def is_asked_again(run: dg.DagsterRun, instance: dg.DagsterInstance) -> bool:
    """Return whether a failed run of a batch or window, which the daemon launched, is soon followed by
    another one, while its sensor is on.
    """
    key = run.tags.get(REQUEST_TAG)
    if key is None or _RUN_KEY_TAG not in run.tags:
        return False
    runs = runs_by_key(instance, [key])[key]
    until = [record.dagster_run.run_id for record in runs].index(run.run_id) + 1
    again = ask_again("", key, runs[:until], instance)
    return not again.why and not again.is_late
