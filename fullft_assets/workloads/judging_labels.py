"""The judge of classifiers: label probabilities of the candidate, each cheaper baseline and the champion on the test rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import AutoConfig

from fullft_assets import report
from fullft_assets.chunks import Tokenization
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import CHAMPION, FINETUNED, ClassificationEvaluation, classification, title
from fullft_assets.snapshot import Split, label_names
from fullft_assets.workloads import baselines, metrics
from fullft_assets.workloads.inference import predict
from fullft_assets.workloads.judging import Docket, Judged

NUM_ANSWERS = 5


def judge(docket: Docket, test: Split) -> Judged:
    """Score every system on the test rows."""
    settings = docket.job.settings
    labels = label_names(docket.inputs["training_snapshot"])
    probabilities = predict_all(docket, test, labels)
    docket.progress.say(f"{settings.evaluation.resamples:,} resamples over the groups of {len(test):,} test rows ...")
    found = classification.assess(
        test.labels,
        probabilities,
        test.groups,
        labels,
        settings.evaluation,
        seed=settings.seed,
        metric=settings.primary_metric,
        min_gain=settings.release.min_gain_over_baselines,
    )
    tuned = probabilities[FINETUNED]
    headline = {
        **metrics.headline(test.labels, tuned, settings.evaluation.calibration_bins),
        "macro_f1_low": found.scores["macro_f1"][FINETUNED].low,
        "macro_f1_high": found.scores["macro_f1"][FINETUNED].high,
    }
    return Judged(found, headline, _rows(test, tuned, labels), pick_answers(test, probabilities, found, settings.seed))


def predict_all(docket: Docket, test: Split, labels: list[str]) -> dict[str, np.ndarray]:
    """Return the label probabilities [rows, labels] of the candidate, each baseline and the champion."""
    settings, progress, cheaper = docket.job.settings, docket.progress, docket.inputs["cheaper_baselines"]
    folder = docket.model_folder("finetuned_checkpoint")
    progress.say(f"fine-tuned model on {len(test):,} test rows ...")
    # The snapshot may be newer than the checkpoint (periodic evaluation), and know other labels.
    theirs = model_labels(folder)
    windows = windows_for(docket, "finetuned_checkpoint", test)
    found = {FINETUNED: map_labels(predict(folder, windows, progress=progress).probabilities, theirs, labels)}
    fitted = baselines.load(docket.store.folder(cheaper), docket.base_model, settings.chunks.added_tokens)
    for name, baseline in fitted.items():
        progress.raise_if_stopped()
        progress.say(f"{title(name)} on {len(test):,} test rows ...")
        found[name] = map_labels(baseline.predict(test), cheaper.metadata["labels"], labels)
    if "champion" in docket.inputs:
        progress.say(f"champion on {len(test):,} test rows ...")
        champion = docket.model_folder("champion")
        windows = windows_for(docket, "champion", test)
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


def pick_answers(test: Split, probabilities: Mapping[str, np.ndarray], found: ClassificationEvaluation, seed: int) -> list[report.Answer]:
    """Draw test rows at random, first among those on which the fine-tuned model and the best baseline disagree."""
    tuned = probabilities[FINETUNED].argmax(1)
    baseline = probabilities[found.justification.best_baseline].argmax(1)
    order = np.random.default_rng(seed).permutation(len(test))
    order = order[np.argsort(tuned[order] == baseline[order], kind="stable")]
    return [
        report.Answer(report.shorten(test.texts[i]), found.labels[test.labels[i]], found.labels[baseline[i]], found.labels[tuned[i]])
        for i in order[:NUM_ANSWERS]
    ]


def windows_for(docket: Docket, name: str, test: Split) -> list[list[list[int]]]:
    """Return the test rows' windows for a checkpoint among the inputs: made anew where it has another tokenizer."""
    if docket.reads_as_the_snapshot(name):
        return test.windows
    return Tokenization.load_saved(docket.model_folder(name), docket.job.settings.chunks).windows(test.texts)


def _rows(test: Split, probabilities: np.ndarray, labels: list[str]) -> pa.Table:
    columns = {
        "id": test.ids,
        "label": [labels[i] for i in test.labels],
        "predicted": [labels[i] for i in probabilities.argmax(axis=1)],
        "probability": probabilities.max(axis=1).astype(np.float32),
        "group": test.groups,
    }
    return pa.table(columns)
