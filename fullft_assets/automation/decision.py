"""The retraining decision: read the signals, decide, record. The policy itself is `retraining.decide`."""

import time

import dagster as dg

from fullft_assets import release, retraining
from fullft_assets.assets.case import Case
from fullft_assets.automation.runs import num_trainings_in_flight
from fullft_assets.evaluation import CHAMPION
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.monitoring import DriftMetadata
from fullft_assets.planning import PlanMetadata
from fullft_assets.resources import latest, latest_by_partition, one_line_errors
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Manifest, Store, digest
from fullft_assets.training.metadata import CheckpointMetadata

#: Sections that shape the model: a change of them is new evidence for a retrain.
_MODEL_SECTIONS = {"base_model", "trust_remote_code", "seed", "examples", "chunks", "snapshot", "planning", "training"}


def decide_and_record(case: Case, instance: dg.DagsterInstance, store: Store, *, scheduled: bool) -> dg.RunRequest | dg.SkipReason:
    """Read the signals, decide, record the decision, and return what Dagster has to do."""
    with one_line_errors(store, case.name):
        state = read_state(store, case.name)
        signals = gather(case, instance, store, scheduled=scheduled)
        decision = retraining.decide(state, signals, case.settings.retraining)
        record(store, case.name, state, signals, decision)
    if decision.action != "retrain":
        return dg.SkipReason(f"{decision.action}: {'; '.join(decision.reasons)}")
    reasons = "; ".join(decision.reasons)
    return dg.RunRequest(run_key=retraining.run_key(state, decision), tags={"retraining/reasons": reasons[:250]})


def gather(case: Case, instance: dg.DagsterInstance, store: Store, *, scheduled: bool) -> retraining.Signals:
    """Return the signals of the policy, from the store and the instance."""
    examples = latest_by_partition(store, case.name, "labeled_examples")
    checkpoint = latest(store, case.name, "finetuned_checkpoint")
    # Not simply the newest snapshot: the periodic evaluation takes one that nothing was trained on.
    snapshot = store.load(CheckpointMetadata.of(checkpoint).snapshot) if checkpoint else latest(store, case.name, "training_snapshot")
    seen = SnapshotMetadata.of(snapshot).parts if snapshot else {}
    usable = {n: m for n, m in examples.items() if all(c.passed for c in m.checks if c.severity == "error")}
    windows = [
        retraining.Window(key=name, status=DriftMetadata.of(manifest).status, at=manifest.created_at)
        for name, manifest in latest_by_partition(store, case.name, "drift_report").items()
    ]
    windows.sort(key=lambda window: window.at)
    plan = latest(store, case.name, "feasibility_plan")
    return retraining.Signals(
        now=time.time(),
        num_new_examples=sum(ExamplesMetadata.of(manifest).num_valid for name, manifest in usable.items() if name not in seen),
        data_version=digest(sorted(manifest.content_digest for manifest in usable.values())),
        settings_version=digest(case.settings.model_dump(include=_MODEL_SECTIONS, mode="json")),
        windows=windows,
        num_windows_since_training=sum(checkpoint is None or window.at > checkpoint.created_at for window in windows),
        score_drop=_score_drop(store, case),
        estimated_hours=PlanMetadata.of(plan).planned_hours if plan else 0.0,
        num_runs_in_flight=num_trainings_in_flight(case, instance),
        scheduled=scheduled,
    )


def _score_drop(store: Store, case: Case) -> float | None:
    """Return the champion's score at its release minus its score on newer test rows, if those were scored."""
    champion = release.read_champion(store, case.name)
    report = latest(store, case.name, "evaluation_report")
    if champion is None or report is None or report.ref == champion.evaluation:
        return None
    found = EvaluationMetadata.of(report)
    newest = found.score(None if found.checkpoint == champion.checkpoint else CHAMPION, case.settings.primary_metric)
    return None if newest is None else champion.score - newest


def read_state(store: Store, case: str) -> retraining.State:
    """Return what is remembered of earlier decisions."""
    remembered = store.read_pointer(f"{case}/retraining") or {}
    champion, checkpoint = release.read_champion(store, case), latest(store, case, "finetuned_checkpoint")
    snapshot = store.load(CheckpointMetadata.of(checkpoint).snapshot) if checkpoint else None
    attempts = [retraining.Attempt.model_validate(attempt) for attempt in remembered.get("attempts", [])]
    return retraining.State(
        attempts=settle(attempts, checkpoint),
        asks=[retraining.Ask.model_validate(ask) for ask in remembered.get("asks", [])],
        trained_at=checkpoint.created_at if checkpoint else None,
        trained_on=snapshot.content_digest if snapshot else None,
        champion=champion.checkpoint if champion else None,
        champion_since=champion.promoted_at if champion else None,
    )


def settle(attempts: list[retraining.Attempt], checkpoint: Manifest | None) -> list[retraining.Attempt]:
    """Replace the estimate of the attempt that made a checkpoint by the hours that it took.

    An attempt that ended without a checkpoint keeps its estimate: what it spent counts against the month, too.
    """
    if checkpoint is None or not (made := [attempt for attempt in attempts if attempt.started_at < checkpoint.created_at]):
        return attempts
    newest = max(made, key=lambda attempt: attempt.started_at)
    hours = CheckpointMetadata.of(checkpoint).training_seconds / retraining.HOUR_SECONDS
    return [attempt.model_copy(update={"hours": hours}) if attempt is newest else attempt for attempt in attempts]


def record(store: Store, case: str, state: retraining.State, signals: retraining.Signals, decision: retraining.Decision) -> None:
    """Remember a decision: each one that differs from the one before, "no" included, with its reasons."""
    attempts, asks = list(state.attempts), list(state.asks)
    if decision.action == "retrain":
        attempts.append(retraining.Attempt(started_at=signals.now, hours=signals.estimated_hours, evidence=decision.evidence))
    elif decision.action == "ask_for_labels":
        asks.append(retraining.Ask(at=signals.now, evidence=decision.evidence))
    remembered = {"attempts": [attempt.model_dump() for attempt in attempts], "asks": [ask.model_dump() for ask in asks]}
    if (attempts or asks) and remembered != store.read_pointer(f"{case}/retraining"):
        store.write_pointer(f"{case}/retraining", remembered)
    names = store.list_pointers(f"{case}/retraining_decisions")
    last = store.read_pointer(f"{case}/retraining_decisions/{names[-1]}") if names else None
    if last is None or last["decision"] != decision.model_dump():
        entry = retraining.RecordedDecision(case=case, time=signals.now, signals=signals, decision=decision)
        store.write_pointer(f"{case}/retraining_decisions/{int(signals.now * 1000):014d}", entry.model_dump(mode="json"))
