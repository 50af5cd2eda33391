"""The lines that `fullft run` and `fullft ingest` end with."""

import os
import sys
from pathlib import Path

from fullft_assets import evaluation, planning, release
from fullft_assets.automation import INGEST, MODEL, MONITOR
from fullft_assets.checking.group_candidates import suggested_group
from fullft_assets.escaping import visible
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.extras import problem_without
from fullft_assets.monitoring import PREDICTIONS, DriftMetadata, PredictionsMetadata
from fullft_assets.planning import BaselinesMetadata
from fullft_assets.resources import latest, latest_by_partition
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot import SnapshotMetadata, red_gates, verdict_check
from fullft_assets.store import Manifest, Store
from fullft_assets.task import task_of


def data_summary(use_case: UseCase, store: Store, seconds: dict[str, float], total: float) -> list[str]:
    """Return the lines that an ingestion ends with: rows, splits, time, and where the data report is."""
    lines = _data(use_case, store)
    snapshot = latest(store, use_case.name, "training_snapshot")
    if (
        snapshot is not None
        and not (possible := verdict_check(SnapshotMetadata.of(snapshot), use_case.settings)).passed
    ):
        lines.append(f"  verdict        impossible: {possible.description}")
    if (suggestion := suggested_group(use_case)) is not None:
        lines.append(f"  group          {visible(suggestion)}")
    lines.append(_time(seconds, total))
    if (page := data_report(use_case, store)) is not None:
        lines.append(f"  data report    {page}")
        lines.append(f"  next           {_command('fullft')} run {use_case.name}")
    return lines


def data_report(use_case: UseCase, store: Store) -> Path | None:
    """Return the page about the newest snapshot's data, or None before the first snapshot."""
    snapshot = latest(store, use_case.name, "training_snapshot")
    return None if snapshot is None else store.folder(snapshot) / "report.html"


def evaluation_report(use_case: UseCase, store: Store) -> Path | None:
    """Return the page of the newest evaluation, or None before the first one."""
    report = latest(store, use_case.name, "evaluation_report")
    return None if report is None else store.folder(report) / "report.html"


def summary(use_case: UseCase, store: Store, seconds: dict[str, float], total: float) -> list[str]:
    """Return the lines that a run ends with: rows, splits, scores, verdict, time, and where the
    results are.
    """
    name = use_case.name
    lines = _data(use_case, store)
    report = latest(store, name, "evaluation_report")
    pilot = latest(store, name, "pilot_run")
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
    for window, predicted in latest_by_partition(store, name, "batch_predictions").items():
        rows = PredictionsMetadata.of(predicted).num_rows
        lines.append(
            f"  predictions    {window}: {rows:,} documents in {store.folder(predicted) / PREDICTIONS}"
        )
    for window, drift in latest_by_partition(store, name, "drift_report").items():
        lines.append(
            f"  drift          {window}: {DriftMetadata.of(drift).status}; {DriftMetadata.of(drift).summary}"
        )
    lines.append(_time(seconds, total))
    if report is not None:
        lines.append(f"  report         {evaluation_report(use_case, store)}")
    champion = release.read_state(store, name)
    if champion is not None:
        by_hand = [
            done
            for done in champion.interventions
            if done.action in ("promote", "rollback") and done.after == champion.checkpoint
        ]
        lines += [f"  by hand        {done.sentence}" for done in by_hand[:1]]
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
    examples = latest_by_partition(store, name, "labeled_examples")
    rows = [ExamplesMetadata.of(manifest) for manifest in examples.values()]
    lines.append(
        f"  rows in        {sum(batch.num_rows for batch in rows):,} in {len(rows)} batches:"
        f" {sum(batch.num_valid for batch in rows):,} valid, {sum(batch.num_quarantined for batch in rows):,}"
        " quarantined"
    )
    for batch, red in red_gates(examples, latest_by_partition(store, name, "tokenized_chunks")).items():
        lines += [
            f"  held back      batch {batch}: {gate.description.removeprefix(f'batch {batch}: ')}"
            for gate in red
        ]
    snapshot = latest(store, name, "training_snapshot")
    if snapshot is not None:
        metadata = SnapshotMetadata.of(snapshot)
        lines.append(
            f"  split          {metadata.num_train_rows:,} train,"
            f" {metadata.num_validation_rows:,} validation, {metadata.num_test_rows:,} test"
        )
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
    lines = []
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
            f"  {heading:<14} {score:.3f} [{low:.3f}, {high:.3f}] fine-tuned; {', '.join(other_scores)}"
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
    """Return a line for each baseline: its score with the interval, and what it took where the newest
    artifact has it.
    """
    intervals = evaluation.read_evaluation((store.folder(report) / "evaluation.json").read_bytes()).scores[
        evaluated.primary_metric
    ]
    newest = latest(store, report.case, "cheaper_baselines")
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
