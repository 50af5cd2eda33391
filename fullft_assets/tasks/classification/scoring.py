"""Scores classifiers on the test rows: label probabilities of the candidate, each baseline and the champion,
or the labels that they give.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import pyarrow as pa

from fullft_assets.artifacts import CHEAPER_BASELINES, FINETUNED_CHECKPOINT, TRAINING_SNAPSHOT
from fullft_assets.checkpoint.lineage import snapshots_learned_from
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import external
from fullft_assets.models import loading
from fullft_assets.report import DoubtfulRow
from fullft_assets.snapshot import Split, load_split
from fullft_assets.tasks.baseline import THRESHOLDS, Baseline, OpenedModel, StoredBaseline
from fullft_assets.tasks.classification import assessment
from fullft_assets.tasks.classification.baselines import classify
from fullft_assets.tasks.classification.recipe import thresholds_file
from fullft_assets.tasks.context import (
    EvaluationContext,
    EvaluationResult,
    column_of,
    pick_answers,
    shared_labels,
)


def evaluate(context: EvaluationContext, test: Split) -> EvaluationResult:
    """Score every system on the test rows, of which each has one label."""
    labels = context.labels
    probabilities = predict_all(context, test, labels)
    labels_alone = set(context.external_answers(test))
    evaluation = assessment.assess(
        test.labels, probabilities, test.groups, labels, context.comparison(test), labels_alone=labels_alone
    )
    candidate_probabilities = probabilities[context.candidate]
    answers = {
        name: system_probabilities.argmax(axis=1) for name, system_probabilities in probabilities.items()
    }
    return EvaluationResult(
        evaluation,
        {**evaluation.headline, "calibration_error": evaluation.calibration_error},
        _rows(test, probabilities, labels, labels_alone, context.candidate),
        pick_answers(
            test, test.labels, answers, evaluation, context.job.settings.seed, lambda _, label: labels[label]
        ),
        assessment.worst_errors(test.ids, test.labels, candidate_probabilities, labels),
        _likely_label_errors(context, test, candidate_probabilities, labels),
    )


def _likely_label_errors(
    context: EvaluationContext, test: Split, candidate_probabilities: np.ndarray, labels: list[str]
) -> list[DoubtfulRow] | None:
    """Search the test rows and, unless the candidate learned from them, the validation rows."""
    snapshot = context.inputs[TRAINING_SNAPSHOT]
    validation = load_split(context.store, snapshot, "validation")
    if not len(validation) or snapshots_learned_from(context.inputs[FINETUNED_CHECKPOINT]) != [snapshot.ref]:
        return assessment.likely_label_errors(test.ids, test.labels, candidate_probabilities, labels)
    of_validation = _classified(context, FINETUNED_CHECKPOINT, validation.texts, labels)
    return assessment.likely_label_errors(
        [*test.ids, *validation.ids],
        np.concatenate([test.labels, validation.labels]),
        np.concatenate([candidate_probabilities, of_validation]),
        labels,
    )


def predict_all(context: EvaluationContext, test: Split, labels: list[str]) -> dict[str, np.ndarray]:
    """Return the label probabilities [rows, labels] of each system; the answer of an external system has the
    probability 1.
    """

    def by_checkpoint(name: str) -> np.ndarray:
        return _classified(context, name, test.texts, labels)

    def by_baseline(name: str, baseline: Baseline) -> np.ndarray:
        return map_labels(baseline.predict(test), context.baseline_labels, labels)

    def by_external(name: str, answers: list[str]) -> np.ndarray:
        return np.eye(len(labels))[
            [label for (label,) in external.positions(name, [[label] for label in answers], labels)]
        ]

    return context.predict_with_all(test, by_checkpoint, by_baseline, by_external=by_external)


def _classified(context: EvaluationContext, name: str, texts: Sequence[str], labels: list[str]) -> np.ndarray:
    model = context.open(name)
    return map_labels(_predicted(context, model, texts), model_labels(model), labels)


def _predicted(context: EvaluationContext, model: OpenedModel, texts: Sequence[str]) -> np.ndarray:
    return context.result_of(
        partial(
            classify,
            model,
            context.job.settings,
            texts,
            context.listener,
            is_shared=context.shares_models,
        ),
        by_first=isinstance(model, StoredBaseline),
    )


def model_labels(model: OpenedModel) -> list[str]:
    """Return a classifier's label names in the order of its outputs."""
    if isinstance(model, StoredBaseline):
        return model.labels
    names: dict[Any, str] = dict(loading.read_config(model).id2label or {})
    return [names[i] for i in range(len(names))]


def map_labels(probabilities: np.ndarray, model_labels: list[str], labels: list[str]) -> np.ndarray:
    """Return probabilities [n, model_labels] in the order of `labels`, as shares of the labels that are in
    both.

    A label that the model does not know has probability 0.
    """
    if model_labels == labels:
        return probabilities
    shares = _placed(probabilities, model_labels, labels, 0.0)
    # A model that is sure of a label that left the list has next to nothing left to share: no information.
    total = shares.sum(axis=1, keepdims=True)
    is_shared = np.isin(labels, model_labels)
    return np.where(total > 0, shares / np.where(total > 0, total, 1), is_shared / is_shared.sum())


