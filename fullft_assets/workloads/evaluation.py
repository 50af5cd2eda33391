"""evaluation: finetuned_checkpoint, cheaper_baselines, pilot_run, training_snapshot -> evaluation_report.

Run by a launcher or by hand: `python -m fullft_assets.workloads.evaluation --job URI`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fullft_assets import evaluation, release, report
from fullft_assets.errors import DataError
from fullft_assets.evaluation import FINETUNED, Evaluation
from fullft_assets.jobs import Job
from fullft_assets.jobs.process import Progress, run_workload
from fullft_assets.release import Verdict
from fullft_assets.settings import ExamplesSettings
from fullft_assets.snapshot import Split, load_split, near_duplicates
from fullft_assets.store import CheckOutcome, Manifest, Store
from fullft_assets.tasks.classification import judge as judging_labels
from fullft_assets.tasks.judging import Docket, Judged
from fullft_assets.tasks.language import judge as judging_tokens
from fullft_assets.tasks.multi_label import judge as judging_multi_label
from fullft_assets.tasks.token_classification import judge as judging_spans
from fullft_assets.training.lineage import snapshots_learned_from

#: The step log within a checkpoint artifact.
STEP_LOG = "logs/metrics.jsonl"


def judge_of(examples: ExamplesSettings) -> Callable[[Docket, Split], Judged]:
    """Return who knows the metrics of a task."""
    if examples.task in ("sft", "language_modeling"):
        return judging_tokens.judge
    if examples.task == "token_classification":
        return judging_spans.judge
    return judging_labels.judge if examples.has_one_label else judging_multi_label.judge


def work(job: Job, store: Store, progress: Progress) -> None:
    """Judge a candidate on the test rows and write the report."""
    inputs = job.load_inputs(store)
    snapshot, checkpoint = inputs["training_snapshot"], inputs["finetuned_checkpoint"]
    test = load_split(store, snapshot, "test")
    delivered = len(test)
    test = unseen(job, store, inputs, test)
    if len(test) < delivered:
        progress.say(
            f"{delivered - len(test):,} test rows left out: a model learned from them, or from near-duplicates, in an older snapshot"
        )
    judged = judge_of(job.settings.examples)(Docket(job, store, inputs, progress), test)
    found = judged.evaluation
    decision = release.verdict(found, job.settings.release)
    progress.say(found.justification.sentence)
    progress.say(decision.sentence)
    with store.create(job.case, job.stage, job.key, version=evaluation.VERSION, seed=job.settings.seed) as draft:
        pq.write_table(judged.rows, draft.path / "predictions.parquet")
        (draft.path / "evaluation.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")
        (draft.path / "decision.json").write_text(decision.model_dump_json(indent=1), encoding="utf-8")
        shown = report.Report(
            case=job.case,
            evaluation=found,
            verdict=decision,
            base_model=job.settings.base_model,
            answers=judged.examples,
            training_log=read_step_log(store.folder(checkpoint) / STEP_LOG),
            learning_curve=inputs["pilot_run"].metadata.get("learning_curve", []),
            data=report.data_rows(snapshot),
            lineage=report.lineage_rows(inputs, job.settings, job.key),
            cost=report.cost_rows(checkpoint),
            forgetting=report.forgetting_rows(checkpoint),
        )
        report.write(draft.path, shown)
        draft.commit(
            settings=job.settings.model_dump(include={"evaluation", "release"}, mode="json"),
            inputs={name: manifest.content_digest for name, manifest in inputs.items()},
            metadata={**_metadata(judged, decision, inputs), "num_test_rows_left_out": delivered - len(test)},
            checks=_checks(found, decision),
        )


def unseen(job: Job, store: Store, inputs: Mapping[str, Manifest], test: Split) -> Split:
    """Return the test rows that neither the candidate nor the champion has learned from, literally or nearly.

    A snapshot keeps its own training rows away from its test rows, but a checkpoint that is older than the snapshot
    (periodic evaluation, a champion) was trained on another one's.

    Raises:
        DataError: no row is left.
    """
    settings = job.settings.snapshot
    judged = [inputs[name] for name in ("finetuned_checkpoint", "champion") if name in inputs]
    learned_from = dict.fromkeys(ref for checkpoint in judged for ref in snapshots_learned_from(checkpoint))
    trained_on = {snapshot.content_digest: snapshot for snapshot in map(store.load, learned_from)}
    trained_on.pop(inputs["training_snapshot"].content_digest, None)
    seen: set[int] = set()
    for snapshot in trained_on.values():
        train = load_split(store, snapshot, "train")
        seen.update(near_duplicates(train.texts, test.texts, settings.near_duplicate_similarity, job.settings.seed))
    if len(seen) == len(test):
        raise DataError("evaluation: every test row was learned from by a model under judgement; deliver new labelled documents")
    return test.select([row for row in range(len(test)) if row not in seen]) if seen else test


def read_step_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a step log, or nothing where a checkpoint came without one."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _metadata(judged: Judged, decision: Verdict, inputs: Mapping[str, Manifest]) -> dict[str, Any]:
    found = judged.evaluation
    gain, over_champion = found.gain_over_best_baseline, found.gain_over_champion
    metadata = {
        "verdict": decision.sentence,
        "justification": found.justification.sentence,
        "promote": decision.promote,
        "justified": found.justification.justified,
        "primary_metric": found.primary_metric,
        "num_test_rows": found.num_test_rows,
        "num_test_groups": found.num_test_groups,
        **judged.headline,
        "best_baseline": found.justification.best_baseline,
        "gain_over_best_baseline": gain.estimate,
        "gain_over_best_baseline_low": gain.low,
        "gain_over_best_baseline_high": gain.high,
        "gain_over_champion": over_champion.estimate if over_champion else None,
        **{name: value for name, value in inputs["finetuned_checkpoint"].metadata.items() if name.startswith("general_")},
        "checkpoint": inputs["finetuned_checkpoint"].ref,
        "incumbent": inputs["champion"].ref if "champion" in inputs else None,
    }
    for name in found.scores[found.primary_metric]:
        if name != FINETUNED:
            metadata |= {f"{name}_{metric}": values[name].estimate for metric, values in found.columns.items() if name in values}
    return metadata


def _checks(found: Evaluation, decision: Verdict) -> list[CheckOutcome]:
    numbers = _gate_numbers(found)
    checks = [
        CheckOutcome(
            name=reason.gate, passed=reason.passed, severity="warn", description=reason.text, metadata=numbers.get(reason.gate, {})
        )
        for reason in decision.reasons
    ]
    half_width = found.score.half_width
    enough = half_width <= evaluation.MAX_HALF_WIDTH
    description = f"{evaluation.title(found.primary_metric)} is known to ±{half_width:.3f} on {found.num_test_groups:,} groups"
    if not enough:
        description += f", wanted is ±{evaluation.MAX_HALF_WIDTH}; deliver more groups or raise snapshot.test_share"
    metadata = {"half_width": half_width, "num_test_rows": found.num_test_rows, "num_test_groups": found.num_test_groups}
    return [
        *checks,
        CheckOutcome(name="test_set_is_large_enough", passed=enough, severity="warn", description=description, metadata=metadata),
    ]


def _gate_numbers(found: Evaluation) -> dict[str, dict[str, float]]:
    """Return what the UI plots over evaluations beside each gate."""
    gain, over_champion = found.gain_over_best_baseline, found.gain_over_champion
    numbers = {
        "beats_baselines": {"gain": gain.estimate, "gain_low": gain.low, "gain_high": gain.high},
        "score_is_sufficient": {found.primary_metric: found.score.estimate},
    }
    if found.calibration_error is not None:
        numbers["is_calibrated"] = {"calibration_error": found.calibration_error}
    if over_champion is not None:
        numbers["beats_champion"] = {"gain": over_champion.estimate, "gain_low": over_champion.low, "gain_high": over_champion.high}
    return numbers


if __name__ == "__main__":
    run_workload(work)
