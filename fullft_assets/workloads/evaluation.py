"""evaluation: finetuned_checkpoint, cheaper_baselines, pilot_run, training_snapshot -> evaluation_report.

Run by a launcher or by hand: `python -m fullft_assets.workloads.evaluation --job URI`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoConfig

from fullft_assets import evaluation, release, report
from fullft_assets.base_model import resolve_base_model
from fullft_assets.chunks import Tokenization
from fullft_assets.errors import DataError, StoreError
from fullft_assets.evaluation import CHAMPION, FINETUNED, Evaluation
from fullft_assets.jobs import Job
from fullft_assets.release import Verdict
from fullft_assets.snapshot import Split, label_names, load_split, near_duplicates
from fullft_assets.store import CheckOutcome, Manifest, Store
from fullft_assets.workloads import baselines, metrics
from fullft_assets.workloads.entry import Progress, run_workload
from fullft_assets.workloads.inference import predict

#: The step log within a checkpoint artifact.
STEP_LOG = "logs/metrics.jsonl"
NUM_ANSWERS = 5


def work(job: Job, store: Store, progress: Progress) -> None:
    """Judge a candidate on the test rows and write the report."""
    inputs = job.load_inputs(store)
    snapshot, checkpoint = inputs["training_snapshot"], inputs["finetuned_checkpoint"]
    labels, test = label_names(snapshot), load_split(store, snapshot, "test")
    delivered = len(test)
    test = unseen(job, store, inputs, test)
    if len(test) < delivered:
        progress.say(
            f"{delivered - len(test):,} test rows left out: a model learned from them, or from near-duplicates, in an older snapshot"
        )
    probabilities = predict_all(job, store, inputs, test, labels, progress)
    progress.say(f"{job.settings.evaluation.resamples:,} resamples over the groups of {len(test):,} test rows ...")
    found = evaluation.assess(
        test.labels,
        probabilities,
        test.groups,
        labels,
        job.settings.evaluation,
        seed=job.settings.seed,
        metric=job.settings.primary_metric,
        min_gain=job.settings.release.min_gain_over_baselines,
    )
    headline = metrics.headline(test.labels, probabilities[FINETUNED], job.settings.evaluation.calibration_bins)
    decision = release.verdict(found, job.settings.release)
    progress.say(found.justification.sentence)
    progress.say(decision.sentence)
    with store.create(job.case, job.stage, job.key, version=evaluation.VERSION, seed=job.settings.seed) as draft:
        _write_predictions(draft.path / "predictions.parquet", test, probabilities[FINETUNED], labels)
        (draft.path / "evaluation.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")
        (draft.path / "decision.json").write_text(decision.model_dump_json(indent=1), encoding="utf-8")
        shown = report.Report(
            case=job.case,
            evaluation=found,
            verdict=decision,
            base_model=job.settings.base_model,
            answers=pick_answers(test, probabilities, found, job.settings.seed),
            training_log=read_step_log(store.folder(checkpoint) / STEP_LOG),
            learning_curve=inputs["pilot_run"].metadata.get("learning_curve", []),
            data=report.data_rows(snapshot),
            lineage=report.lineage_rows(inputs, job.settings, job.key),
            cost=report.cost_rows(checkpoint),
        )
        report.write(draft.path, shown)
        draft.commit(
            settings=job.settings.model_dump(include={"evaluation", "release"}, mode="json"),
            inputs={name: manifest.content_digest for name, manifest in inputs.items()},
            metadata={**_metadata(found, decision, headline, inputs), "num_test_rows_left_out": delivered - len(test)},
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
    trained_on = {m.content_digest: m for m in (store.load(checkpoint.metadata["snapshot"]) for checkpoint in judged)}
    trained_on.pop(inputs["training_snapshot"].content_digest, None)
    seen: set[int] = set()
    for snapshot in trained_on.values():
        train = load_split(store, snapshot, "train")
        seen.update(near_duplicates(train.texts, test.texts, settings.near_duplicate_similarity, job.settings.seed))
    if len(seen) == len(test):
        raise DataError("evaluation: every test row was learned from by a model under judgement; deliver new labelled documents")
    return test.select([row for row in range(len(test)) if row not in seen]) if seen else test


def predict_all(
    job: Job, store: Store, inputs: Mapping[str, Manifest], test: Split, labels: list[str], progress: Progress
) -> dict[str, np.ndarray]:
    """Return the label probabilities [rows, labels] of the candidate, each baseline and the champion."""
    folder = store.folder(inputs["finetuned_checkpoint"]) / "model"
    progress.say(f"fine-tuned model on {len(test):,} test rows ...")
    # The snapshot may be newer than the checkpoint (periodic evaluation), and know other labels.
    theirs = model_labels(folder)
    windows = _windows_for(inputs["finetuned_checkpoint"], test, job, store, inputs)
    found = {FINETUNED: map_labels(predict(folder, windows, progress=progress).probabilities, theirs, labels)}
    base_model, added_tokens = resolve_base_model(job.settings.base_model, Path(job.project_root)), job.settings.chunks.added_tokens
    for name, baseline in baselines.load(store.folder(inputs["cheaper_baselines"]), base_model, added_tokens).items():
        progress.raise_if_stopped()
        progress.say(f"{evaluation.title(name)} on {len(test):,} test rows ...")
        found[name] = map_labels(baseline.predict(test), inputs["cheaper_baselines"].metadata["labels"], labels)
    if "champion" in inputs:
        progress.say(f"champion on {len(test):,} test rows ...")
        champion = store.folder(inputs["champion"]) / "model"
        windows = _windows_for(inputs["champion"], test, job, store, inputs)
        found[CHAMPION] = map_labels(predict(champion, windows, progress=progress).probabilities, model_labels(champion), labels)
    return found


def model_labels(model_folder: Path) -> list[str]:
    """Return a classifier's label names in the order of its outputs."""
    names = AutoConfig.from_pretrained(str(model_folder), trust_remote_code=False).id2label
    return [names[i] for i in range(len(names))]


