"""The sensor that sends alerts: what runs, verdicts and decisions since its last tick say, each once.

What happened is read from finished runs and retraining decisions since the last tick, and the time of the
newest delivery, so that a tick costs as much as happened since then, however many batches there are. What
cannot be read is an alert of its own, and keeps no other one from being sent.
"""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from logging import Logger
from typing import Any

import dagster as dg
from pydantic import BaseModel, ValidationError

from fullft_assets import alerts, documents, release
from fullft_assets.artifacts import (
    DRIFT_REPORT,
    EVALUATION_REPORT,
    FINETUNED_CHECKPOINT,
    LABELED_EXAMPLES,
    LIVE_QUALITY,
    PRODUCTION_DOCUMENTS,
    RAW_DOCUMENTS,
    TOKENIZED_CHUNKS,
)
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.automation.decision import ASSET, entries_since, windows_of
from fullft_assets.automation.key_figures import key_figures
from fullft_assets.automation.orphans import STOPPED_TAG
from fullft_assets.automation.runs import EVIDENCE_TAG, RETRY_TAG, failure_of, is_asked_again, is_of_case
from fullft_assets.automation.ticks import sensor
from fullft_assets.errors import TRANSIENT, StoreError, without_message
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.monitoring import DriftMetadata, Status
from fullft_assets.resources import latest, made_by_run, one_line_errors
from fullft_assets.retraining import RecordedDecision
from fullft_assets.retraining.history import VERDICTS, is_lower_on_tests
from fullft_assets.settings.alerts import Event
from fullft_assets.store import Store

#: How far the first tick looks back: what is older is not worth an alert.
_LOOK_BACK_SECONDS = 24 * 3600.0
#: Finished runs that one tick looks at; the next tick goes on.
_MAX_RUNS = 100
_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_PARTITION_TAG = "dagster/partition"
#: Ticks of a sensor or a schedule that fail in a row, by what its name has after the use case's. A schedule's
#: next one may be a week away.
_FAILED_TICKS = {
    **dict.fromkeys(
        ("new_documents", "new_production_documents", "retraining", "live_quality_when_due", "alerts"), 5
    ),
    **dict.fromkeys(("evaluation_schedule", "clean_schedule", "orphans_schedule"), 1),
}
#: Tags with what launched a run by itself.
_LAUNCHER_TAGS = ("dagster/sensor_name", "dagster/schedule_name")


class _Cursor(BaseModel):
    """Until when runs and decisions were looked at, in seconds since the epoch."""

    runs: float
    decisions: float


def build_alert_sensor(graph: CaseGraph) -> list[dg.SensorDefinition]:
    """Return the sensor of a use case that has channels; it runs from the start, since whoever names a
    channel wants alerts.
    """
    settings = graph.settings.alerts
    if not settings.channels:
        return []

    @sensor(
        name=f"{graph.name}_alerts",
        required_resource_keys={graph.store_key},
        minimum_interval_seconds=graph.look_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Sends {', '.join(settings.events)} to {', '.join(settings.channels)}, each once.",
    )
    def send_alerts(context: dg.SensorEvaluationContext, **_: Any):
        store = graph.store(context)
        now = time.time()
        try:
            cursor = _Cursor.model_validate_json(context.cursor or "")
        except ValidationError:
            cursor = _Cursor(runs=now - _LOOK_BACK_SECONDS, decisions=now - _LOOK_BACK_SECONDS)
        with one_line_errors(store, graph.name):
            runs = finished_runs(context.instance, cursor.runs)
            entries = list(entries_since(store, graph.name, cursor.decisions))
            channels = alerts.open_channels(settings)
            delivery = alerts.deliver(
                store,
                graph.name,
                list(_alerts_of(graph, context.instance, store, context.log, runs, entries, now)),
                channels,
                settings,
                now,
            )
            for channel in channels.values():
                if isinstance(channel, alerts.Meter):
                    channel.measure(graph.name, key_figures(graph, context.instance, store, now))
            for note in delivery.notes:
                context.log.warning(note)
            if delivery.failures:
                # The cursor stays, so that the next tick tries again; what was delivered is remembered.
                raise alerts.AlertError("; ".join(delivery.failures))
        if runs:
            # `finished_runs` looks one second back: more runs than one tick looks at may have finished in one
            # second, and the next tick goes on.
            cursor.runs = runs[-1].update_timestamp.timestamp() + (1 if len(runs) == _MAX_RUNS else 0)
        if entries:
            # The name of a decision is its time in milliseconds.
            cursor.decisions = (int(entries[-1][0]) + 1) / 1000
        context.update_cursor(cursor.model_dump_json())
        sent = {alert.key: alert.title for sent_alerts in delivery.sent.values() for alert in sent_alerts}
        return dg.SkipReason("; ".join([*delivery.notes, *sent.values()]) or "nothing to report")

    return [send_alerts]


