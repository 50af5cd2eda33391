"""Scores classifiers on the test rows: label probabilities of the candidate, each baseline and the
champion.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from fullft_assets import report
from fullft_assets.base_model import ModelFolder
from fullft_assets.checkpoint.lineage import snapshots_learned_from
from fullft_assets.chunks import Tokenization
from fullft_assets.evaluation import FINETUNED, external
from fullft_assets.models import loading
from fullft_assets.models.inference import predict
from fullft_assets.settings import EvaluationSettings
from fullft_assets.snapshot import Split, load_split
from fullft_assets.task import METRICS
from fullft_assets.tasks.baseline import Baseline
from fullft_assets.tasks.classification import assessment, label_errors
from fullft_assets.tasks.classification.assessment import ClassificationEvaluation
from fullft_assets.tasks.context import (
    EvaluationContext,
    EvaluationResult,
    column_of,
    pick_rows,
    shared_labels,
)


def evaluate(context: EvaluationContext, test: Split) -> EvaluationResult:
    """Score every system on the test rows."""
    settings, labels = context.job.settings, context.labels
    probabilities = predict_all(context, test, labels)
    labels_alone = set(context.external_answers(test))
    validation, held_out = _on_validation(context, labels), None
    if validation is not None:
        held_out = (validation[0].labels, validation[1])
    evaluation = assessment.assess(
        test.labels,
        probabilities,
        test.groups,
        labels,
        context.comparison(test),
        held_out,
        labels_alone=labels_alone,
    )
    tuned = probabilities[FINETUNED]
    ids = test.ids
    truth = test.labels
    answers = tuned
    # Likely label errors rest on them.
    in_full = {FINETUNED}
    if _asks_for_probabilities(settings.evaluation, evaluation, tuned, test):
        in_full = probabilities.keys() - labels_alone
    if validation is not None:
        ids, truth = [*ids, *validation[0].ids], np.concatenate([truth, validation[0].labels])
        answers = np.concatenate([answers, validation[1]])
    headline = {**evaluation.headline, "calibration_error": evaluation.calibration_error}
    return EvaluationResult(
        evaluation,
        headline,
        _rows(test, probabilities, labels, labels_alone, in_full),
        _pick_answers(test, probabilities, evaluation, settings.seed),
        label_errors.worst_errors(test.ids, test.labels, tuned, labels),
        label_errors.likely_label_errors(ids, truth, answers, labels),
        validation=None if validation is None else _validation_rows(*validation, labels),
    )


def _asks_for_probabilities(
    settings: EvaluationSettings, evaluation: ClassificationEvaluation, tuned: np.ndarray, test: Split
) -> bool:
    """Return whether a score rests on the probability of every label."""
    measured = assessment.predictions_of(test.labels, tuned, evaluation.labels)
    # A module of `evaluate` takes labels alone.
    registered = [METRICS.get(name) for name in (*evaluation.metrics, *settings.metrics) if name in METRICS]
    named = [metric for metric in registered if not metric.of_answers]
    return any(
        metric.measures(measured) and not metric.measures(replace(measured, predicted=None))
        for metric in named
    )


def _validation_rows(validation: Split, probabilities: np.ndarray, labels: list[str]) -> pa.Table:
    """Return what the temperature was fitted on."""
    return pa.table(
        {
            "id": validation.ids,
            "label": [labels[label] for label in validation.labels],
            "probabilities": _lists(probabilities),
        }
    )


def _lists(probabilities: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(probabilities).ravel()), probabilities.shape[1]
    )


def _on_validation(context: EvaluationContext, labels: list[str]) -> tuple[Split, np.ndarray] | None:
    """Return the validation rows with the candidate's label probabilities; None where it may have learned
    from them.
    """
    snapshot, candidate = context.inputs["training_snapshot"], context.inputs["finetuned_checkpoint"]
    if snapshots_learned_from(candidate) != [snapshot.ref]:
        return None
    rows = load_split(context.store, snapshot, "validation")
    if not len(rows):
        return None
    context.progress.say(f"{len(rows):,} validation rows, for the temperature and likely label errors ...")
    folder = context.model_folder("finetuned_checkpoint")
    probabilities = predict(folder, rows.windows, progress=context.progress).probabilities
    return rows, map_labels(probabilities, model_labels(folder), labels)


def predict_all(context: EvaluationContext, test: Split, labels: list[str]) -> dict[str, np.ndarray]:
    """Return the label probabilities [rows, labels] of each system; an external one gives its labels the
    probability 1.
    """

    def by_checkpoint(name: str) -> np.ndarray:
        folder = context.model_folder(name)
        probabilities = predict(
            folder, windows_for(context, name, test), progress=context.progress
        ).probabilities
        return map_labels(probabilities, model_labels(folder), labels)

    def by_baseline(name: str, baseline: Baseline) -> np.ndarray:
        return map_labels(baseline.predict(test), context.baseline_labels, labels)

    def by_external(name: str, answers: list[str]) -> np.ndarray:
        return np.eye(len(labels))[
            [label for (label,) in external.positions(name, [[label] for label in answers], labels)]
        ]

    return context.predict_with_all(test, by_checkpoint, by_baseline, by_external=by_external)


def model_labels(model_folder: ModelFolder) -> list[str]:
    """Return a classifier's label names in the order of its outputs."""
    names: dict[Any, str] = dict(loading.read_config(model_folder).id2label or {})
    return [names[i] for i in range(len(names))]


