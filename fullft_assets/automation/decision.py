"""The retraining decision: read what happened, decide, record. The policy itself is `retraining.decide`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from zoneinfo import ZoneInfo

import dagster as dg
from pydantic import ValidationError

from fullft_assets import release, retraining
from fullft_assets.assets.case import Case
from fullft_assets.automation.ledger import claim, read_ledger, record
from fullft_assets.automation.runs import (
    EVIDENCE_TAG,
    NUM_EXAMPLES_TAG,
    REASONS_TAG,
    SETTINGS_TAG,
    attempts_of,
    hours,
    model_runs,
    num_in_flight,
)
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import CHAMPION
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.monitoring import DriftMetadata, LiveMetadata
from fullft_assets.planning import PlanMetadata
from fullft_assets.resources import latest, latest_by_partition, one_line_errors
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Manifest, Store, digest
from fullft_assets.training.metadata import CheckpointMetadata

#: Sections that shape the model: a change of them is new evidence for a retrain.
_MODEL_SECTIONS = {"base_model", "trust_remote_code", "seed", "examples", "chunks", "snapshot", "planning", "training"}


def decide_and_record(
    case: Case, instance: dg.DagsterInstance, store: Store, *, by: Literal["sensor", "schedule"]
) -> dg.RunRequest | dg.SkipReason:
    """Read what happened, decide, record the decision, and return what Dagster has to do.

    Args:
        by: who asks. The sensor also has a snapshot taken where that could change the decision.
    """
    with one_line_errors(store, case.name):
        now = time.time()
        ledger, notes = read_ledger(store, case.name)
        state, signals = gather(case, instance, store, ledger.raised, now)
        decision = retraining.decide(state, signals, case.settings.retraining)
        decision = decision.model_copy(update={"notes": [*notes, *decision.notes]})
        if decision.action == "retrain" and not claim(store, case.name, by, now):
            return dg.SkipReason("wait: the sensor and the schedule decide at the same moment, and the other one launches the run")
        record(case, instance, store, ledger, state, signals, decision)
    reasons = "; ".join([*decision.reasons, *decision.notes])
    if decision.action == "retrain":
        tags = {
            REASONS_TAG: reasons[:250],
            EVIDENCE_TAG: decision.evidence,
            NUM_EXAMPLES_TAG: str(signals.num_examples),
            SETTINGS_TAG: signals.settings_version,
        }
        return dg.RunRequest(run_key=retraining.run_key(state, decision), job_name=f"{case.name}_model", tags=tags)
    if decision.count_first and by == "sensor" and not signals.num_runs_in_flight:
        key = f"count-{digest([signals.data_version, signals.num_uncounted])}"
        return dg.RunRequest(run_key=key, job_name=f"{case.name}_snapshot", tags={REASONS_TAG: reasons[:250]})
    return dg.SkipReason(f"{decision.action}: {reasons}")


def gather(
    case: Case, instance: dg.DagsterInstance, store: Store, raised: dict[str, float], now: float
) -> tuple[retraining.State, retraining.Signals]:
    """Return the state and the signals of the policy, from the runs of the instance and the artifacts of the store.

    Args:
        raised: see `retraining.State`.
        now: seconds since the epoch.

    Raises:
        StoreError: a recorded number is not finite, or negative.
    """
    settings = case.settings
    usable = {
        name: manifest for name, manifest in latest_by_partition(store, case.name, "labeled_examples").items() if not manifest.red_gates
    }
    checkpoint, snapshot = latest(store, case.name, "finetuned_checkpoint"), latest(store, case.name, "training_snapshot")
    trained_on = store.load(CheckpointMetadata.of(checkpoint).snapshot) if checkpoint else None
    records = model_runs(case, instance, now)
    in_use = release.read_state(store, case.name)
    try:
        state = retraining.State(
            attempts=attempts_of(records, instance, now),
            trained_on=trained_on.content_digest if trained_on else None,
            num_trained=_num_rows(trained_on),
            trained_at=checkpoint.created_at if checkpoint else None,
            champion_since=in_use.promoted_at if in_use else None,
            frozen=in_use.frozen.sentence if in_use and in_use.frozen else None,
            raised=raised,
        )
        windows = _windows(store, case)
        began = retraining.drift_began(state, windows, now, settings.retraining)
        signals = retraining.Signals(
            now=now,
            month_start=month_start(case, now),
            num_examples=_num_rows(snapshot),
            num_uncounted=sum(_num_valid(manifest) for name, manifest in usable.items() if not _is_counted(name, manifest, snapshot)),
            data_version=snapshot.content_digest if snapshot else "",
            settings_version=digest(settings.model_dump(include=_MODEL_SECTIONS, mode="json")),
            windows=windows,
            is_monitored=case.is_monitored,
            num_labels_since_drift=0
            if began is None
            else sum(_num_valid(manifest) for manifest in usable.values() if manifest.created_at >= began),
            score_drop=_score_drop(store, case, in_use),
            live_drop=_live_drop(store, case, in_use),
            estimated_hours=_estimated_hours(store, case, records, now),
            hourly_usd=settings.planning.hourly_usd,
            num_runs_in_flight=num_in_flight(case, instance),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{case.name}: no retraining decision, as {where} is {first['input']} ({first['msg']}); materialise what it comes from again"
        ) from None
    return state, signals


def month_start(case: Case, now: float) -> float:
    """Return when the calendar month of the budget began; times in seconds since the epoch."""
    local = datetime.fromtimestamp(now, ZoneInfo(case.settings.automation.timezone))
    return local.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()


def _num_rows(snapshot: Manifest | None) -> int:
    if snapshot is None:
        return 0
    found = SnapshotMetadata.of(snapshot)
    return found.num_train_rows + found.num_validation_rows + found.num_test_rows


def _num_valid(examples: Manifest) -> int:
    return ExamplesMetadata.of(examples).num_valid


def _is_counted(name: str, examples: Manifest, snapshot: Manifest | None) -> bool:
    """Return whether a snapshot was taken over a batch as it is, or left it out for a red check."""
    if snapshot is None:
        return False
    found = SnapshotMetadata.of(snapshot)
    if name in found.parts:
        return found.parts[name].examples_digest in (examples.content_digest, *examples.replaces)
    return name in found.batches_left_out and examples.created_at < snapshot.created_at


def _windows(store: Store, case: Case) -> list[retraining.Window]:
    reports = latest_by_partition(store, case.name, "drift_report")
    windows = [retraining.Window(key=name, status=DriftMetadata.of(made).status, at=made.created_at) for name, made in reports.items()]
    return sorted(windows, key=lambda window: window.at)


def _score_drop(store: Store, case: Case, champion: release.Champion | None) -> float | None:
    """Return the champion's score at its release minus its score on newer test rows, if those were scored."""
    report = latest(store, case.name, "evaluation_report")
    if champion is None or report is None or report.ref == champion.evaluation:
        return None
    found = EvaluationMetadata.of(report)
    if found.checkpoint != champion.checkpoint and found.incumbent != champion.checkpoint:
        return None  # a rollback came between: it is of the champion before
    newest = found.score(None if found.checkpoint == champion.checkpoint else CHAMPION, case.settings.primary_metric)
    return None if newest is None else champion.score - newest


def _live_drop(store: Store, case: Case, champion: release.Champion | None) -> float:
    """Return by how much the champion's accuracy on production documents certainly fell; 0 where nothing shows that."""
    found = latest(store, case.name, "live_quality")
    if champion is None or found is None:
        return 0.0
    live = LiveMetadata.of(found)
    return live.drop if live.checkpoint == champion.checkpoint else 0.0


def _estimated_hours(store: Store, case: Case, records: Sequence[dg.RunRecord], now: float) -> float:
    """Return the hours of the newest run of the model job that succeeded, or those of the newest plan, which has only the training."""
    plan = latest(store, case.name, "feasibility_plan")
    done = [hours(each, now) for each in records if each.dagster_run.status == dg.DagsterRunStatus.SUCCESS]
    return max(PlanMetadata.of(plan).planned_hours if plan else 0.0, done[-1] if done else 0.0)
