"""The retraining decision: read what happened, decide, record. The policy itself is `retraining.decide`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import dagster as dg
from croniter import croniter
from pydantic import ValidationError

from fullft_assets import release, retraining
from fullft_assets.assets.case import Case
from fullft_assets.automation.budget import month_end, month_start
from fullft_assets.automation.deliveries import REQUEST_TAG, ask_again, runs_by_key
from fullft_assets.automation.ledger import name_of, read_ledger, record
from fullft_assets.automation.runs import (
    EVIDENCE_TAG,
    NUM_DRIFT_EXAMPLES_TAG,
    NUM_EXAMPLES_TAG,
    REASONS_TAG,
    SCORE_FELL_TAG,
    SETTINGS_TAG,
    attempts_of,
    hours_beside,
    model_runs,
    runs_in_flight,
    typical_hours,
)
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import CHAMPION
from fullft_assets.evaluation.drop import Drop, Released, num_errors_below, score_drop
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.monitoring import DriftMetadata, LiveMetadata
from fullft_assets.planning import PilotMetadata, PlanMetadata, Point, predict_score
from fullft_assets.resources import latest, one_line_errors, summary_by_partition
from fullft_assets.retraining.history import date
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Manifest, Store, digest

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
    """What the policy needs to know of a batch's examples."""

    num_valid: int
    is_green: bool
    created_at: float
    digest: str

    @staticmethod
    def derive(examples: Manifest) -> list[Any]:
        """Return the values of the fields."""
        num_valid = ExamplesMetadata.of(examples).num_valid
        return [
            num_valid,
            not examples.red_gates,
            examples.created_at,
            examples.content_digest,
        ]


#: Of what `_Batch` and `_status_and_time` derive.
_SUMMARY_VERSION = "2"


def decide_and_record(
    case: Case, instance: dg.DagsterInstance, store: Store
) -> dg.RunRequest | dg.SkipReason:
    """Read what happened, decide, record the decision, and return what Dagster has to do.

    Of several Dagsters that share a store one decides: no other one knows its runs, its attempts and what
    they took. A snapshot is taken where that could change the decision.
    """
    with one_line_errors(store, case.name), store.alone(f"{case.name}/retraining"):
        now = time.time()
        name = name_of(instance)
        ledger, notes = read_ledger(store, case.name)
        if ledger.is_of_another(name, now):
            return dg.SkipReason(
                f"wait: the Dagster {ledger.decider}, which shares this store, decides for {case.name}; ten"
                " minutes after its sensor was turned off, this one does"
            )
        state, signals = gather(case, instance, store, ledger.raised, now)
        decision = retraining.decide(state, signals, case.settings.retraining)
        decision = decision.model_copy(update={"notes": [*notes, *decision.notes]})
        record(case, instance, store, ledger, state, signals, decision, by=name)
    reasons = "; ".join(filter(None, [*decision.reasons, decision.instruction, *decision.notes]))
    if decision.action == "retrain":
        tags = {
            REASONS_TAG: reasons[:250],
            EVIDENCE_TAG: decision.evidence,
            NUM_EXAMPLES_TAG: str(signals.num_examples),
            NUM_DRIFT_EXAMPLES_TAG: str(retraining.drift_examples(state, signals, case.settings.retraining)),
            SCORE_FELL_TAG: str(retraining.score_fell(signals, case.settings.retraining)),
            SETTINGS_TAG: signals.settings_version,
        }
        return dg.RunRequest(
            run_key=retraining.run_key(state, decision), job_name=f"{case.name}_model", tags=tags
        )
    if decision.count_first and not signals.num_runs_in_flight:
        return _count(case, instance, signals, decision.action, reasons)
    return dg.SkipReason(f"{decision.action}: {reasons}")


def _count(
    case: Case,
    instance: dg.DagsterInstance,
    signals: retraining.Signals,
    action: retraining.Action,
    reasons: str,
) -> dg.RunRequest | dg.SkipReason:
    """Return the request for a snapshot that counts what was delivered; one that failed is asked for again as
    a batch is.
    """
    key, job = f"count-{digest([signals.data_version, signals.num_uncounted])}", f"{case.name}_snapshot"
    run_key = key
    if runs := runs_by_key(instance, [key]).get(key):
        again = ask_again("", key, runs, instance)
        if again.why or again.at > signals.now:
            last = runs[-1].dagster_run
            ended = (
                f"the run {last.run_id} that was to count them ended on {date(again.last_end)} as"
                f" {last.status.value}"
            )
            return dg.SkipReason(
                f"{action}: {reasons}; {ended}: a later tick may ask for it again, or launch {job} by hand"
            )
        run_key = again.run_key
    return dg.RunRequest(run_key=run_key, job_name=job, tags={REASONS_TAG: reasons[:250], REQUEST_TAG: key})


