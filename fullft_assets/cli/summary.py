"""What commands print of a use case's store: where reports are, and the lines that `fullft run` and
`fullft ingest` end with.
"""

import os
import sys
from pathlib import Path

from fullft_assets import evaluation, planning, release
from fullft_assets.artifacts import (
    BATCH_PREDICTIONS,
    DRIFT_REPORT,
    EVALUATION_REPORT,
    LABELED_EXAMPLES,
    PILOT_RUN,
    REPORT_PAGE,
    TOKENIZED_CHUNKS,
    TRAINING_SNAPSHOT,
)
from fullft_assets.checking.sample import suggested_group
from fullft_assets.errors import FullftError
from fullft_assets.escaping import visible
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.extras import problem_without
from fullft_assets.monitoring import PREDICTIONS, DriftMetadata, PredictionsMetadata
from fullft_assets.release import verdict_outlook
from fullft_assets.resources import latest, latest_by_partition
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot import SnapshotMetadata, red_gates
from fullft_assets.snapshot.deliveries import IDS_NAME_ONE_DOCUMENT
from fullft_assets.store import Manifest, Store


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
        page = with_outcome(page, outcome.sentence if outcome else "it has not been decided yet")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def data_summary(use_case: UseCase, store: Store, total: float) -> list[str]:
    """Return the lines that an ingestion ends with: rows, splits, time, and where the data report is."""
    lines = _data(use_case, store)
    snapshot = latest(store, use_case.name, TRAINING_SNAPSHOT)
    if snapshot is not None:
        outlook = verdict_outlook(SnapshotMetadata.of(snapshot), use_case.settings)
        lines += [f"  verdict        {outlook}"] if outlook else []
    if (suggestion := suggested_group(use_case)) is not None:
        lines.append(f"  group          {visible(suggestion)}")
    lines.append(f"  time           {total:.1f} s")
    if snapshot is not None:
        lines.append(f"  data report    {store.folder(snapshot) / REPORT_PAGE}")
        lines.append(f"  next           {_command('fullft')} run {use_case.name}")
    return lines


def summary(use_case: UseCase, store: Store, total: float) -> list[str]:
    """Return the lines that a run ends with: rows, splits, scores, verdict, time, and where the
    results are.
    """
    name = use_case.name
    lines = _data(use_case, store)
    report = latest(store, name, EVALUATION_REPORT)
    pilot = latest(store, name, PILOT_RUN)
    if pilot is not None and (refusal := planning.refusal(pilot)) is not None:
        lines.append(f"  verdict        {refusal[0].upper()}{refusal[1:]}")
    if report is not None:
        lines += _scores(store, use_case, report)
    for window, predictions in latest_by_partition(store, name, BATCH_PREDICTIONS).items():
        lines.append(
            f"  predictions    {window}: {PredictionsMetadata.of(predictions).num_rows:,} documents in"
            f" {store.folder(predictions) / PREDICTIONS}"
        )
    for window, drift in latest_by_partition(store, name, DRIFT_REPORT).items():
        verdict = DriftMetadata.of(drift)
        lines.append(f"  drift          {window}: {verdict.status}; {verdict.summary}")
    lines.append(f"  time           {total:.1f} s")
    if report is not None:
        lines.append(f"  report         {store.folder(report) / REPORT_PAGE}")
    champion = release.read_champion(store, name)
    if champion is not None:
        lines.append(f"  model          {store.folder(store.load(champion.checkpoint)) / 'model'}")
        lines.append(f"  try it         {_command('fullft')} predict {name} 'some text'")
    hint = "" if (problem := problem_without("dagster_webserver")) is None else f" ({problem})"
    command = f"DAGSTER_HOME={os.environ['DAGSTER_HOME']} {_command('fullft')} ui{hint}"
    return [
        *lines,
        f"  look at it     {'make ui' if (use_case.project_root / 'Makefile').is_file() else command}",
    ]


def _data(use_case: UseCase, store: Store) -> list[str]:
    name = use_case.name
    examples = latest_by_partition(store, name, LABELED_EXAMPLES)
    rows = [ExamplesMetadata.of(manifest) for manifest in examples.values()]
    lines = [
        f"{name}: summary",
        f"  rows in        {sum(batch.num_rows for batch in rows):,} in {len(rows)} batches:"
        f" {sum(batch.num_valid for batch in rows):,} valid, {sum(batch.num_quarantined for batch in rows):,}"
        " quarantined",
    ]
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
        lines += [
            f"  ids            {check.description}"
            for check in snapshot.checks
            if check.name == IDS_NAME_ONE_DOCUMENT.name and check.passed and check.description
        ]
    return lines


def _command(name: str) -> str:
    """Return a console script of this environment as a person here would type it."""
    path = Path(sys.executable).parent / name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _scores(store: Store, use_case: UseCase, report: Manifest) -> list[str]:
    metadata = EvaluationMetadata.of(report)
    champion = release.read_champion(store, use_case.name)
    is_champion = champion is not None and champion.checkpoint == metadata.checkpoint
    # Perplexity is the token probability of a language model in the unit that people know.
    metrics = (
        ("token_probability", "perplexity")
        if metadata.score(None, "perplexity") is not None
        else (metadata.primary_metric,)
    )
    lines = []
    candidate = metadata.candidate.replace(evaluation.FINETUNED, "fine-tuned")
    for metric in metrics:
        heading = f"test {evaluation.title(metric)}"
        score, low, high = (
            metadata.score(None, name) for name in (metric, f"{metric}_low", f"{metric}_high")
        )
        other_scores = [
            f"{other_score:.3f} {name}"
            for name in metadata.systems
            if (other_score := metadata.score(name, metric)) is not None
        ]
        lines.append(
            f"  {heading:<14} {score:.3f} [{low:.3f}, {high:.3f}] {candidate}; {', '.join(other_scores)}"
        )
    outcome = release.recorded_outcome(store, use_case.name, metadata.checkpoint)
    return [
        *lines,
        (
            f"  gain           {metadata.gain_over_best_baseline:+.3f}"
            f" [{metadata.gain_over_best_baseline_low:+.3f}, {metadata.gain_over_best_baseline_high:+.3f}]"
            f" over {metadata.best_baseline}"
        ),
        *([f"  worth it       {metadata.worth_sentence}"] if metadata.worth_sentence else []),
        f"  verdict        {outcome.sentence if outcome else metadata.verdict}"
        + (" It is the champion now." if is_champion else ""),
    ]
