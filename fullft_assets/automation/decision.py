"""The retraining decision: read what happened, decide, record. The policy itself is `retraining.decide`.

The log of decisions, and which incidents were raised, are kept in the store. What was trained is none of it:
runs and artifacts say that. So a ledger that is lost or damaged repeats at most an alert.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import dagster as dg
from croniter import croniter
from pydantic import BaseModel, ConfigDict, ValidationError

from fullft_assets import release, retraining, security
from fullft_assets.artifacts import (
    DRIFT_REPORT,
    EVALUATION_REPORT,
    FEASIBILITY_PLAN,
    FINETUNED_CHECKPOINT,
    LABELED_EXAMPLES,
    LIVE_QUALITY,
    TRAINING_SNAPSHOT,
)
from fullft_assets.assets.graph import CaseGraph, plain_metadata
from fullft_assets.automation.runs import (
    EVIDENCE_TAG,
    NUM_DRIFT_EXAMPLES_TAG,
    NUM_EXAMPLES_TAG,
    REASONS_TAG,
    REQUEST_TAG,
    SETTINGS_TAG,
    ask_again,
    attempts_of,
    model_runs,
    month_start,
    runs_by_key,
    runs_in_flight,
    typical_hours,
)
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import CHAMPION
from fullft_assets.evaluation.drop import Drop, Released, num_errors_below, score_drop
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.markdown import escape_name
from fullft_assets.monitoring import DriftMetadata, LiveMetadata
from fullft_assets.planning import PlanMetadata
from fullft_assets.resources import latest, one_line_errors, summary_by_partition
from fullft_assets.retraining.history import date
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Manifest, Store, digest

#: The asset whose materialisations are the decisions.
ASSET = "retraining_decisions"


class DecisionLedger(BaseModel):
    """What the next decision needs to know; times in seconds since the epoch.

    Attributes:
        raised: when each open incident was raised last.
        decision: the newest decision.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    raised: dict[str, float] = {}
    decision: retraining.Decision | None = None


def decisions_asset(graph: CaseGraph) -> dg.AssetSpec:
    """Return the asset that the UI shows decisions under; the sensor reports them."""
    return dg.AssetSpec(
        graph.key(ASSET),
        group_name=graph.name,
        kinds={"json"},
        code_version="1",
        description=(
            "Each retraining decision that differs from the one before, with its reasons and what it"
            " rests on."
        ),
    )


def read_ledger(store: Store, case: str) -> DecisionLedger:
    """Return the ledger; one that is damaged begins anew, and what lasts is raised again."""
    try:
        return DecisionLedger.model_validate(store.read_pointer(f"{case}/retraining") or {})
    except ValueError:  # JSON that is cut off, or has other keys
        return DecisionLedger()


def record(
    graph: CaseGraph,
    instance: dg.DagsterInstance,
    store: Store,
    ledger: DecisionLedger,
    state: retraining.State,
    signals: retraining.Signals,
    decision: retraining.Decision,
) -> None:
    """Remember a decision, in the log and in the UI if it differs from the one before."""
    if ledger.decision != decision:
        entry = retraining.RecordedDecision(
            case=graph.name, time=signals.now, signals=signals, decision=decision
        )
        store.write_pointer(
            f"{graph.name}/{ASSET}/{int(signals.now * 1000):014d}", entry.model_dump(mode="json")
        )
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset_key=graph.key(ASSET), metadata=_metadata(graph, state, signals, decision)
            )
        )
        if decision.action != "wait":
            security.append(
                store,
                security.Entry(
                    action=decision.action,
                    case=graph.name,
                    about=decision.evidence,
                    reason="; ".join(decision.reasons),
                ),
            )
    ledger_now = DecisionLedger(raised=retraining.raised_after(state, signals, decision), decision=decision)
    if ledger_now != ledger:
        store.write_pointer(f"{graph.name}/retraining", ledger_now.model_dump(mode="json"))


