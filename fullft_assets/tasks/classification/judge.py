"""The judge of classifiers: label probabilities of the candidate, each cheaper baseline and the champion on the test rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pyarrow as pa

from fullft_assets import report
from fullft_assets.base_model import ModelFolder
from fullft_assets.chunks import Tokenization
from fullft_assets.evaluation import FINETUNED, ClassificationEvaluation, classification, metrics
from fullft_assets.models import loading
from fullft_assets.models.inference import predict
from fullft_assets.snapshot import Split
from fullft_assets.tasks.classification import baselines
from fullft_assets.tasks.judging import Docket, Judged, pick_rows, shared_labels


def judge(docket: Docket, test: Split) -> Judged:
    """Score every system on the test rows."""
    settings, labels = docket.job.settings, docket.labels
    probabilities = predict_all(docket, test, labels)
    found = classification.assess(test.labels, probabilities, test.groups, labels, docket.terms(test))
    tuned = probabilities[FINETUNED]
    headline = {
        **metrics.headline(test.labels, tuned, settings.evaluation.calibration_bins),
        "macro_f1_low": found.scores["macro_f1"][FINETUNED].low,
        "macro_f1_high": found.scores["macro_f1"][FINETUNED].high,
    }
    return Judged(found, headline, _rows(test, tuned, labels), _pick_answers(test, probabilities, found, settings.seed))


def predict_all(docket: Docket, test: Split, labels: list[str]) -> dict[str, np.ndarray]:
    """Return the label probabilities [rows, labels] of the candidate, each baseline and the champion."""
    cheaper, added_tokens = docket.inputs["cheaper_baselines"], docket.job.settings.chunks.added_tokens

    def predict_by(checkpoint: str) -> np.ndarray:
        folder = docket.model_folder(checkpoint)
        found = predict(folder, windows_for(docket, checkpoint, test), progress=docket.progress).probabilities
        return map_labels(found, model_labels(folder), labels)

    def predict_cheaply(baseline: baselines.Baseline) -> np.ndarray:
        return map_labels(baseline.predict(test), cheaper.metadata["labels"], labels)

    fitted = baselines.load(docket.store.folder(cheaper), docket.base_model, added_tokens)
    return docket.hear(test, predict_by, {name: partial(predict_cheaply, baseline) for name, baseline in fitted.items()})


def model_labels(model_folder: ModelFolder) -> list[str]:
    """Return a classifier's label names in the order of its outputs."""
    names = loading.read_config(model_folder).id2label
    return [names[i] for i in range(len(names))]


def map_labels(probabilities: np.ndarray, theirs: list[str], ours: list[str]) -> np.ndarray:
    """Bring probabilities [n, their labels] into our label order [n, ours], as shares of the labels that both know.

    A label that the model does not know has probability 0.

    Raises:
        StoreError: the two label lists have nothing in common.
    """
    if theirs == ours:
        return probabilities
    shared = shared_labels(theirs, ours)
    mapped = np.zeros((len(probabilities), len(ours)))
    mapped[:, [ours.index(label) for label in shared]] = probabilities[:, [theirs.index(label) for label in shared]]
    # A model that is sure of a label that left the list has next to nothing to share out: no information.
    known = mapped.sum(axis=1, keepdims=True)
    uniform = np.isin(ours, shared) / len(shared)
    return np.where(known > 0, mapped / np.where(known > 0, known, 1), uniform)


def _pick_answers(test: Split, probabilities: Mapping[str, np.ndarray], found: ClassificationEvaluation, seed: int) -> list[report.Answer]:
    tuned, baseline = (probabilities[name].argmax(1) for name in (FINETUNED, found.justification.best_baseline))
    return [
        report.Answer(report.shorten(test.texts[i]), *(found.labels[each[i]] for each in (test.labels, baseline, tuned)))
        for i in pick_rows(tuned == baseline, seed)
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
