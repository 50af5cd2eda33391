"""Which batches of the ledger need a run."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import dagster as dg

from fullft_assets import documents
from fullft_assets.assets.case import Case
from fullft_assets.automation.runs import IN_FLIGHT
from fullft_assets.chunks import ingestion
from fullft_assets.retraining import DAY_SECONDS, HOUR_SECONDS, RETRY_HOURS
from fullft_assets.store import Store

#: Carries the run key on runs of the daemon and of `fullft run` alike: Dagster's own tag is the daemon's alone.
REQUEST_TAG = "delivery/run_key"
_PARTITION_TAG = "dagster/partition"
#: Batches whose runs are looked up in one query.
_BATCHES_PER_QUERY = 100
#: Longest wait before a batch whose runs failed is asked for again.
_MOST_SECONDS = 30 * DAY_SECONDS


@dataclass(frozen=True)
class Due:
    """Which batches of the ledger need a run, have one, or are done."""

    #: Run key by batch, oldest first; at most `max_runs_per_tick`.
    requests: dict[str, str]
    running: set[str]
    done: set[str]


def find_due(case: Case, instance: dg.DagsterInstance, store: Store, kind: documents.Kind, job: str) -> Due:
    """Return which batches to launch. The ledger in the store is the truth, not the sensor's cursor.

    The next tick launches what a tick that died has cut, and an edit of the YAML makes batches due again. A batch
    whose run failed comes after all that never had one, and one in flight takes no place, so that neither starves the
    rest. The daemon drops a key that has had a run: a failed batch gets a new key after an hour, two, four ..., and one
    that a person cancelled gets none. `fullft run` asks for no key and tries both again at once.
    """
    if kind == "batch":
        done, version = ingestion.done(store, case.use_case), ingestion.version(case.use_case)
    else:
        last = "drift_report" if case.is_monitored else "batch_predictions"
        done, version = set(store.list_pointers(f"latest/{case.name}/{last}")), "1"
    batches = [batch for batch in documents.list_batches(store, case.name, kind) if batch.name not in done]
    in_flight = instance.get_runs(dg.RunsFilter(job_name=job, statuses=IN_FLIGHT)) if batches else []
    names = {batch.name for batch in batches}
    running = {name for run in in_flight if (name := run.tags.get(_PARTITION_TAG)) in names}
    most = case.settings.documents.max_runs_per_tick
    source = documents.source_of(case.use_case, kind)
    # A batch that could not be read and whose files were fixed or removed since then would fail again.
    launchable = (
        batch.name
        for batch in batches
        if batch.name not in running and (documents.is_delivered(source, batch) or documents.was_kept(store, case.name, batch.name, kind))
    )
    first: dict[str, str] = {}
    again: dict[str, str] = {}
    dropped: dict[str, str] = {}
    while len(first) < most and (some := list(islice(launchable, _BATCHES_PER_QUERY))):
        had = _past_runs(instance, job, some, version)
        for name in some:
            key = f"{name}-{version}"
            if name not in had:
                first[name] = key
            elif (number := _due_again(had[name], time.time())) is not None:
                again[name] = f"{key}-{number}"
            else:
                dropped[name] = key
    return Due(dict(islice((first | again | dropped).items(), most)), running, done)


def _past_runs(instance: dg.DagsterInstance, job: str, names: Sequence[str], version: str) -> dict[str, list[dg.RunRecord]]:
    """Return the runs that these batches have had under this version, by batch."""
    found: dict[str, list[dg.RunRecord]] = defaultdict(list)
    for record in instance.get_run_records(dg.RunsFilter(job_name=job, tags={_PARTITION_TAG: list(names)})):
        run = record.dagster_run
        name = run.tags[_PARTITION_TAG]
        asked = f"{run.tags.get(REQUEST_TAG, '')}-".startswith(f"{name}-{version}-")
        # A daemon that died between making a run and launching it does so when the same key is asked for again.
        if asked and run.status != dg.DagsterRunStatus.NOT_STARTED:
            found[name].append(record)
    return found


def _due_again(records: Sequence[dg.RunRecord], now: float) -> int | None:
    """Return how many runs of a batch have failed if it is time for another one, else None.

    Args:
        now: seconds since the epoch.
    """
    newest = max(records, key=lambda record: record.create_timestamp)
    if newest.dagster_run.status != dg.DagsterRunStatus.FAILURE:
        return None
    number = sum(record.dagster_run.status == dg.DagsterRunStatus.FAILURE for record in records)
    # 2 ** 60 is beyond any bound.
    wait = min(RETRY_HOURS * HOUR_SECONDS * 2.0 ** min(number - 1, 60), _MOST_SECONDS)
    ended = newest.end_time or newest.update_timestamp.timestamp()
    return number if now >= ended + wait else None