def gather(
    case: Case, instance: dg.DagsterInstance, store: Store, raised: dict[str, float], now: float
) -> tuple[retraining.State, retraining.Signals]:
    """Return the state and the signals of the policy, from the runs of the instance and the artifacts of the
    store.

    Args:
        raised: see `retraining.State`.
        now: seconds since the epoch.

    Raises:
        StoreError: a recorded number is not finite, or negative.
    """
    settings = case.settings
    batches = summary_by_partition(
        store, case.name, "labeled_examples", _Batch.derive, version=_SUMMARY_VERSION
    )
    read = {name: _Batch(*values) for name, values in batches.items()}
    usable = {name: batch for name, batch in read.items() if batch.is_green}
    checkpoint = latest(store, case.name, "finetuned_checkpoint")
    snapshot = latest(store, case.name, "training_snapshot")
    frozen = SnapshotMetadata.of(snapshot) if snapshot else None
    trained_on, learned = _trained_on(store, checkpoint, snapshot, frozen)
    records = model_runs(case, instance, now)
    in_use = release.read_state(store, case.name)
    try:
        state = retraining.State(
            attempts=attempts_of(records, instance, now),
            trained_on=trained_on.content_digest if trained_on else None,
            num_trained=_num_rows(learned),
            trained_at=checkpoint.created_at if checkpoint else None,
            champion_since=in_use.promoted_at if in_use else None,
            frozen=in_use.frozen.sentence if in_use and in_use.frozen else None,
            raised=raised,
        )
        windows = windows_of(store, case)
        began = retraining.drift_began(state, windows, now, settings.retraining)
        month = month_start(case, now)
        fell = _score_drop(store, case, in_use)
        unfinished = runs_in_flight(case, instance)
        signals = retraining.Signals(
            now=now,
            month_start=month,
            month_end=month_end(case, now),
            num_examples=_num_rows(frozen),
            num_uncounted=_num_uncounted(usable, snapshot, frozen),
            data_version=snapshot.content_digest if snapshot else "",
            settings_version=digest(settings.model_dump(include=_MODEL_SECTIONS, mode="json")),
            windows=windows,
            is_monitored=case.is_monitored,
            num_labels_since_drift=(
                0
                if began is None
                else sum(batch.num_valid for batch in usable.values() if batch.created_at >= began)
            ),
            score_drop=None if fell is None else fell.drop,
            num_drop_errors=0.0 if fell is None else fell.num_errors,
            **_live_quality(
                store,
                case,
                in_use,
                [window.key for window in windows if began is None or window.at >= began],
                usable,
            ),
            estimated_hours=_estimated_hours(store, case, records, instance),
            hours_beside=hours_beside(case, instance, month, now),
            hourly_usd=settings.planning.hourly_usd,
            usd_per_point=settings.planning.usd_per_point,
            predicted_gain=_predicted_gain(store, case, frozen, learned),
            scheduled_at=_scheduled_at(case, now),
            num_runs_in_flight=len(unfinished),
            oldest_run=unfinished[0] if unfinished else None,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{case.name}: no retraining decision, as {where} is {first['input']} ({first['msg']});"
            " materialise what it comes from again"
        ) from None
    return state, signals


def _scheduled_at(case: Case, now: float) -> float | None:
    """Return when `retraining.schedule` came due last, or None; times in seconds since the epoch."""
    cron = case.settings.retraining.schedule
    if cron is None:
        return None
    at = datetime.fromtimestamp(now, ZoneInfo(case.settings.automation.timezone))
    return croniter(cron, at).get_prev(float)


def _trained_on(
    store: Store, checkpoint: Manifest | None, snapshot: Manifest | None, frozen: SnapshotMetadata | None
) -> tuple[Manifest | None, SnapshotMetadata | None]:
    """Return the snapshot that a checkpoint was trained on, and its metadata; often the newest one, which
    need not be read twice.
    """
    if checkpoint is None:
        return None, None
    ref = CheckpointMetadata.of(checkpoint).snapshot
    if snapshot is not None and ref == snapshot.ref:
        return snapshot, frozen
    trained_on = store.load(ref)
    return trained_on, SnapshotMetadata.of(trained_on)


def _num_rows(snapshot: SnapshotMetadata | None) -> int:
    return (
        0
        if snapshot is None
        else snapshot.num_train_rows + snapshot.num_validation_rows + snapshot.num_test_rows
    )