def entries_since(store: Store, case: str, since: float) -> Iterator[tuple[str, retraining.RecordedDecision]]:
    """Yield the readable decisions of the log since a time (seconds since the epoch) with their names, oldest
    first.
    """
    for name in store.list_pointers(f"{case}/{ASSET}"):
        if name.isdecimal() and since <= int(name) / 1000:
            with suppress(ValueError):
                yield (
                    name,
                    retraining.RecordedDecision.model_validate(store.read_pointer(f"{case}/{ASSET}/{name}")),
                )


def _metadata(
    graph: CaseGraph, state: retraining.State, signals: retraining.Signals, decision: retraining.Decision
) -> dict[str, Any]:
    hours = retraining.hours_spent(state, signals)
    numbers = {
        "num_examples": signals.num_examples,
        "num_new_examples": max(0, signals.num_examples - state.num_trained),
        "num_uncounted_examples": signals.num_uncounted,
        "score_drop": signals.score_drop,
        "estimated_hours": signals.estimated_hours,
        "hours_spent_this_month": hours,
        "usd_spent_this_month": hours * signals.hourly_usd,
        "num_attempts_in_vain": retraining.num_unproductive(state, signals, graph.settings.retraining),
    }
    return {
        "action": decision.action,
        **({"next": decision.instruction} if decision.instruction else {}),
        "reasons": dg.MetadataValue.md("\n".join(f"- {escape_name(reason)}" for reason in decision.reasons)),
        **plain_metadata(numbers),
    }


#: Sections that shape the model: a change of them is new evidence for a retrain.
_MODEL_SECTIONS = {
    "base_model",
    "trust_remote_code",
    "seed",
    "examples",
    "chunks",
    "snapshot",
    "planning",
    "training",
}


class _Batch(NamedTuple):
    num_valid: int
    is_green: bool
    created_at: float
    digest: str

    @staticmethod
    def derive(examples: Manifest) -> list[Any]:
        return [
            ExamplesMetadata.of(examples).num_valid,
            not examples.red_gates,
            examples.created_at,
            examples.content_digest,
        ]


#: Version of what `_Batch` and `_status_and_time` derive from manifests.
_SUMMARY_VERSION = "2"


def decide_and_record(
    graph: CaseGraph, instance: dg.DagsterInstance, store: Store
) -> dg.RunRequest | dg.SkipReason:
    """Read what happened, decide, record the decision, and return what Dagster has to do.

    A snapshot is taken where that could change the decision.
    """
    with one_line_errors(store, graph.name), store.alone(f"{graph.name}/retraining"):
        now = time.time()
        ledger = read_ledger(store, graph.name)
        state, signals = gather(graph, instance, store, ledger.raised, now)
        decision = retraining.decide(state, signals, graph.settings.retraining)
        record(graph, instance, store, ledger, state, signals, decision)
    reasons = "; ".join(filter(None, [*decision.reasons, decision.instruction]))
    if decision.action == "retrain":
        tags = {
            REASONS_TAG: reasons[:250],
            EVIDENCE_TAG: decision.evidence,
            NUM_EXAMPLES_TAG: str(signals.num_examples),
            NUM_DRIFT_EXAMPLES_TAG: str(retraining.drift_examples(state, signals, graph.settings.retraining)),
            SETTINGS_TAG: signals.settings_version,
        }
        return dg.RunRequest(
            run_key=retraining.run_key(state, decision), job_name=f"{graph.name}_model", tags=tags
        )
    return (
        _count(graph, instance, signals, decision.action, reasons)
        if decision.count_first and not signals.num_runs_in_flight
        else dg.SkipReason(f"{decision.action}: {reasons}")
    )


def _count(
    graph: CaseGraph,
    instance: dg.DagsterInstance,
    signals: retraining.Signals,
    action: retraining.Action,
    reasons: str,
) -> dg.RunRequest | dg.SkipReason:
    key = f"count-{digest([signals.data_version, signals.num_uncounted])}"
    job = f"{graph.name}_snapshot"
    run_key = key
    if runs := runs_by_key(instance, [key]).get(key):
        again = ask_again("", key, runs, instance)
        if again.why or again.at > signals.now:
            last = runs[-1].dagster_run
            last_run = (
                f"the run {last.run_id} that was to count them ended on {date(again.last_end)} as"
                f" {last.status.value}"
            )
            return dg.SkipReason(
                f"{action}: {reasons}; {last_run}: a later tick may ask for it again, or launch {job} by hand"
            )
        run_key = again.run_key
    return dg.RunRequest(run_key=run_key, job_name=job, tags={REASONS_TAG: reasons[:250], REQUEST_TAG: key})