def _alerts_of(
    graph: CaseGraph,
    instance: dg.DagsterInstance,
    store: Store,
    log: Logger,
    runs: Sequence[dg.RunRecord],
    entries: Sequence[tuple[str, RecordedDecision]],
    now: float,
) -> Iterator[alerts.Alert]:
    day = str(datetime.fromtimestamp(now, UTC).date())
    sources = [
        *(
            (
                _name(graph, record),
                record.dagster_run.run_id,
                _run_page(record),
                of_run(graph, instance, store, record),
            )
            for record in runs
            if is_of_case(record.dagster_run, graph.name)
        ),
        ("the retraining decisions", day, "automation", _of_decisions(graph, store, entries, now)),
        ("the feeds", day, "automation", _of_silence(graph, instance, store, now)),
        ("the sensors", day, "automation", _of_ticks(graph, instance, now)),
    ]
    for what, which, page, source in sources:
        try:
            yield from source
        except Exception as error:
            # Any error: one damaged manifest, or one fault in this code, must not end all alerts.
            message = str(error) if isinstance(error, StoreError) else without_message(error)
            title = f"what {what} would report is missing: {message}"
            log.warning(title)
            yield _alert(
                graph,
                "sensor_failing",
                f"{what}/{which}",
                title,
                "materialise again what cannot be read; everything else is reported as before",
                page,
                now,
            )


def finished_runs(instance: dg.DagsterInstance, since: float) -> Sequence[dg.RunRecord]:
    """Return the runs that finished since a time (seconds since the epoch), oldest first."""
    # One second back: runs that finished in the same moment as the last one seen are found, and the ledger
    # knows those that were sent.
    return instance.get_run_records(
        dg.RunsFilter(statuses=_FINISHED, updated_after=datetime.fromtimestamp(since - 1, UTC)),
        limit=_MAX_RUNS,
        order_by="update_timestamp",
        ascending=True,
    )


