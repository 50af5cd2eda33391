"""What commands print of a use case's store: where reports are, what runs where and what it has cost, and the
lines that `fullft run` and `fullft ingest` end with.
"""

import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from fullft_assets import evaluation, planning, release
from fullft_assets.artifacts import (
    BATCH_PREDICTIONS,
    CHEAPER_BASELINES,
    DRIFT_REPORT,
    EVALUATION_FILE,
    EVALUATION_REPORT,
    LABELED_EXAMPLES,
    PILOT_RUN,
    REPORT_PAGE,
    TOKENIZED_CHUNKS,
    TRAINING_SNAPSHOT,
)
from fullft_assets.automation import INGEST, MODEL, MONITOR
from fullft_assets.checking.sample import suggested_group
from fullft_assets.errors import FullftError
from fullft_assets.escaping import visible
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.extras import problem_without
from fullft_assets.jobs.launchers import open_recorded
from fullft_assets.launchers.records import Launch, launches
from fullft_assets.monitoring import PREDICTIONS, DriftMetadata, PredictionsMetadata
from fullft_assets.planning import BaselinesMetadata
from fullft_assets.resources import latest, latest_by_partition
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot import SnapshotMetadata, red_gates, verdict_check
from fullft_assets.snapshot.deliveries import IDS_NAME_ONE_DOCUMENT
from fullft_assets.store import Manifest, Store
from fullft_assets.task import task_of


def newest_report(use_case: UseCase, store: Store, which: str) -> Manifest:
    """Return the artifact with the newest report.

    Args:
        which: data or evaluation.

    Raises:
        FullftError: there is none yet.
    """
    artifact = latest(store, use_case.name, TRAINING_SNAPSHOT if which == "data" else EVALUATION_REPORT)
    if artifact is None:
        first = "ingest" if which == "data" else "run"
        raise FullftError(
            f"{use_case.name} has no {which} report yet; `fullft {first} {use_case.name}` writes one"
        )
    return artifact


def copy_report(store: Store, artifact: Manifest, out: Path) -> Path:
    """Write a report to a file; that of an evaluation with how the release ended since."""
    from fullft_assets.report import with_outcome

    page = (store.folder(artifact) / REPORT_PAGE).read_text(encoding="utf-8")
    if artifact.stage == EVALUATION_REPORT:
        outcome = release.recorded_outcome(store, artifact.case, EvaluationMetadata.of(artifact).checkpoint)
        page = with_outcome(page, outcome or "it has not been decided yet")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def job_lines(use_case: UseCase, store: Store, *, with_ended: bool) -> Iterator[str]:
    """Yield a line for each launch on record that has not ended, the newest first."""
    newest_first = sorted(launches(store, use_case.name), key=lambda launch: -launch.submitted_at)
    for launch in newest_first:
        if with_ended or launch.ended_at is None:
            yield _line(launch, _state(launch, store), launch.name_in(store))


def _line(launch: Launch, state: str, name: str) -> str:
    since = f"since {datetime.fromtimestamp(launch.submitted_at):%Y-%m-%d %H:%M:%S}"
    spent = [f"{launch.hours:.2f} h"]
    if launch.earlier_hours > 0:
        spent.append(f"{launch.earlier_hours:.2f} h in attempts before it")
    limit = launch.launcher.get("max_hours")
    if limit is not None and launch.ended_at is None:
        # `max_hours` counts from the start of the work, of which the record knows nothing.
        spent.append(f"at most {max(0.0, limit - launch.hours):.2f} h more beside its wait for GPUs")
    spent.append("price unknown" if launch.usd is None else f"{launch.usd:,.2f} USD")
    where = f"{launch.launcher['kind']} {launch.place}"
    return "  ".join(
        [
            f"{launch.case}/{launch.stage}",
            state,
            where,
            since,
            ", ".join(spent),
            f"run {launch.run_id[:8]}",
            name,
        ]
    )