def map_labels(probabilities: np.ndarray, theirs: list[str], ours: list[str]) -> np.ndarray:
    """Bring probabilities [n, their labels] into our label order [n, ours], as shares of the labels that both know.

    A label that the model does not know has probability 0.

    Raises:
        StoreError: the two label lists have nothing in common.
    """
    if theirs == ours:
        return probabilities
    shared = [label for label in ours if label in theirs]
    if not shared:
        raise StoreError(
            f"the model knows none of the labels {', '.join(ours)}, only {', '.join(theirs)}; give the new labels a use case of their own"
        )
    mapped = np.zeros((len(probabilities), len(ours)))
    mapped[:, [ours.index(label) for label in shared]] = probabilities[:, [theirs.index(label) for label in shared]]
    # A model that is sure of a label that left the list has next to nothing to share out: no information.
    known = mapped.sum(axis=1, keepdims=True)
    uniform = np.isin(ours, shared) / len(shared)
    return np.where(known > 0, mapped / np.where(known > 0, known, 1), uniform)


def pick_answers(test: Split, probabilities: Mapping[str, np.ndarray], found: Evaluation, seed: int) -> list[report.Answer]:
    """Draw test rows at random, first among those on which the fine-tuned model and the best baseline disagree."""
    tuned = probabilities[FINETUNED].argmax(1)
    baseline = probabilities[found.justification.best_baseline].argmax(1)
    order = np.random.default_rng(seed).permutation(len(test))
    order = order[np.argsort(tuned[order] == baseline[order], kind="stable")]
    return [
        report.Answer(report.shorten(test.texts[i]), found.labels[test.labels[i]], found.labels[baseline[i]], found.labels[tuned[i]])
        for i in order[:NUM_ANSWERS]
    ]


def read_step_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a step log, or nothing where a checkpoint came without one."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _windows_for(checkpoint: Manifest, test: Split, job: Job, store: Store, inputs: Mapping[str, Manifest]) -> list[list[list[int]]]:
    # Token ids only mean something to the tokenizer that made them.
    if _tokenizer_of(store, store.load(checkpoint.metadata["snapshot"])) == _tokenizer_of(store, inputs["training_snapshot"]):
        return test.windows
    return Tokenization.load_saved(store.folder(checkpoint) / "model", job.settings.chunks).windows(test.texts)


def _tokenizer_of(store: Store, snapshot: Manifest) -> str:
    """Return the digest of the tokenizer that made all windows of a snapshot."""
    part = next(iter(snapshot.metadata["parts"].values()))
    return store.load(part["chunks"]).inputs["tokenizer"]


def _write_predictions(path: Path, test: Split, probabilities: np.ndarray, labels: list[str]) -> None:
    predicted = probabilities.argmax(axis=1)
    columns = {
        "id": test.ids,
        "label": [labels[i] for i in test.labels],
        "predicted": [labels[i] for i in predicted],
        "probability": probabilities.max(axis=1).astype(np.float32),
        "group": test.groups,
    }
    pq.write_table(pa.table(columns), path)


def _metadata(found: Evaluation, decision: Verdict, headline: Mapping[str, float], inputs: Mapping[str, Manifest]) -> dict[str, Any]:
    gain, over_champion = found.gain_over_best_baseline, found.gain_over_champion
    metadata = {
        "verdict": decision.sentence,
        "justification": found.justification.sentence,
        "promote": decision.promote,
        "justified": found.justification.justified,
        "primary_metric": found.primary_metric,
        "num_test_rows": found.num_test_rows,
        "num_test_groups": found.num_test_groups,
        **headline,
        "macro_f1_low": found.scores["macro_f1"][FINETUNED].low,
        "macro_f1_high": found.scores["macro_f1"][FINETUNED].high,
        "best_baseline": found.justification.best_baseline,
        "gain_over_best_baseline": gain.estimate,
        "gain_over_best_baseline_low": gain.low,
        "gain_over_best_baseline_high": gain.high,
        "gain_over_champion": over_champion.estimate if over_champion else None,
        "checkpoint": inputs["finetuned_checkpoint"].ref,
        "incumbent": inputs["champion"].ref if "champion" in inputs else None,
    }
    for name in found.scores["macro_f1"]:
        if name != FINETUNED:
            metadata |= {f"{name}_{metric}": found.scores[metric][name].estimate for metric in evaluation.METRICS}
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
        "is_calibrated": {"calibration_error": found.calibration_error},
    }
    if over_champion is not None:
        numbers["beats_champion"] = {"gain": over_champion.estimate, "gain_low": over_champion.low, "gain_high": over_champion.high}
    return numbers


if __name__ == "__main__":
    run_workload(work)