def of_run(
    graph: CaseGraph, instance: dg.DagsterInstance, store: Store, record: dg.RunRecord
) -> Iterator[alerts.Alert]:
    """Yield the alerts of a finished run: that it failed for good, or the verdict of its stage; of a
    cancelled one only that it holds its batch back, or what was found in its window.
    """
    run = record.dagster_run
    stage = run.job_name.removeprefix(f"{graph.name}_")

    def alert(event: Event, title: str, action: str, what: str = run.run_id) -> alerts.Alert:
        return _alert(
            graph, event, what, title, action, _run_page(record), record.update_timestamp.timestamp()
        )

    partition = run.tags.get(_PARTITION_TAG)
    if partition is not None:
        # A red check makes its run fail, and the batch is done: no other run follows.
        for asset in (LABELED_EXAMPLES, TOKENIZED_CHUNKS):
            ref = made_by_run(instance, run.run_id, graph.key(asset), partition)
            red_gates = [] if ref is None else [gate.name for gate in store.load(ref).red_gates]
            if red_gates:
                yield alert(
                    "gate_closed",
                    f"batch {partition} is held back: {', '.join(red_gates)}",
                    f"open the checks of {asset}",
                )
                return
    if partition is not None and (
        stage == "monitor" or graph.key(DRIFT_REPORT) in (run.asset_selection or ())
    ):
        window = latest(store, graph.name, DRIFT_REPORT, partition)
        status = None if window is None else DriftMetadata.of(window).status
        if window is not None and status == "confirmed":
            action = (
                "open drift_report, which says what changed; label documents that"
                f" `fullft export {graph.name} FILE --random` draws"
            )
            first = _first_window(graph, store, window.created_at, "confirmed", ("ok", "warming_up"))
            yield alert("drift", f"window {partition} drifted", action, first or partition)
        if window is not None and status == "warming_up" and not all(check.passed for check in window.checks):
            yield alert(
                "drift",
                f"window {partition} has texts unlike all held-out rows",
                "read some of them (far.jsonl); such windows become the reference",
                f"novel/{DriftMetadata.of(window).scale}",
            )
        if window is not None and status == "feed_broken":
            first = _first_window(graph, store, window.created_at, "feed_broken", (*VERDICTS, "warming_up"))
            yield alert(
                "gate_closed",
                f"window {partition} has no text",
                "look at what delivers production documents",
                f"feed_broken/{first or partition}",
            )
    if run.status == dg.DagsterRunStatus.FAILURE and not _is_tried_again(graph, instance, record):
        yield alert(
            "run_failed",
            f"{_name(graph, record)} failed",
            "open the run: its error is one line that says what to fix",
        )
    if run.status != dg.DagsterRunStatus.SUCCESS:
        return
    if stage == "end_orphans" and run.tags.get(STOPPED_TAG, "0") != "0":
        yield alert(
            "decision_needed",
            "jobs that no run followed were ended",
            "open the run, which names them; run the use case to go on from there",
        )
    if stage == "model":
        # Another run may have evaluated since; one that trained nothing has no candidate.
        ref = made_by_run(instance, run.run_id, graph.key(EVALUATION_REPORT))
        if ref is None:
            return
        report = store.load(ref)
        champion = release.read_champion(store, graph.name)
        metadata = EvaluationMetadata.of(report)
        is_champion = champion and (
            champion.checkpoint == metadata.checkpoint or champion.evaluation == metadata.ships
        )
        outcome = release.recorded_outcome(store, graph.name, metadata.checkpoint)
        closed_by = None if outcome is None else outcome.closed_by
        red_checks = [closed_by] if closed_by else [check.name for check in report.checks if not check.passed]
        action = "run `fullft audit`" if closed_by else "read the evaluation report"
        # A candidate without a red check was champion until another one was promoted.
        if red_checks and not is_champion:
            yield alert("gate_closed", f"the candidate was not promoted: {', '.join(red_checks)}", action)


def _name(graph: CaseGraph, record: dg.RunRecord) -> str:
    run = record.dagster_run
    partition = run.tags.get(_PARTITION_TAG)
    name = run.job_name.removeprefix(f"{graph.name}_")
    if name.startswith("__"):  # Dagster's own job of assets chosen by hand, or by an automation condition
        name = ", ".join(sorted(key.path[-1] for key in run.asset_selection or ())) or name
    return f"the run {name}" + (f" of {partition}" if partition else "")


def _alert(
    graph: CaseGraph, event: Event, what: str, title: str, action: str, page: str, at: float
) -> alerts.Alert:
    return alerts.Alert(
        event,
        graph.name,
        f"{event}/{what}",
        title,
        action,
        f"{graph.settings.alerts.dagster_url.rstrip('/')}/{page}",
        at,
    )


def _run_page(record: dg.RunRecord) -> str:
    return f"runs/{record.dagster_run.run_id}"


def _is_tried_again(graph: CaseGraph, instance: dg.DagsterInstance, record: dg.RunRecord) -> bool:
    """Return whether another run follows a failed one by itself: Dagster's retry, or one of the sensor or
    schedule that launched it.
    """
    run = record.dagster_run
    if run.tags.get(RETRY_TAG) == "true":
        return True
    launchers = {run.tags[tag] for tag in _LAUNCHER_TAGS if tag in run.tags}
    # On by a person, or by `automation.enabled`, which may have been taken back since.
    if not any(
        state.name in launchers
        and (state.status.value == "RUNNING" or (state.is_running and graph.settings.automation.enabled))
        for state in instance.all_instigator_state()
    ):
        return False
    # After the last time the decision on a retrain says that a person is needed.
    return (
        failure_of(run.run_id, instance) in TRANSIENT
        if EVIDENCE_TAG in run.tags
        else is_asked_again(run, instance)
    )


def _first_window(
    graph: CaseGraph, store: Store, until: float, status: Status, ends: Sequence[Status]
) -> str | None:
    """Return the key of the first window with this status after the last window with one of the statuses
    `ends`, or None if there is no such window.

    Args:
        ends: statuses that end the incident which `status` begins.
        until: later verdicts than this time (seconds since the epoch) are ignored.
    """
    first = None
    for window in windows_of(store, graph):
        if window.status in ends:
            first = None
        elif window.status == status and first is None:
            first = window.key
        if window.at >= until:
            break
    return first


