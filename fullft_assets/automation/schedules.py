"""automation: jobs, sensors and schedules. They gather signals and carry decisions out; what to do is decided elsewhere."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import dagster as dg

from fullft_assets import documents, release, retraining
from fullft_assets.assets import representation, retokenization
from fullft_assets.assets.case import Case
from fullft_assets.chunks import ingestion
from fullft_assets.resources import latest, latest_by_partition, one_line_errors
from fullft_assets.store import Manifest, Store, digest

INGEST = ("raw_documents", "labeled_examples", "quarantined_examples", "tokenized_chunks")
MODEL = (
    "tokenizer_audit",
    "training_snapshot",
    "feasibility_plan",
    "cheaper_baselines",
    "pilot_run",
    "finetuned_checkpoint",
    "evaluation_report",
    "champion_model",
)
EVALUATE = ("training_snapshot", "evaluation_report")
MONITOR = ("production_documents", "drift_report")
#: Sections that shape the model: a change of them is new evidence for a retrain.
_MODEL_SECTIONS = {"base_model", "trust_remote_code", "seed", "examples", "chunks", "snapshot", "planning", "training"}
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_IN_FLIGHT = [status for status in _UNFINISHED if status != dg.DagsterRunStatus.NOT_STARTED]
#: Carries the run key on runs of the daemon and of `fullft run` alike: Dagster's own tag is the daemon's alone.
_REQUEST_TAG = "delivery/run_key"
#: Run keys looked up in one query.
_ASKED_TOGETHER = 100


def build_jobs(case: Case) -> list[dg.JobDefinition]:
    """Return the jobs; one run cannot mix partition kinds, so there is one for each."""

    def job(name: str, assets: tuple[str, ...], description: str, partitions=None, more_checks: tuple[dg.AssetCheckKey, ...] = ()):
        selection = dg.AssetSelection.assets(*[case.key(asset) for asset in assets])
        if more_checks:
            selection |= dg.AssetSelection.checks(*more_checks)
        return dg.define_asset_job(
            f"{case.name}_{name}", selection, partitions_def=partitions, description=description, tags={"use_case": case.name}
        )

    jobs = [
        job("ingest", INGEST, "One batch of delivered files: read, validate, tokenise.", case.batches),
        retokenization.build_job(case),
        job("model", MODEL, "Snapshot, plan, baselines, pilot, full fine-tuning, evaluation, release."),
        job("evaluate", EVALUATE, "Score the latest checkpoint and the champion on the newest test rows."),
    ]
    if case.is_monitored:
        about = "One window of production documents: has it drifted?"
        # A new window may show that the training data is no longer what production sees.
        jobs.append(job("monitor", MONITOR, about, case.windows, (representation.check_key(case),)))
    return jobs


def build_sensors(case: Case) -> list[dg.SensorDefinition]:
    """Return the sensors, stopped until somebody turns them on."""
    sensors = [_delivery_sensor(case, "batch"), _retraining_sensor(case)]
    if case.is_monitored:
        sensors.append(_delivery_sensor(case, "window"))
    return sensors


def build_schedules(case: Case) -> list[dg.ScheduleDefinition]:
    """Return the periodic retraining decision and the periodic evaluation."""

    @dg.schedule(
        name=f"{case.name}_retraining_schedule",
        job_name=f"{case.name}_model",
        cron_schedule=case.settings.retraining.schedule,
        description="Decides periodically whether to train again; a champion past its age is a reason here.",
    )
    def retraining_schedule(context: dg.ScheduleEvaluationContext):
        return decide_and_record(case, context.instance, scheduled=True)

    @dg.schedule(
        name=f"{case.name}_evaluation_schedule",
        job_name=f"{case.name}_evaluate",
        cron_schedule=case.settings.retraining.evaluation_schedule,
        description="Scores the latest checkpoint and the champion on the newest labelled test rows.",
    )
    def evaluation_schedule(context: dg.ScheduleEvaluationContext):
        if latest(case.store(context.instance), case.name, "finetuned_checkpoint") is None:
            return dg.SkipReason("no checkpoint yet; run the model job first")
        return dg.RunRequest()

    return [retraining_schedule, evaluation_schedule]


def _delivery_sensor(case: Case, kind: documents.Kind) -> dg.SensorDefinition:
    name, job, partitions = {
        "batch": (f"{case.name}_new_documents", f"{case.name}_ingest", case.batches),
        "window": (f"{case.name}_new_production_documents", f"{case.name}_monitor", case.windows),
    }[kind]
    settings = case.settings
    path = settings.documents.path if kind == "batch" else settings.monitoring.path

    @dg.sensor(
        name=name,
        job_name=job,
        minimum_interval_seconds=settings.documents.poll_seconds,
        description=f"Cuts new and changed files into {kind}es and runs each once."
        if kind == "batch"
        else "Compares each new production file with what the model learned on.",
    )
    def new_files(context: dg.SensorEvaluationContext):
        store = case.store(context.instance)
        # A run that fails for want of a model would use up the window's run key.
        if kind == "window" and latest(store, case.name, "finetuned_checkpoint") is None:
            return dg.SkipReason("no model to compare with yet; run the model job first")
        with one_line_errors():
            found = documents.look(store, case.use_case, kind)
            due = _due(case, context.instance, store, kind, job)
        # A partition that a tick or an instance has lost would hide its batch from the snapshot.
        known = set(context.instance.get_dynamic_partitions(partitions.name))
        if lost := sorted((due.done | due.running) - known):
            context.instance.add_dynamic_partitions(partitions.name, lost)
        if not due.requests:
            running = [f"{len(due.running):,} {kind}(es) in flight"] if due.running else []
            return dg.SkipReason("; ".join([f"nothing new in {path}", *found.notes, *running]))
        for note in found.notes:
            context.log.info(note)
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=key, partition_key=batch, tags={_REQUEST_TAG: key}) for batch, key in due.requests.items()],
            dynamic_partitions_requests=[partitions.build_add_request(list(due.requests))],
        )

    return new_files


@dataclass(frozen=True)
class _Due:
    """What of the ledger needs a run."""

    #: Run key by batch, oldest first; at most `max_runs_per_tick`.
    requests: dict[str, str]
    running: set[str]
    done: set[str]


def _due(case: Case, instance: dg.DagsterInstance, store: Store, kind: documents.Kind, job: str) -> _Due:
    """Return which batches to launch. The ledger in the store is the truth, not the sensor's cursor.

    What a tick that died has cut is launched by the next, and an edit of the YAML makes batches due again. A batch
    whose run failed comes after all that never had one (the daemon drops its run key, `fullft run` tries again), and
    one in flight takes no place, so that neither starves the rest.
    """
    if kind == "batch":
        done, version = ingestion.done(store, case.use_case), ingestion.version(case.use_case)
    else:
        done, version = set(store.list_pointers(f"latest/{case.name}/drift_report")), "1"
    batches = [batch for batch in documents.list_batches(store, case.name, kind) if batch.name not in done]
    in_flight = instance.get_runs(dg.RunsFilter(job_name=job, statuses=_IN_FLIGHT)) if batches else []
    running = {run.tags.get("dagster/partition") for run in in_flight} & {batch.name for batch in batches}
    most = case.settings.documents.max_runs_per_tick
    source = documents.source_of(case.use_case, kind)
    # A batch that could not be read and whose files were since mended or taken away would fail again.
    launchable = (
        batch.name
        for batch in batches
        if batch.name not in running
        and (documents.is_delivered(source, batch) or documents.kept(store, case.name, batch.name, kind) is not None)
    )
    first: list[str] = []
    again: list[str] = []
    while len(first) < most and (some := list(islice(launchable, _ASKED_TOGETHER))):
        had = _had_a_run(instance, [f"{name}-{version}" for name in some])
        for name in some:
            (again if f"{name}-{version}" in had else first).append(name)
    return _Due({name: f"{name}-{version}" for name in (first + again)[:most]}, running, done)


def _had_a_run(instance: dg.DagsterInstance, keys: list[str]) -> set[str]:
    """Return which of these run keys have a run already."""
    runs = instance.get_runs(dg.RunsFilter(tags={_REQUEST_TAG: keys}))
    # A daemon that died between making a run and launching it does so when the same key is asked for again.
    return {run.tags[_REQUEST_TAG] for run in runs if run.status != dg.DagsterRunStatus.NOT_STARTED}


def _retraining_sensor(case: Case) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{case.name}_retraining",
        job_name=f"{case.name}_model",
        minimum_interval_seconds=60,
        description="Trains again on enough new data, drift or a worse score, within cooldown and budget; else records why not.",
    )
    def retrain(context: dg.SensorEvaluationContext):
        return decide_and_record(case, context.instance, scheduled=False)

    return retrain


def decide_and_record(case: Case, instance: dg.DagsterInstance, *, scheduled: bool) -> dg.RunRequest | dg.SkipReason:
    """Gather the signals, decide, record the decision, and return what Dagster has to do."""
    with one_line_errors():
        store = case.store(instance)
        state = read_state(store, case.name)
        signals = gather(case, instance, store, state, scheduled=scheduled)
        decision = retraining.decide(state, signals, case.settings.retraining)
        record(store, case.name, state, signals, decision)
    if decision.action != "retrain":
        return dg.SkipReason(f"{decision.action}: {'; '.join(decision.reasons)}")
    reasons = "; ".join(decision.reasons)
    return dg.RunRequest(run_key=retraining.run_key(state, decision), tags={"retraining/reasons": reasons[:250]})


def gather(case: Case, instance: dg.DagsterInstance, store: Store, state: retraining.State, *, scheduled: bool) -> retraining.Signals:
    """Read what the store and the instance know into the policy's signals."""
    examples = latest_by_partition(store, case.name, "labeled_examples")
    checkpoint = latest(store, case.name, "finetuned_checkpoint")
    # Not simply the newest snapshot: the periodic evaluation takes one that nothing was trained on.
    snapshot = store.load(checkpoint.metadata["snapshot"]) if checkpoint else latest(store, case.name, "training_snapshot")
    seen = set(snapshot.metadata["parts"]) if snapshot else set()
    usable = {n: m for n, m in examples.items() if all(c.passed for c in m.checks if c.severity == "error")}
    windows = [
        retraining.Window(key=name, status=manifest.metadata["status"], at=manifest.created_at)
        for name, manifest in latest_by_partition(store, case.name, "drift_report").items()
    ]
    windows.sort(key=lambda window: window.at)
    plan = latest(store, case.name, "feasibility_plan")
    return retraining.Signals(
        now=time.time(),
        num_new_examples=sum(manifest.metadata["num_valid"] for name, manifest in usable.items() if name not in seen),
        data_version=digest(sorted(manifest.content_digest for manifest in usable.values())),
        settings_version=digest(case.settings.model_dump(include=_MODEL_SECTIONS, mode="json")),
        windows=windows,
        num_windows_since_training=sum(checkpoint is None or window.at > checkpoint.created_at for window in windows),
        score_drop=_score_drop(store, case),
        estimated_hours=plan.metadata["planned_hours"] if plan else 0.0,
        num_runs_in_flight=num_trainings_in_flight(case, instance),
        scheduled=scheduled,
    )