def _state(launch: Launch, store: Store) -> str:
    if launch.ended_at is not None:
        return f"{launch.state}" + (
            f" ({launch.reason} [{launch.failure}])" if launch.state == "failed" else ""
        )
    try:
        launcher = open_recorded(launch.launcher)
        if launcher.place != launch.place:  # processes of another machine, which only it can see
            return "running (on record)"
        status = launcher.poll(launch.name_in(store))
    except FullftError as error:
        return f"unknown ({error})"
    # Whoever runs the use case again attaches to it, and records its end.
    if status.is_over:
        return f"ended, {status.state} (nobody follows it)"
    return status.state + (f" ({status.reason})" if status.reason else "")


def data_summary(use_case: UseCase, store: Store, seconds: dict[str, float], total: float) -> list[str]:
    """Return the lines that an ingestion ends with: rows, splits, time, and where the data report is."""
    lines = _data(use_case, store)
    snapshot = latest(store, use_case.name, TRAINING_SNAPSHOT)
    if (
        snapshot is not None
        and not (possible := verdict_check(SnapshotMetadata.of(snapshot), use_case.settings)).passed
    ):
        lines.append(f"  verdict        impossible: {possible.description}")
    if (suggestion := suggested_group(use_case)) is not None:
        lines.append(f"  group          {visible(suggestion)}")
    lines.append(_time(seconds, total))
    if snapshot is not None:
        lines.append(f"  data report    {store.folder(snapshot) / REPORT_PAGE}")
        lines.append(f"  next           {_command('fullft')} run {use_case.name}")
    return lines


def summary(use_case: UseCase, store: Store, seconds: dict[str, float], total: float) -> list[str]:
    """Return the lines that a run ends with: rows, splits, scores, verdict, time, and where the
    results are.
    """
    name = use_case.name
    lines = _data(use_case, store)
    report = latest(store, name, EVALUATION_REPORT)
    pilot = latest(store, name, PILOT_RUN)
    if pilot is not None and (refused := planning.refusal(pilot)) is not None:
        lines.append(f"  verdict        {refused[0].upper()}{refused[1:]}")
        lines.append(
            f"  spent          on the pilot alone, {planning.PilotMetadata.of(pilot).seconds:,.0f} s"
        )
    if report is not None:
        lines += _scores(store, use_case, report)
    if (
        use_case.settings.monitoring.path is not None
        and not task_of(use_case.settings.examples).detects_drift
    ):
        lines.append(
            f"  drift          not watched: the task {use_case.settings.examples.task} does not detect it"
        )
    for window, predicted in latest_by_partition(store, name, BATCH_PREDICTIONS).items():
        rows = PredictionsMetadata.of(predicted).num_rows
        lines.append(
            f"  predictions    {window}: {rows:,} documents in {store.folder(predicted) / PREDICTIONS}"
        )
    for window, drift in latest_by_partition(store, name, DRIFT_REPORT).items():
        lines.append(
            f"  drift          {window}: {DriftMetadata.of(drift).status}; {DriftMetadata.of(drift).summary}"
        )
    lines.append(_time(seconds, total))
    if report is not None:
        lines.append(f"  report         {store.folder(report) / REPORT_PAGE}")
    champion = release.read_state(store, name)
    if champion is not None:
        by_hand = [
            intervention
            for intervention in champion.interventions
            if intervention.action in ("promote", "rollback") and intervention.after == champion.checkpoint
        ]
        lines += [f"  by hand        {intervention.sentence}" for intervention in by_hand[:1]]
        if champion.frozen is not None:
            lines.append(
                f"  frozen         {champion.frozen.sentence}; `{name}_by_hand` with act: unfreeze lets the"
                " gates decide again"
            )
        lines.append(f"  model          {store.folder(store.load(champion.checkpoint)) / 'model'}")
        lines.append(f"  try it         {_command('fullft')} predict {name} 'some text'")
    has_make = (use_case.project_root / "Makefile").is_file()
    home = os.environ["DAGSTER_HOME"]
    hint = "" if (problem := problem_without("dagster_webserver")) is None else f" ({problem})"
    lines.append(
        "  look at it     " + ("make ui" if has_make else f"DAGSTER_HOME={home} {_command('dg')} dev{hint}")
    )
    return lines