def _num_uncounted(
    usable: Mapping[str, _Batch], snapshot: Manifest | None, frozen: SnapshotMetadata | None
) -> int:
    """Return the valid examples of the batches that no snapshot was taken over as they are, nor left out for
    a red check.
    """
    if snapshot is None or frozen is None:
        return sum(batch.num_valid for batch in usable.values())
    left_out = set(frozen.batches_left_out)

    def is_counted(name: str, batch: _Batch) -> bool:
        if name in frozen.parts:
            return frozen.parts[name].examples_digest == batch.digest
        return name in left_out and batch.created_at < snapshot.created_at

    return sum(batch.num_valid for name, batch in usable.items() if not is_counted(name, batch))


def windows_of(store: Store, case: Case) -> list[retraining.Window]:
    """Return the verdicts on the windows of a use case, the oldest first."""
    verdicts = summary_by_partition(
        store, case.name, "drift_report", _status_and_time, version=_SUMMARY_VERSION
    )
    windows = [retraining.Window(key=name, status=status, at=at) for name, (status, at) in verdicts.items()]
    return sorted(windows, key=lambda window: window.at)


def _status_and_time(report: Manifest) -> list[Any]:
    return [DriftMetadata.of(report).status, report.created_at]


def _score_drop(store: Store, case: Case, champion: release.Champion | None) -> Drop | None:
    """Return how far the champion scores below its release on newer test rows, if those were scored."""
    report = latest(store, case.name, "evaluation_report")
    if champion is None or report is None or report.ref == champion.evaluation:
        return None
    metadata, metric = EvaluationMetadata.of(report), case.settings.primary_metric
    if metadata.checkpoint != champion.checkpoint and metadata.incumbent != champion.checkpoint:
        return None  # a rollback came between: it is of the champion before
    newest = metadata.score(None if metadata.checkpoint == champion.checkpoint else CHAMPION, metric)
    if newest is None:
        return None
    released = EvaluationMetadata.of(store.load(champion.evaluation))
    low = released.score(None, f"{metric}_low")
    confidence = case.settings.evaluation.confidence
    since = Released(
        champion.score, champion.score if low is None else low, released.num_test_rows, confidence
    )
    return score_drop(since, newest, metadata.num_test_rows)


def _live_quality(
    store: Store,
    case: Case,
    champion: release.Champion | None,
    windows: Sequence[str],
    batches: Mapping[str, _Batch],
) -> dict[str, Any]:
    """Return the signals of what labels of production say of the champion; none where it was not measured.

    Args:
        windows: those whose documents say whether a drift made it worse.
        batches: the usable ones.
    """
    manifest = latest(store, case.name, "live_quality")
    live = None if champion is None or manifest is None else LiveMetadata.of(manifest)
    if manifest is None or live is None or champion is None or live.checkpoint != champion.checkpoint:
        return {}
    labelled, right = (
        sum(live.by_window[window][side] for window in windows if window in live.by_window) for side in (0, 1)
    )
    at_release = Released(
        live.release_accuracy, live.release_accuracy_low, 0, case.settings.evaluation.confidence
    )
    has_all = all(batch.created_at <= manifest.created_at - manifest.seconds for batch in batches.values())
    return {
        "live_drop": live.drop,
        "num_live_errors": num_errors_below(at_release, right, labelled),
        "num_live_labels": labelled if has_all else None,
    }


def _predicted_gain(
    store: Store, case: Case, newest: SnapshotMetadata | None, learned: SnapshotMetadata | None
) -> float | None:
    """Return what the newest pilot's learning curve predicts of the rows that the newest snapshot has more;
    None if nobody asks, or can tell.
    """
    pilot = latest(store, case.name, "pilot_run")
    if case.settings.planning.usd_per_point is None or pilot is None or newest is None or learned is None:
        return None
    metadata = PilotMetadata.of(pilot)
    metric = case.settings.primary_metric
    if any(metric not in point for point in metadata.learning_curve):  # the YAML names another one since
        return None
    points = [Point(rows=int(point["rows"]), score=point[metric]) for point in metadata.learning_curve]
    targets = (
        metadata.target_rows,
        round(metadata.target_rows * _num_rows(newest) / max(1, _num_rows(learned))),
    )
    before, after = (predict_score(points, target, learned.num_validation_rows) for target in targets)
    return max(0.0, after.predicted - before.predicted) if before.is_known and after.is_known else None


def _estimated_hours(
    store: Store, case: Case, records: Sequence[dg.RunRecord], instance: dg.DagsterInstance
) -> float:
    """Return the hours of the last runs of the model job that succeeded, or those of the newest plan, which
    has only the training.
    """
    plan = latest(store, case.name, "feasibility_plan")
    done = [record for record in records if record.dagster_run.status == dg.DagsterRunStatus.SUCCESS]
    return max(PlanMetadata.of(plan).planned_hours if plan else 0.0, typical_hours(done, instance))
