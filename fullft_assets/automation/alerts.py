"""The sensor that sends alerts: what runs, verdicts and decisions since its last tick say, each once.

What happened is read from finished runs, the retraining decisions of the last days and the time of the newest delivery, so that a tick costs as much
as happened since the last one, however many batches there are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from fullft_assets import alerts, release
from fullft_assets.alerts import Alert
from fullft_assets.assets.case import Case
from fullft_assets.automation.budget import month_start, shares_spent
from fullft_assets.automation.decision import windows_of
from fullft_assets.automation.ledger import entries_since
from fullft_assets.automation.orphans import STOPPED_TAG
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.monitoring import DriftMetadata
from fullft_assets.resources import latest, made_by_run, one_line_errors
from fullft_assets.store import Store

#: How far the first tick looks back: what is older is not worth an alert.
_LOOK_BACK_SECONDS = 24 * 3600.0
#: How old a decision may be that is sent: a channel that was down for less than this loses none.
_DECISION_SECONDS = 7 * 24 * 3600.0
#: Finished runs that one tick looks at; the next tick goes on.
_MAX_RUNS = 100
#: Share of the month's hours from which the budget is near.
_NEAR_BUDGET = 0.8
_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
_PARTITION_TAG = "dagster/partition"
#: Dagster starts such a run again by itself: it has not failed for good.
_RETRY_TAG = "dagster/will_retry"
#: Ticks of a sensor or a schedule that fail in a row, by what its name has after the use case's. A schedule's next one may be a week away.
_FAILED_TICKS = {
    **dict.fromkeys(("new_documents", "new_production_documents", "retraining", "live_quality_when_due"), 5),
    **dict.fromkeys(("retraining_schedule", "evaluation_schedule", "clean_schedule", "orphans_schedule"), 1),
}


def build_alert_sensor(case: Case) -> list[dg.SensorDefinition]:
    """Return the sensor of a use case that has channels; it runs from the start, since whoever names a channel wants alerts."""
    settings = case.settings.alerts
    if not settings.channels:
        return []

    @dg.sensor(
        name=f"{case.name}_alerts",
        required_resource_keys={case.store_key},
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Sends {', '.join(settings.events)} to {', '.join(settings.channels)}, each once.",
    )
    def send_alerts(context: dg.SensorEvaluationContext, **_: Any):
        store, now = case.store(context), time.time()
        since = float(context.cursor) if context.cursor else now - _LOOK_BACK_SECONDS
        with one_line_errors(store, case.name):
            runs = finished_runs(case, context.instance, since)
            found = [
                *(alert for record in runs for alert in of_run(case, context.instance, store, record)),
                *of_decisions(case, store, now),
                *of_budget(case, context.instance, now),
                *of_silence(case, context.instance, now),
                *of_ticks(case, context.instance, now),
            ]
            delivery = alerts.deliver(store, case.name, found, alerts.open_channels(settings), settings, now)
            if delivery.failures:
                # The cursor stays, so that the next tick tries again; what was delivered is remembered.
                raise alerts.AlertError("; ".join(delivery.failures))
        if runs:
            context.update_cursor(str(runs[-1].update_timestamp.timestamp()))
        sent = {alert.key: alert for sent_alerts in delivery.sent.values() for alert in sent_alerts}
        return dg.SkipReason("; ".join(alert.title for alert in sent.values()) or "nothing to report")

    return [send_alerts]


def finished_runs(case: Case, instance: dg.DagsterInstance, since: float) -> Sequence[dg.RunRecord]:
    """Return the runs of a use case that finished since a time (seconds since the epoch), oldest first."""
    # One second back: runs that finished in the same moment as the last one seen are found, and the ledger knows those that were sent.
    after = datetime.fromtimestamp(since - 1, UTC)
    filters = dg.RunsFilter(statuses=_FINISHED, tags={"use_case": case.name}, updated_after=after)
    return instance.get_run_records(filters, limit=_MAX_RUNS, order_by="update_timestamp", ascending=True)


def of_run(case: Case, instance: dg.DagsterInstance, store: Store, record: dg.RunRecord) -> Iterator[Alert]:
    """Yield what a finished run has to say: that it failed for good, or the verdict of its stage."""
    run, stage = record.dagster_run, record.dagster_run.job_name.removeprefix(f"{case.name}_")

    def alert(event: Any, title: str, action: str, what: str = run.run_id) -> Alert:
        url = f"{case.settings.alerts.dagster_url.rstrip('/')}/runs/{run.run_id}"
        return Alert(event, case.name, f"{event}/{what}", title, action, url, record.update_timestamp.timestamp())

    if run.status == dg.DagsterRunStatus.FAILURE:
        if run.tags.get(_RETRY_TAG) != "true":
            yield alert("run_failed", f"the run {stage} failed", "open the run: its error is one line that says what to fix")
        return
    partition = run.tags.get(_PARTITION_TAG)
    if stage == "ingest" and partition is not None:
        for asset in ("labeled_examples", "tokenized_chunks"):
            batch = latest(store, case.name, asset, partition)
            closed = [gate.name for gate in batch.red_gates] if batch else []
            if closed:
                yield alert("gate_closed", f"batch {partition} is held back: {', '.join(closed)}", f"open the checks of {asset}")
                break
    if stage == "monitor" and partition is not None:
        window = latest(store, case.name, "drift_report", partition)
        if window is not None and DriftMetadata.of(window).status == "confirmed":
            action = "open drift_report, which says what changed; label some of these documents"
            yield alert("drift", f"window {partition} drifted", action, _drift_began(case, store, window.created_at) or partition)
    if stage == "end_orphans" and run.tags.get(STOPPED_TAG, "0") != "0":
        yield alert(
            "decision_needed",
            "jobs that no run followed were ended",
            "open the run, which names them; run the use case to go on from there",
        )
    if stage == "model":
        # Another run may have evaluated since; one that trained nothing has no candidate.
        ref, champion = made_by_run(instance, run.run_id, case.key("evaluation_report")), release.read_champion(store, case.name)
        report = None if ref is None else store.load(ref)
        if report is not None and (champion is None or champion.checkpoint != EvaluationMetadata.of(report).checkpoint):
            closed = [check.name for check in report.checks if not check.passed]
            yield alert("gate_closed", f"the candidate was not promoted: {', '.join(closed)}", "read the evaluation report")


def _drift_began(case: Case, store: Store, until: float) -> str | None:
    """Return the first window of the drift that a window shows: confirmed, and since then none is like the reference, or of a new one.

    Args:
        until: when that window's verdict was made, in seconds since the epoch.
    """
    began = None
    for window in windows_of(store, case):
        if window.status in ("ok", "warming_up"):
            began = None
        elif window.status == "confirmed" and began is None:
            began = window.key
        if window.at >= until:
            break
    return began


def of_decisions(case: Case, store: Store, now: float) -> Iterator[Alert]:
    """Yield what the retraining decisions ask of a person, each once, and what the newest one says of the champion's score."""
    url = _page(case, "automation")
    entry = None
    for name, entry in entries_since(store, case.name, now - _DECISION_SECONDS, now):
        decision = entry.decision
        if decision.action in ("alert", "request_labels"):
            reason, _, action = "; ".join(decision.reasons).partition(": ")
            title = f"labels are asked for: {reason}" if decision.action == "request_labels" else reason
            yield Alert("decision_needed", case.name, f"decision_needed/{name}", title, action, url, entry.time)
    if entry is None:
        return
    drop, live_drop, limit = entry.signals.score_drop, entry.signals.live_drop, case.settings.retraining.max_score_drop
    # Its size changes with each label and each evaluation: one alert for each champion.
    since = f"{champion.promoted_at:.0f}" if (champion := release.read_champion(store, case.name)) else "none"
    if live_drop >= limit:
        title = f"the champion's accuracy is {live_drop:.3f} lower on labelled production documents than at release"
        yield Alert("quality_drop", case.name, f"quality_drop/live/{since}", title, "look at live_quality; roll back or retrain", url, now)
    if drop is not None and drop >= limit:
        title = f"the champion's score fell by {drop:.3f} on newer rows"
        action = "look at the newest evaluation report; roll back or retrain"
        yield Alert("quality_drop", case.name, f"quality_drop/score/{since}", title, action, url, now)


