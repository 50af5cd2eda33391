"""The lines that `fullft run` ends with."""

import os
import sys
from pathlib import Path

from fullft_assets import evaluation, release
from fullft_assets.automation import INGEST, MODEL, MONITOR
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.monitoring import DriftMetadata
from fullft_assets.resources import latest, latest_by_partition
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store
from fullft_assets.task import task_of


def summary(use_case: UseCase, store: Store, seconds: dict[str, float], total: float) -> list[str]:
    """Return the lines that a run ends with: rows, splits, scores, verdict, time, and where the results are."""
    name = use_case.name
    lines = [f"{name}: summary"]
    examples = latest_by_partition(store, name, "labeled_examples").values()
    lines.append(
        f"  rows in        {sum(m.metadata['num_rows'] for m in examples):,} in {len(examples)} batches: "
        f"{sum(m.metadata['num_valid'] for m in examples):,} valid, {sum(m.metadata['num_quarantined'] for m in examples):,} quarantined"
    )
    for manifest in examples:
        held_back = [check.description for check in manifest.checks if not check.passed and check.severity == "error"]
        lines += [f"  held back      {description}" for description in held_back]
    snapshot = latest(store, name, "training_snapshot")
    if snapshot is not None:
        counts = snapshot.metadata
        lines.append(
            f"  split          {counts['num_train_rows']:,} train, {counts['num_validation_rows']:,} validation, {counts['num_test_rows']:,} test"
        )
    report = latest(store, name, "evaluation_report")
    if report is not None:
        lines += _scores(store, use_case, report)
    if use_case.settings.monitoring.path is not None and not task_of(use_case.settings.examples).detects_drift:
        lines.append(f"  drift          not watched: the task {use_case.settings.examples.task} does not detect it")
    for window, drift in latest_by_partition(store, name, "drift_report").items():
        lines.append(f"  drift          {window}: {DriftMetadata.of(drift).status}; {DriftMetadata.of(drift).summary}")
    stages = {"ingest": INGEST, "model": MODEL, "monitor": MONITOR}
    known = {asset for assets in stages.values() for asset in assets} | set(seconds)
    spent = ", ".join(f"{step} {seconds[step]:.1f} s" for step in seconds if step in known)
    lines.append(f"  time           {total:.1f} s in all: {spent}")
    if report is not None:
        lines.append(f"  report         {store.folder(report) / 'report.html'}")
    champion = release.read_champion(store, name)
    if champion is not None:
        lines.append(f"  model          {store.folder(store.load(champion.checkpoint)) / 'model'}")
        lines.append(f"  try it         {_command('fullft')} predict {name} 'some text'")
    has_make = (use_case.project_root / "Makefile").is_file()
    home = os.environ["DAGSTER_HOME"]
    lines.append("  look at it     " + ("make ui" if has_make else f"DAGSTER_HOME={home} {_command('dg')} dev"))
    return lines


def _command(name: str) -> str:
    """Return a console script of this environment as a person here would type it."""
    path = Path(sys.executable).parent / name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _scores(store: Store, use_case: UseCase, report: Manifest) -> list[str]:
    found, others = report.metadata, EvaluationMetadata.of(report).systems
    champion = release.read_champion(store, use_case.name)
    is_champion = champion is not None and champion.checkpoint == found["checkpoint"]
    primary = found["primary_metric"]
    # Perplexity is the token probability of a language model in the unit that people know.
    metrics = ("token_probability", "perplexity") if "perplexity" in found else (primary if f"{primary}_low" in found else "macro_f1",)
    lines = []
    for metric in metrics:
        heading = f"test {evaluation.title(metric)}"
        ours = f"{found[metric]:.3f} [{found[f'{metric}_low']:.3f}, {found[f'{metric}_high']:.3f}] fine-tuned"
        scores = [ours, ", ".join(f"{found[f'{name}_{metric}']:.3f} {name}" for name in others if f"{name}_{metric}" in found)]
        lines.append(f"  {heading:<14} {'; '.join(scores)}")
    return [
        *lines,
        f"  gain           {found['gain_over_best_baseline']:+.3f} [{found['gain_over_best_baseline_low']:+.3f}, "
        f"{found['gain_over_best_baseline_high']:+.3f}] over {found['best_baseline']}",
        f"  verdict        {found['verdict']}" + (" It is the champion now." if is_champion else ""),
    ]
