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
from fullft_assets.retraining import HOUR_SECONDS
from fullft_assets.store import Store, digest

#: Carries the run key on runs of the daemon and of `fullft run` alike: Dagster's own tag is the daemon's alone.
REQUEST_TAG = "delivery/run_key"
_RUN_KEY_TAG = "dagster/run_key"
#: Class of a failed run's failure, noted by the tick that looked it up: that reads the run's events.
_FAILURE_TAG = "delivery/failure"
#: What fails in these ways fails again, until the data or the settings change: both make another key.
_FAILS_AGAIN = ("data", "settings", "out_of_memory")
#: Hours after which a failed run is asked for again: the first time, the second time, ... and then no more.
_WAIT_HOURS = (1, 2, 4, 8, 16)
#: Run keys looked up in one query.
_KEYS_PER_QUERY = 100


@dataclass(frozen=True)
class Due:
    """Which batches of the ledger need a run, have one, or are done."""

    #: Those that never had a run first, oldest first; then those to ask for again, and at last those whose wait is not over, which the
    #: daemon drops since their key had a run, and `fullft run` does not. At most `max_runs_per_tick`.
    requests: list[dg.RunRequest]
    running: set[str]
    done: set[str]
    #: Those whose last run a person cancelled, among the ones that were looked at.
    cancelled: list[str]


class _Again(NamedTuple):
    """How a batch whose runs failed is asked for; the least one first."""

    waits: bool
    last_end: float
    batch: str
    run_key: str


def find_due(case: Case, instance: dg.DagsterInstance, store: Store, kind: documents.Kind, job: str) -> Due:
    """Return which batches to launch. The ledger in the store is the truth, not the sensor's cursor.

    The next tick launches what a tick that died has cut, and an edit of the YAML makes batches due again. A batch
    whose run failed comes after all that never had one: under a new run key an hour later, then after two hours and so on, five times. What fails
    again unless something changes is not asked for again, nor is what a person cancelled; `fullft run` tries each of them. One in flight takes no
    place, so that none of them starves the rest.
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
    source = documents.source_of(case.use_case, kind)
    # A batch that could not be read and whose files were fixed or removed since then would fail again.
    launchable = (
        batch.name
        for batch in batches
        if batch.name not in running and (documents.is_delivered(source, batch) or documents.was_kept(store, case.name, batch.name, kind))
    )
    first: list[dg.RunRequest] = []
    again: list[_Again] = []
    cancelled: list[str] = []
    while len(first) < most and (some := list(islice(launchable, _KEYS_PER_QUERY))):
        runs = _runs_by_key(instance, [f"{name}-{version}" for name in some])
        for name in some:
            key = f"{name}-{version}"
            if had := runs.get(key):
                again.append(_ask_again(name, key, had, instance))
                if had[-1].dagster_run.status == dg.DagsterRunStatus.CANCELED:
                    cancelled.append(name)
            else:
                first.append(_request(name, key, key))
    requests = first + [_request(each.batch, f"{each.batch}-{version}", each.run_key) for each in sorted(again)]
    return Due(requests[:most], running, done, cancelled)


def _request(batch: str, key: str, run_key: str) -> dg.RunRequest:
    return dg.RunRequest(run_key=run_key, partition_key=batch, tags={REQUEST_TAG: key})


def _runs_by_key(instance: dg.DagsterInstance, keys: Iterable[str]) -> dict[str, list[dg.RunRecord]]:
    """Return the runs of each key that had one, oldest first."""
    found: dict[str, list[dg.RunRecord]] = {}
    for record in instance.get_run_records(dg.RunsFilter(tags={REQUEST_TAG: list(keys)}), ascending=True):
        # A daemon that died between making a run and launching it does so when the same key is asked for again.
        if record.dagster_run.status != dg.DagsterRunStatus.NOT_STARTED:
            found.setdefault(record.dagster_run.tags[REQUEST_TAG], []).append(record)
    return found


def _ask_again(batch: str, key: str, runs: Sequence[dg.RunRecord], instance: dg.DagsterInstance) -> _Again:
    last = runs[-1]
    last_end = last.end_time or last.create_timestamp.timestamp()
    # Runs of `fullft run` have none.
    run_keys = [run_key for run in runs if (run_key := run.dagster_run.tags.get(_RUN_KEY_TAG))]
    if not run_keys:
        return _Again(False, last_end, batch, key)
    number = len(run_keys) - 1
    waits = (
        number >= len(_WAIT_HOURS)
        or last.dagster_run.status != dg.DagsterRunStatus.FAILURE
        or time.time() < last_end + _WAIT_HOURS[number] * HOUR_SECONDS
        or _fails_again(last.dagster_run, instance)
    )
    return _Again(waits, last_end, batch, run_keys[-1] if waits else f"{key}-{len(run_keys)}")


def _fails_again(run: dg.DagsterRun, instance: dg.DagsterInstance) -> bool:
    failure = run.tags.get(_FAILURE_TAG)
    if failure is None:
        failure = failure_of(run.run_id, instance)
        instance.add_run_tags(run.run_id, {_FAILURE_TAG: failure})
    return failure in _FAILS_AGAIN


def is_asked_again(run: dg.DagsterRun, instance: dg.DagsterInstance) -> bool:
    """Return whether a failed run of a batch or window, which the daemon launched, is followed by another one as long as its sensor is on."""
    key = run.tags.get(REQUEST_TAG)
    if key is None or _RUN_KEY_TAG not in run.tags:
        return False
    ids = [record.dagster_run.run_id for record in _runs_by_key(instance, [key])[key] if _RUN_KEY_TAG in record.dagster_run.tags]
    return ids.index(run.run_id) < len(_WAIT_HOURS) and not _fails_again(run, instance)