def _placed(values: np.ndarray, model_labels: list[str], labels: list[str], fill: float) -> np.ndarray:
    """Return the values [..., model_labels] in the order of `labels`; `fill` for a label that the model does
    not know.
    """
    common_labels = shared_labels(model_labels, labels)
    table = np.full((*values.shape[:-1], len(labels)), fill)
    source = [model_labels.index(label) for label in common_labels]
    table[..., [labels.index(label) for label in common_labels]] = values[..., source]
    return table


def _rows(
    test: Split,
    probabilities: Mapping[str, np.ndarray],
    labels: list[str],
    labels_alone: Collection[str],
    candidate: str,
) -> pa.Table:
    columns: dict[str, Any] = {
        "id": test.ids,
        "label": [labels[i] for i in test.labels],
        "group": test.groups,
    }
    for name, system_probabilities in probabilities.items():
        columns[column_of(name, "predicted")] = [labels[i] for i in system_probabilities.argmax(axis=1)]
        if name not in labels_alone:
            columns[column_of(name, "probability")] = system_probabilities.max(axis=1).astype(np.float32)
    # Likely label errors rest on all of the candidate's.
    columns["probabilities"] = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(probabilities[candidate]).ravel()), len(labels)
    )
    return pa.table(columns)


@dataclass(frozen=True)
class LabelDecisions:
    """What a system predicts of n rows, in the snapshot's label order: probabilities [n, k], and thresholds
    [k].
    """

    probabilities: np.ndarray
    thresholds: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return self.probabilities >= self.thresholds

    def in_order(self, model_labels: list[str], labels: list[str]) -> Self:
        """Return the decisions in the order of `labels` instead of the system's own; a label that the system
        does not know is never predicted.
        """
        return type(self)(
            _placed(self.probabilities, model_labels, labels, 0.0),
            _placed(self.thresholds, model_labels, labels, 1.0),
        )


def evaluate_decisions(context: EvaluationContext, test: Split) -> EvaluationResult:
    """Score every system on the test rows, of which each may have several labels."""
    names = context.labels
    systems = _decide_all(context, test, names)
    decisions = {name: label_decisions.labels for name, label_decisions in systems.items()}
    evaluation = assessment.assess_decisions(
        test.labels,
        decisions,
        test.groups,
        names,
        systems[context.candidate].thresholds,
        context.comparison(test),
    )
    headline = {
        **evaluation.headline,
        "labels_a_row": evaluation.labels_a_row,
        "labels_without_test_rows": evaluation.unmeasured,
    }
    answers = pick_answers(
        test,
        test.labels,
        decisions,
        evaluation,
        context.job.settings.seed,
        lambda _, row: ", ".join(_named(row, names)) or "none",
    )
    return EvaluationResult(evaluation, headline, _decision_rows(test, decisions, names), answers)


def _decide_all(context: EvaluationContext, test: Split, names: list[str]) -> dict[str, LabelDecisions]:
    folder_of_baselines = context.store.folder(context.inputs[CHEAPER_BASELINES])

    def by_checkpoint(name: str) -> LabelDecisions:
        model = context.open(name)
        return LabelDecisions(_predicted(context, model, test.texts), read_thresholds(model)).in_order(
            model_labels(model), names
        )

    def by_baseline(name: str, baseline: Baseline) -> LabelDecisions:
        thresholds = np.load(folder_of_baselines / thresholds_file(name))["thresholds"]
        return LabelDecisions(baseline.predict(test), thresholds).in_order(context.baseline_labels, names)

    def by_external(name: str, answers: list[list[str]]) -> LabelDecisions:
        decisions = np.zeros((len(test), len(names)))
        for row, labels in enumerate(external.positions(name, answers, names)):
            decisions[row, labels] = 1
        return LabelDecisions(decisions, np.full(len(names), 0.5))

    return context.predict_with_all(test, by_checkpoint, by_baseline, by_external=by_external)


def read_thresholds(model: OpenedModel) -> np.ndarray:
    """Return the labels' thresholds [labels] that were saved with a model.

    Raises:
        StoreError: there are none, or not one for each label.
    """
    folder = model.folder if isinstance(model, StoredBaseline) else model
    if (folder / THRESHOLDS).is_file():
        return np.load(str(folder / THRESHOLDS))["thresholds"]
    config = loading.read_config(folder)
    thresholds = getattr(config, "label_thresholds", None)
    if not isinstance(thresholds, list) or len(thresholds) != config.num_labels:
        raise StoreError(
            f"{folder}/config.json: label_thresholds should be {config.num_labels} numbers; train the"
            " model again"
        )
    return np.array(thresholds, np.float64)


def _named(row: np.ndarray, names: list[str]) -> list[str]:
    return [names[i] for i in np.flatnonzero(row)]


def _decision_rows(test: Split, decisions: Mapping[str, np.ndarray], names: list[str]) -> pa.Table:
    lists = pa.list_(pa.string())
    columns = {
        "id": test.ids,
        "labels": pa.array([_named(row, names) for row in test.labels], lists),
        "group": test.groups,
    }
    for name, rows in decisions.items():
        columns[column_of(name, "predicted")] = pa.array([_named(row, names) for row in rows], lists)
    return pa.table(columns)
