"""Which batches of the ledger need a run, and when one that failed is asked for again."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import dagster as dg

from fullft_assets import documents
from fullft_assets.assets.case import Case
from fullft_assets.automation.runs import IN_FLIGHT, failure_of
from fullft_assets.chunks import ingestion
from fullft_assets.errors import TRANSIENT
from fullft_assets.retraining import HOUR_SECONDS
from fullft_assets.store import Store, digest

#: Carries the run key on runs of the daemon and of `fullft run` alike: Dagster's own tag is the daemon's
#: alone.
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
    #: `max_runs_per_tick`.
    requests: list[dg.RunRequest]
    #: Those that are not asked for by themselves now, as their wait is not over or a person has to act; the
    #: longest ago first.
    held: list[dg.RunRequest]
    running: set[str]
    done: set[str]
    #: Why a person has to ask for each of these: it was cancelled, or what class of failure it had.
    for_a_person: dict[str, str]
    #: When the next of the others that are held is asked for, in seconds since the epoch; None where there is
    #: none.
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


def find_due(case: Case, instance: dg.DagsterInstance, store: Store, kind: documents.Kind, job: str) -> Due:
    """Return which batches to launch. The ledger in the store is the truth, not the sensor's cursor.

    The next tick launches what a tick that died has cut, and an edit of the YAML makes batches due again. A
    batch whose run failed comes after all that never had one: under a new run key an hour later, then after
    two hours and so on, five times, and then once a day where an outage made it fail. What fails again unless
    something changes is not asked for again, nor is what a person cancelled; `fullft run` tries each of them.
    One in flight takes no place, so that none of them starves the rest.
    """
    if kind == "batch":
        done, version = ingestion.done(store, case.use_case), ingestion.version(case.use_case)
    else:
        done, version = (
            set(store.list_pointers(f"latest/{case.name}/{case.last_of_window}")),
            digest(case.settings.model_dump(mode="json"))[:12],
        )
    batches = [batch for batch in documents.list_batches(store, case.name, kind) if batch.name not in done]
    in_flight = instance.get_runs(dg.RunsFilter(job_name=job, statuses=IN_FLIGHT)) if batches else []
    names = {batch.name for batch in batches}
    running = {name for run in in_flight if (name := run.tags.get("dagster/partition")) in names}
    most = case.settings.documents.max_runs_per_tick
    # Of a window that is only predicted, a clean-up removes what was made; of others, who lacks it has
    # restored an older copy of the store.
    is_kept = kind == "batch" or case.last_of_window == "drift_report"
    source = documents.source_of(case.use_case, kind)
    # A batch that could not be read and whose files were fixed or removed since then would fail again.
    launchable = (
        batch.name
        for batch in batches
        if batch.name not in running
        and (documents.is_delivered(source, batch) or documents.was_kept(store, case.name, batch.name, kind))
    )
    first: list[dg.RunRequest] = []
    again: list[Again] = []
    while len(first) < most and (some := list(islice(launchable, _KEYS_PER_QUERY))):
        runs = runs_by_key(instance, [f"{name}-{version}" for name in some])
        for name in some:
            key = f"{name}-{version}"
            had = runs.get(key)
            if had is None:
                first.append(_request(name, key, key))
            elif is_kept or had[-1].dagster_run.status != dg.DagsterRunStatus.SUCCESS:
                again.append(ask_again(name, key, had, instance))
    now = time.time()
    requests, held = first, list[Again]()
    for each in sorted(again):
        if each.why or each.at > now:
            held.append(each)
        else:
            requests.append(_request(each.batch, f"{each.batch}-{version}", each.run_key))
    return Due(
        requests[:most],
        [_request(each.batch, f"{each.batch}-{version}", each.run_key) for each in held],
        running,
        done,
        {each.batch: each.why for each in held if each.why},
        min((each.at for each in held if not each.why), default=None),
    )


def _request(batch: str, key: str, run_key: str) -> dg.RunRequest:
    return dg.RunRequest(run_key=run_key, partition_key=batch, tags={REQUEST_TAG: key})


def runs_by_key(instance: dg.DagsterInstance, keys: Iterable[str]) -> dict[str, list[dg.RunRecord]]:
    """Return the runs of each key that had one, oldest first."""
    found: dict[str, list[dg.RunRecord]] = {}
    for record in instance.get_run_records(dg.RunsFilter(tags={REQUEST_TAG: list(keys)}), ascending=True):
        # A daemon that died between making a run and launching it does so when the same key is asked for
        # again.
        if record.dagster_run.status != dg.DagsterRunStatus.NOT_STARTED:
            found.setdefault(record.dagster_run.tags[REQUEST_TAG], []).append(record)
    return found


def ask_again(batch: str, key: str, runs: Sequence[dg.RunRecord], instance: dg.DagsterInstance) -> Again:
    """Return how a batch that is not done is asked for again."""
    last = runs[-1]
    last_end = last.end_time or last.create_timestamp.timestamp()
    # Runs of `fullft run` have none.
    num_asked = sum(_RUN_KEY_TAG in run.dagster_run.tags for run in runs)
    if num_asked == 0:
        return Again(last_end, batch, key, last_end)
    is_late = num_asked > len(_WAIT_HOURS)
    hours = _LATER_HOURS if is_late else _WAIT_HOURS[num_asked - 1]
    again = Again(last_end, batch, f"{key}-{num_asked}", last_end + hours * HOUR_SECONDS, is_late=is_late)
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