def gather(
    graph: CaseGraph, instance: dg.DagsterInstance, store: Store, raised: dict[str, float], now: float
) -> tuple[retraining.State, retraining.Signals]:
    """Return the state and the signals of the policy, from the runs of the instance and the artifacts of the
    store.

    Args:
        raised: see `retraining.State`.
        now: seconds since the epoch.

    Raises:
        StoreError: a recorded number is not finite, or negative.
    """
    settings = graph.settings
    batches = summary_by_partition(
        store, graph.name, LABELED_EXAMPLES, _Batch.derive, version=_SUMMARY_VERSION
    )
    usable_batches = {name: batch for name, values in batches.items() if (batch := _Batch(*values)).is_green}
    checkpoint = latest(store, graph.name, FINETUNED_CHECKPOINT)
    snapshot = latest(store, graph.name, TRAINING_SNAPSHOT)
    snapshot_metadata = SnapshotMetadata.of(snapshot) if snapshot else None
    trained_on, trained_metadata = _trained_on(store, checkpoint, snapshot, snapshot_metadata)
    records = model_runs(graph, instance, now)
    in_use = release.read_state(store, graph.name)
    plan = latest(store, graph.name, FEASIBILITY_PLAN)
    try:
        state = retraining.State(
            attempts=attempts_of(records, instance, now),
            trained_on=trained_on.content_digest if trained_on else None,
            num_trained=_num_rows(trained_metadata),
            trained_at=checkpoint.created_at if checkpoint else None,
            champion_since=in_use.promoted_at if in_use else None,
            frozen=in_use.frozen.sentence if in_use and in_use.frozen else None,
            raised=raised,
        )
        windows = windows_of(store, graph)
        drift_start = retraining.drift_began(state, windows, now, settings.retraining)
        drop = _score_drop(store, graph, in_use)
        unfinished = runs_in_flight(graph, instance)
        signals = retraining.Signals(
            now=now,
            month_start=month_start(graph, now),
            num_examples=_num_rows(snapshot_metadata),
            num_uncounted=_num_uncounted(usable_batches, snapshot, snapshot_metadata),
            data_version=snapshot.content_digest if snapshot else "",
            settings_version=digest(settings.model_dump(include=_MODEL_SECTIONS, mode="json")),
            windows=windows,
            is_monitored=graph.has_windows,
            has_live_quality=graph.has_live_quality,
            num_labels_since_drift=(
                0
                if drift_start is None
                else sum(
                    batch.num_valid for batch in usable_batches.values() if batch.created_at >= drift_start
                )
            ),
            score_drop=None if drop is None else drop.drop,
            num_drop_errors=0.0 if drop is None else drop.num_errors,
            **_live_quality(
                store,
                graph,
                in_use,
                [window.key for window in windows if drift_start is None or window.at >= drift_start],
                usable_batches,
            ),
            estimated_hours=max(PlanMetadata.of(plan).planned_hours if plan else 0.0, typical_hours(records)),
            hourly_usd=settings.planning.hourly_usd,
            usd_per_point=settings.planning.usd_per_point,
            scheduled_at=_scheduled_at(graph, now),
            num_runs_in_flight=len(unfinished),
            oldest_run=unfinished[0] if unfinished else None,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StoreError(
            f"{graph.name}: no retraining decision, as {'.'.join(map(str, first['loc']))} is"
            f" {first['input']} ({first['msg']}); materialise what it comes from again"
        ) from None
    return state, signals


def _scheduled_at(graph: CaseGraph, now: float) -> float | None:
    cron = graph.settings.retraining.schedule
    if cron is None:
        return None
    return croniter(cron, datetime.fromtimestamp(now, ZoneInfo(graph.settings.automation.timezone))).get_prev(
        float
    )


def _trained_on(
    store: Store, checkpoint: Manifest | None, snapshot: Manifest | None, metadata: SnapshotMetadata | None
) -> tuple[Manifest | None, SnapshotMetadata | None]:
    if checkpoint is None:
        return None, None
    ref = CheckpointMetadata.of(checkpoint).snapshot
    if snapshot is not None and ref == snapshot.ref:
        return snapshot, metadata
    trained_on = store.load(ref)
    return trained_on, SnapshotMetadata.of(trained_on)


def _num_rows(snapshot: SnapshotMetadata | None) -> int:
    return (
        0
        if snapshot is None
        else snapshot.num_train_rows + snapshot.num_validation_rows + snapshot.num_test_rows
    )


def _num_uncounted(
    batches: Mapping[str, _Batch], snapshot: Manifest | None, metadata: SnapshotMetadata | None
) -> int:
    if snapshot is None or metadata is None:
        return sum(batch.num_valid for batch in batches.values())
    left_out = set(metadata.batches_left_out)
    return sum(
        batch.num_valid
        for name, batch in batches.items()
        if (
            metadata.parts[name].examples_digest != batch.digest
            if name in metadata.parts
            else name not in left_out or batch.created_at >= snapshot.created_at
        )
    )


def windows_of(store: Store, graph: CaseGraph) -> list[retraining.Window]:
    """Return the verdicts on the windows of a use case, the oldest first."""
    verdicts = summary_by_partition(
        store, graph.name, DRIFT_REPORT, _status_and_time, version=_SUMMARY_VERSION
    )
    windows = [retraining.Window(key=name, status=status, at=at) for name, (status, at) in verdicts.items()]
    return sorted(windows, key=lambda window: window.at)


def _status_and_time(report: Manifest) -> list[Any]:
    return [DriftMetadata.of(report).status, report.created_at]


def _score_drop(store: Store, graph: CaseGraph, champion: release.Champion | None) -> Drop | None:
    report = latest(store, graph.name, EVALUATION_REPORT)
    if champion is None or report is None or report.ref == champion.evaluation:
        return None
    metadata = EvaluationMetadata.of(report)
    metric = graph.settings.primary_metric
    if metadata.checkpoint != champion.checkpoint and metadata.incumbent != champion.checkpoint:
        return None  # a rollback came between: it is of the champion before
    newest = metadata.score(None if metadata.checkpoint == champion.checkpoint else CHAMPION, metric)
    if newest is None:
        return None
    released = EvaluationMetadata.of(store.load(champion.evaluation))
    low = released.score(None, f"{metric}_low")
    since = Released(
        champion.score,
        champion.score if low is None else low,
        released.num_test_rows,
        graph.settings.evaluation.confidence,
    )
    return score_drop(since, newest, metadata.num_test_rows)


def _live_quality(
    store: Store,
    graph: CaseGraph,
    champion: release.Champion | None,
    windows: Sequence[str],
    batches: Mapping[str, _Batch],
) -> dict[str, Any]:
    """Return the signals of what labels of production say of the champion; none where it was not measured.

    Args:
        windows: those whose documents say whether a drift made it worse.
        batches: the usable ones.
    """
    manifest = latest(store, graph.name, LIVE_QUALITY)
    live = None if champion is None or manifest is None else LiveMetadata.of(manifest)
    if manifest is None or live is None or champion is None or live.checkpoint != champion.checkpoint:
        return {}
    num_labelled, num_right = (
        sum(live.by_window[window][side] for window in windows if window in live.by_window) for side in (0, 1)
    )
    at_release = Released(
        live.release_accuracy, live.release_accuracy_low, 0, graph.settings.evaluation.confidence
    )
    has_all = all(batch.created_at <= manifest.created_at - manifest.seconds for batch in batches.values())
    return {
        "live_drop": live.drop,
        "num_live_errors": num_errors_below(at_release, num_right, num_labelled),
        "num_live_labels": num_labelled if has_all else None,
    }