def num_trainings_in_flight(case: Case, instance: dg.DagsterInstance) -> int:
    """Return how many unfinished runs train the case's model: those of its job, and assets materialised by hand."""
    checkpoint = case.key("finetuned_checkpoint")
    runs = instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED))
    return sum(run.job_name == f"{case.name}_model" or checkpoint in (run.asset_selection or ()) for run in runs)


def _score_drop(store: Store, case: Case) -> float | None:
    """Return the champion's score at its release minus its score on newer test rows, if those were scored."""
    champion = release.read_champion(store, case.name)
    report = latest(store, case.name, "evaluation_report")
    if champion is None or report is None or report.ref == champion.evaluation:
        return None
    metric = case.settings.primary_metric
    is_candidate = report.metadata["checkpoint"] == champion.checkpoint
    newest = report.metadata.get(metric if is_candidate else f"champion_{metric}")
    return None if newest is None else champion.score - newest


def read_state(store: Store, case: str) -> retraining.State:
    """Return what is remembered of earlier decisions."""
    remembered = store.read_pointer(f"{case}/retraining") or {}
    champion, checkpoint = release.read_champion(store, case), latest(store, case, "finetuned_checkpoint")
    snapshot = store.load(checkpoint.metadata["snapshot"]) if checkpoint else None
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
    made = [attempt for attempt in attempts if checkpoint is not None and attempt.started_at < checkpoint.created_at]
    if not made:
        return attempts
    newest = max(made, key=lambda attempt: attempt.started_at)
    hours = checkpoint.metadata["training_seconds"] / retraining.HOUR_SECONDS
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


def all_assets(case: Case) -> Iterator[str]:
    """Yield the names of the case's assets."""
    yield from (*INGEST, *MODEL)
    if case.is_monitored:
        yield from MONITOR