def of_budget(case: Case, instance: dg.DagsterInstance, now: float) -> Iterator[Alert]:
    """Yield that the month's hours or dollars are nearly or all spent."""
    start, settings = month_start(case, now), case.settings.retraining
    for name, share in shares_spent(case, instance, now).items():
        if share >= _NEAR_BUDGET:
            key = f"budget/{start:.0f}/{name}/{'reached' if share >= 1 else 'near'}"
            title = f"{share:.0%} of retraining.{name} = {getattr(settings, name):g} are spent"
            yield Alert(
                "budget", case.name, key, title, f"raise retraining.{name}, or wait for the next month", _page(case, "automation"), now
            )


def _page(case: Case, path: str) -> str:
    return f"{case.settings.alerts.dagster_url.rstrip('/')}/{path}"


def of_silence(case: Case, instance: dg.DagsterInstance, now: float) -> Iterator[Alert]:
    """Yield a feed from which nothing came for `alerts.silent_hours`; a feed that never delivered is not silent but not there yet."""
    hours = case.settings.alerts.silent_hours
    if hours is None:
        return
    feeds = {"raw_documents": case.settings.documents.path}
    if case.has_windows:
        feeds["production_documents"] = str(case.settings.monitoring.path)
    for asset, path in feeds.items():
        event = instance.get_latest_materialization_event(case.key(asset))
        if event is not None and now - event.timestamp > hours * 3600:
            url = f"{case.settings.alerts.dagster_url.rstrip('/')}/assets/{'/'.join(case.key(asset).path)}"
            title = f"nothing new in {path} for {hours:g} hours"
            key = f"feed_silent/{asset}/{int(event.timestamp)}"
            yield Alert("feed_silent", case.name, key, title, "look at what delivers it, and at the sensors", url, now)


def of_ticks(case: Case, instance: dg.DagsterInstance, now: float) -> Iterator[Alert]:
    """Yield a sensor or a schedule whose newest ticks failed, so that it does nothing; once a day while that lasts."""
    least = {f"{case.name}_{name}": number for name, number in _FAILED_TICKS.items()}
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
            tick.status.value == "FAILURE" and now - tick.timestamp < _LOOK_BACK_SECONDS for tick in ticks[:number]
        ):
            day = datetime.fromtimestamp(ticks[0].timestamp, UTC).date()
            title = f"{state.name} fails at each tick" if number > 1 else f"the last tick of {state.name} failed"
            action = "open it in the UI: its error is one line that says what to fix"
            yield Alert("sensor_failing", case.name, f"sensor_failing/{state.name}/{day}", title, action, _page(case, "automation"), now)
