"""Which artifact of an asset a run works with: the one that it made, or else the one that was the newest when
it began.

A step may wait for hours behind a training while another run makes the same assets, so the newest artifact
need not be the one that the steps before were given. Dagster's events say which run made which; nothing else
is kept.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

#: Metadata of each materialisation: `Manifest.ref` of the artifact.
ARTIFACT = "artifact"
#: Materialisations that are asked for at once.
_PAGE = 10
#: Dagster executes again what failed of the parent run: only then the steps are a part of its own.
_IN_PART_TAG = "dagster/is_asset_resume_retry"


def ref_for_run(
    instance: dg.DagsterInstance, run: dg.DagsterRun, key: dg.AssetKey, partition: str | None
) -> str | None:
    """Return the artifact of an asset (partition) that every step of a run reads, by its reference; None: the
    newest one.

    A run that executes a part of another one again goes on with what that one made and began with.
    """
    runs = [run]
    while _is_part(runs[-1]) and (parent := instance.get_run_by_id(runs[-1].parent_run_id or "")) is not None:
        runs.append(parent)
    for each in runs:
        if (ref := made_by_run(instance, each.run_id, key, partition)) is not None:
            return ref
    record = instance.get_run_record_by_id(runs[-1].run_id)
    began = None if record is None else record.start_time
    # The store is asked first: it also knows what another instance made, and is there if the events are lost.
    if began is None or _newest(instance, key, partition, after_timestamp=began) is None:
        return None
    before = _newest(instance, key, partition, before_timestamp=began)
    return None if before is None else _ref_in(before)


def made_by_run(
    instance: dg.DagsterInstance, run_id: str, key: dg.AssetKey, partition: str | None = None
) -> str | None:
    """Return the reference of the artifact that a run made of an asset (partition), or None."""
    records = instance.get_records_for_run(
        run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION, ascending=False
    ).records
    events = (record.event_log_entry.asset_materialization for record in records)
    return next(
        (
            _ref_in(event)
            for event in events
            if event and (event.asset_key, event.partition) == (key, partition)
        ),
        None,
    )


def _is_part(run: dg.DagsterRun) -> bool:
    return run.parent_run_id is not None and (
        run.step_keys_to_execute is not None or run.tags.get(_IN_PART_TAG) == "true"
    )


def _newest(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None, **times: Any
) -> dg.AssetMaterialization | None:
    """Return the newest materialisation that a run made, or None: whoever reaches the UI can report others,
    which have no run.
    """
    wanted = dg.AssetRecordsFilter(key, asset_partitions=None if partition is None else [partition], **times)
    cursor = None
    while True:
        page = instance.fetch_materializations(wanted, limit=_PAGE, cursor=cursor)
        for record in page.records:
            if record.event_log_entry.run_id:
                return record.asset_materialization
        if not page.has_more:
            return None
        cursor = page.cursor


def _ref_in(event: dg.AssetMaterialization) -> str | None:
    ref = event.metadata.get(ARTIFACT)
    return None if ref is None else str(ref.value)
