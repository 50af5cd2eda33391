"""Which batches of the ledger need a run."""

from dataclasses import dataclass
from itertools import islice

import dagster as dg

from fullft_assets import documents
from fullft_assets.assets.case import Case
from fullft_assets.automation.runs import IN_FLIGHT
from fullft_assets.chunks import ingestion
from fullft_assets.store import Store

#: Carries the run key on runs of the daemon and of `fullft run` alike: Dagster's own tag is the daemon's alone.
REQUEST_TAG = "delivery/run_key"
#: Run keys looked up in one query.
_KEYS_PER_QUERY = 100


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
    whose run failed comes after all that never had one (the daemon drops its run key, `fullft run` tries again), and
    one in flight takes no place, so that neither starves the rest.
    """
    if kind == "batch":
        done, version = ingestion.done(store, case.use_case), ingestion.version(case.use_case)
    else:
        done, version = set(store.list_pointers(f"latest/{case.name}/drift_report")), "1"
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
    first: list[str] = []
    again: list[str] = []
    while len(first) < most and (some := list(islice(launchable, _KEYS_PER_QUERY))):
        had = _had_a_run(instance, [f"{name}-{version}" for name in some])
        for name in some:
            (again if f"{name}-{version}" in had else first).append(name)
    return Due({name: f"{name}-{version}" for name in (first + again)[:most]}, running, done)


def _had_a_run(instance: dg.DagsterInstance, keys: list[str]) -> set[str]:
    """Return which of these run keys have a run already."""
    runs = instance.get_runs(dg.RunsFilter(tags={REQUEST_TAG: keys}))
    # A daemon that died between making a run and launching it does so when the same key is asked for again.
    return {run.tags[REQUEST_TAG] for run in runs if run.status != dg.DagsterRunStatus.NOT_STARTED}