def _of_decisions(
    graph: CaseGraph,
    store: Store,
    entries: Sequence[tuple[str, RecordedDecision]],
    now: float,
) -> Iterator[alerts.Alert]:
    for name, entry in entries:
        decision = entry.decision
        if decision.action in ("alert", "request_labels"):
            reason = "; ".join(decision.reasons)
            # A decision that an earlier release recorded has no instruction.
            action = decision.instruction or f"open the newest materialisation of {ASSET}"
            title = f"labels are asked for: {reason}" if decision.action == "request_labels" else reason
            yield _alert(graph, "decision_needed", name, title, action, _asset_page(graph, ASSET), entry.time)
    champion = release.read_champion(store, graph.name)
    # The newest decision may be of the champion before.
    if not entries or champion is None or entries[-1][1].time < champion.promoted_at:
        return
    signals = entries[-1][1].signals
    settings = graph.settings.retraining
    candidate = latest(store, graph.name, FINETUNED_CHECKPOINT) if signals.num_runs_in_flight else None
    if candidate is not None and candidate.created_at > champion.promoted_at:
        return  # a run may release it in a moment
    # The size of a drop changes with each label and each evaluation: one alert for each champion.
    since = f"{champion.promoted_at:.0f}"
    if signals.live_drop >= settings.max_score_drop:
        yield _alert(
            graph,
            "quality_drop",
            f"live/{since}",
            f"the champion's accuracy is {signals.live_drop:.3f} lower on labelled production documents than"
            " at release",
            "look at live_quality; roll back or retrain",
            _asset_page(graph, LIVE_QUALITY),
            now,
        )
    if is_lower_on_tests(signals, settings):
        yield _alert(
            graph,
            "quality_drop",
            f"score/{since}",
            f"the champion's score fell by {signals.score_drop:.3f} on newer rows",
            "look at the newest evaluation report; roll back or retrain",
            _asset_page(graph, EVALUATION_REPORT),
            now,
        )


def _asset_page(graph: CaseGraph, asset: str) -> str:
    return f"assets/{graph.name}/{asset}"


def _of_silence(
    graph: CaseGraph, instance: dg.DagsterInstance, store: Store, now: float
) -> Iterator[alerts.Alert]:
    hours = graph.settings.alerts.silent_hours
    if hours is None:
        return
    feeds: list[tuple[str, documents.Kind, str]] = [(RAW_DOCUMENTS, "batch", graph.settings.documents.path)]
    if graph.has_windows:
        feeds.append((PRODUCTION_DOCUMENTS, "window", str(graph.settings.monitoring.path)))
    for asset, kind, path in feeds:
        event = instance.get_latest_materialization_event(graph.key(asset))
        if event is None or now - event.timestamp <= hours * 3600:
            continue
        # What came may not have been read yet: a window of many rows is open for long.
        last = max(event.timestamp, documents.last_arrival(store, graph.name, kind, now))
        if now - last > hours * 3600:
            yield _alert(
                graph,
                "feed_silent",
                f"{asset}/{int(last)}",
                f"nothing new in {path} for {hours:g} hours",
                "look at what delivers it, and at the sensors",
                _asset_page(graph, asset),
                now,
            )


def _of_ticks(graph: CaseGraph, instance: dg.DagsterInstance, now: float) -> Iterator[alerts.Alert]:
    least = {f"{graph.name}_{name}": number for name, number in _FAILED_TICKS.items()}
    for state in instance.all_instigator_state():
        number = least.get(state.name)
        if number is None or not state.is_running:
            continue
        # The newest one may be in progress.
        ticks = [
            tick
            for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=number + 1)
            if tick.status.value != "STARTED"
        ]
        if len(ticks) >= number and all(
            tick.status.value == "FAILURE" and now - tick.timestamp < _LOOK_BACK_SECONDS
            for tick in ticks[:number]
        ):
            day = datetime.fromtimestamp(ticks[0].timestamp, UTC).date()
            title = (
                f"{state.name} fails at each tick" if number > 1 else f"the last tick of {state.name} failed"
            )
            yield _alert(
                graph,
                "sensor_failing",
                f"{state.name}/{day}",
                title,
                "open it in the UI: its error is one line that says what to fix",
                "automation",
                now,
            )