def _data(use_case: UseCase, store: Store) -> list[str]:
    name = use_case.name
    lines = [f"{name}: summary"]
    examples = latest_by_partition(store, name, LABELED_EXAMPLES)
    rows = [ExamplesMetadata.of(manifest) for manifest in examples.values()]
    lines.append(
        f"  rows in        {sum(batch.num_rows for batch in rows):,} in {len(rows)} batches:"
        f" {sum(batch.num_valid for batch in rows):,} valid, {sum(batch.num_quarantined for batch in rows):,}"
        " quarantined"
    )
    for batch, red in red_gates(examples, latest_by_partition(store, name, TOKENIZED_CHUNKS)).items():
        lines += [
            f"  held back      batch {batch}: {gate.description.removeprefix(f'batch {batch}: ')}"
            for gate in red
        ]
    snapshot = latest(store, name, TRAINING_SNAPSHOT)
    if snapshot is not None:
        metadata = SnapshotMetadata.of(snapshot)
        lines.append(
            f"  split          {metadata.num_train_rows:,} train,"
            f" {metadata.num_validation_rows:,} validation, {metadata.num_test_rows:,} test"
        )
        # Too few to turn the check red, and yet each hides a document, or corrects one.
        lines += [
            f"  ids            {check.description}"
            for check in snapshot.checks
            if check.name == IDS_NAME_ONE_DOCUMENT.name and check.passed and check.description
        ]
    return lines


def _time(seconds: dict[str, float], total: float) -> str:
    steps = {*INGEST, *MODEL, *MONITOR} | set(seconds)
    spent = ", ".join(f"{step} {seconds[step]:.1f} s" for step in seconds if step in steps)
    return f"  time           {total:.1f} s in all: {spent}"


def _command(name: str) -> str:
    """Return a console script of this environment as a person here would type it."""
    path = Path(sys.executable).parent / name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _scores(store: Store, use_case: UseCase, report: Manifest) -> list[str]:
    evaluated = EvaluationMetadata.of(report)
    champion = release.read_champion(store, use_case.name)
    is_champion = champion is not None and champion.checkpoint == evaluated.checkpoint
    # Perplexity is the token probability of a language model in the unit that people know.
    metrics = (
        ("token_probability", "perplexity")
        if evaluated.score(None, "perplexity") is not None
        else (evaluated.primary_metric,)
    )
    lines, candidate = [], evaluated.candidate.replace(evaluation.FINETUNED, "fine-tuned")
    for metric in metrics:
        heading = f"test {evaluation.title(metric)}"
        score, low, high = (
            evaluated.score(None, name) for name in (metric, f"{metric}_low", f"{metric}_high")
        )
        other_scores = [
            f"{other_score:.3f} {name}"
            for name in evaluated.systems
            if (other_score := evaluated.score(name, metric)) is not None
        ]
        lines.append(
            f"  {heading:<14} {score:.3f} [{low:.3f}, {high:.3f}] {candidate}; {', '.join(other_scores)}"
        )
    return [
        *lines,
        *_baselines(store, report, evaluated),
        (
            f"  gain           {evaluated.gain_over_best_baseline:+.3f}"
            f" [{evaluated.gain_over_best_baseline_low:+.3f}, {evaluated.gain_over_best_baseline_high:+.3f}]"
            f" over {evaluated.best_baseline}"
        ),
        *([f"  worth it       {evaluated.worth_sentence}"] if evaluated.worth_sentence else []),
        "  verdict       "
        f" {release.recorded_outcome(store, use_case.name, evaluated.checkpoint) or evaluated.verdict}"
        + (" It is the champion now." if is_champion else ""),
    ]


def _baselines(store: Store, report: Manifest, evaluated: EvaluationMetadata) -> list[str]:
    intervals = evaluation.read_evaluation((store.folder(report) / EVALUATION_FILE).read_bytes()).scores[
        evaluated.primary_metric
    ]
    newest = latest(store, report.case, CHEAPER_BASELINES)
    baselines = None if newest is None else BaselinesMetadata.of(newest)
    lines = []
    for name in evaluated.systems:
        if baselines is not None and name in baselines.seconds and name in intervals:
            score = intervals[name]
            took = f"{baselines.seconds[name]:.1f} s" + (
                f", {baselines.usd[name]:.2f} USD" if baselines.usd[name] else ""
            )
            lines.append(
                f"  {'baseline':<14} {score.estimate:.3f} [{score.low:.3f}, {score.high:.3f}] {name}; {took}"
            )
    return lines