def map_labels(probabilities: np.ndarray, model_labels: list[str], labels: list[str]) -> np.ndarray:
    """Bring probabilities [n, their labels] into our label order [n, ours], as shares of the labels that both
    know.

    A label that the model does not know has probability 0.
    """
    if model_labels == labels:
        return probabilities
    shared = shared_labels(model_labels, labels)
    mapped = np.zeros((len(probabilities), len(labels)))
    mapped[:, [labels.index(label) for label in shared]] = probabilities[
        :, [model_labels.index(label) for label in shared]
    ]
    # A model that is sure of a label that left the list has next to nothing left to share: no information.
    known = mapped.sum(axis=1, keepdims=True)
    uniform = np.isin(labels, shared) / len(shared)
    return np.where(known > 0, mapped / np.where(known > 0, known, 1), uniform)


def _pick_answers(
    test: Split, probabilities: Mapping[str, np.ndarray], evaluation: ClassificationEvaluation, seed: int
) -> list[report.AnsweredRow]:
    tuned, baseline = (
        probabilities[name].argmax(1) for name in (FINETUNED, evaluation.justification.best_baseline)
    )
    return [
        report.AnsweredRow(
            report.shorten(test.texts[i]),
            *(evaluation.labels[each[i]] for each in (test.labels, baseline, tuned)),
        )
        for i in pick_rows(tuned == baseline, seed)
    ]


def windows_for(context: EvaluationContext, name: str, test: Split) -> list[list[list[int]]]:
    """Return the test rows' windows for a checkpoint among the inputs: made anew where it has another
    tokenizer.
    """
    if context.has_tokenizer_of_snapshot(name):
        return test.windows
    return Tokenization.load_saved(context.model_folder(name), context.job.settings.chunks).windows(
        test.texts
    )


def _rows(
    test: Split,
    probabilities: Mapping[str, np.ndarray],
    labels: list[str],
    labels_alone: Collection[str],
    in_full: Collection[str],
) -> pa.Table:
    columns: dict[str, Any] = {
        "id": test.ids,
        "label": [labels[i] for i in test.labels],
        "group": test.groups,
    }
    for name, each in probabilities.items():
        columns[column_of(name, "predicted")] = [labels[i] for i in each.argmax(axis=1)]
        if name not in labels_alone:
            columns[column_of(name, "probability")] = each.max(axis=1).astype(np.float32)
        if name in in_full:
            columns[column_of(name, "probabilities")] = _lists(each)
    return pa.table(columns)
