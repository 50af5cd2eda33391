"""Scores classifiers with several labels a row on the test rows: labels given by the candidate, each baseline
and the champion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fullft_assets import report
from fullft_assets.base_model import ModelFolder
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import FINETUNED, external
from fullft_assets.models import loading
from fullft_assets.models.inference import predict
from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import Baseline
from fullft_assets.tasks.classification.scoring import model_labels, windows_for
from fullft_assets.tasks.context import (
    EvaluationContext,
    EvaluationResult,
    column_of,
    pick_rows,
    shared_labels,
)
from fullft_assets.tasks.multi_label import assessment
from fullft_assets.tasks.multi_label.assessment import MultiLabelEvaluation
from fullft_assets.tasks.multi_label.recipe import thresholds_file


@dataclass(frozen=True)
class LabelDecisions:
    """What a system predicts of n rows, in the snapshot's label order: probabilities [n, k], and thresholds
    [k].
    """

    probabilities: np.ndarray
    thresholds: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The labels that it gives: bool [n, k]."""
        return self.probabilities >= self.thresholds

    def in_order(self, model_labels: list[str], labels: list[str]) -> LabelDecisions:
        """Return the decisions in our label order instead of theirs; a label that the system does not know is
        never predicted.
        """
        shared = shared_labels(model_labels, labels)
        to, source = (
            [labels.index(label) for label in shared],
            [model_labels.index(label) for label in shared],
        )
        probabilities, thresholds = np.zeros((len(self.probabilities), len(labels))), np.ones(len(labels))
        probabilities[:, to], thresholds[to] = self.probabilities[:, source], self.thresholds[source]
        return LabelDecisions(probabilities, thresholds)


def evaluate(context: EvaluationContext, test: Split) -> EvaluationResult:
    """Score every system on the test rows."""
    names = context.labels
    of_systems = _predict_all(context, test, names)
    decisions = {name: each.labels for name, each in of_systems.items()}
    thresholds = of_systems[FINETUNED].thresholds
    evaluation = assessment.assess(
        test.labels, decisions, test.groups, names, thresholds, context.comparison(test)
    )
    headline = {
        **evaluation.headline,
        "labels_a_row": evaluation.labels_a_row,
        "labels_without_test_rows": evaluation.unmeasured,
    }
    answers = _pick_answers(test, decisions, evaluation, context.job.settings.seed)
    return EvaluationResult(evaluation, headline, _rows(test, decisions, names), answers)


def _predict_all(context: EvaluationContext, test: Split, names: list[str]) -> dict[str, LabelDecisions]:
    folder_of_baselines = context.store.folder(context.inputs["cheaper_baselines"])

    def by_checkpoint(name: str) -> LabelDecisions:
        folder = context.model_folder(name)
        probabilities = predict(
            folder, windows_for(context, name, test), progress=context.progress
        ).probabilities
        return LabelDecisions(probabilities, read_thresholds(folder)).in_order(model_labels(folder), names)

    def by_baseline(name: str, baseline: Baseline) -> LabelDecisions:
        thresholds = np.load(folder_of_baselines / thresholds_file(name))["thresholds"]
        return LabelDecisions(baseline.predict(test), thresholds).in_order(context.baseline_labels, names)

    def by_external(name: str, answers: list[list[str]]) -> LabelDecisions:
        decided = np.zeros((len(test), len(names)))
        for row, labels in enumerate(external.positions(name, answers, names)):
            decided[row, labels] = 1
        return LabelDecisions(decided, np.full(len(names), 0.5))

    return context.predict_with_all(test, by_checkpoint, by_baseline, by_external=by_external)


def read_thresholds(model_folder: ModelFolder) -> np.ndarray:
    """Return the labels' thresholds [labels] that were saved with a model.

    Raises:
        StoreError: there are none, or not one for each label.
    """
    config = loading.read_config(model_folder)
    thresholds = getattr(config, "label_thresholds", None)
    if not isinstance(thresholds, list) or len(thresholds) != config.num_labels:
        raise StoreError(
            f"{model_folder}/config.json: label_thresholds should be {config.num_labels} numbers; train the"
            " model again"
        )
    return np.array(thresholds, np.float64)


def _pick_answers(
    test: Split, decisions: Mapping[str, np.ndarray], evaluation: MultiLabelEvaluation, seed: int
) -> list[report.AnsweredRow]:
    tuned, baseline = decisions[FINETUNED], decisions[evaluation.justification.best_baseline]
    return [
        report.AnsweredRow(
            report.shorten(test.texts[i]),
            *(
                ", ".join(_named(each[i], evaluation.labels)) or "none"
                for each in (test.labels, baseline, tuned)
            ),
        )
        for i in pick_rows((tuned == baseline).all(axis=1), seed)
    ]


def _named(row: np.ndarray, names: list[str]) -> list[str]:
    return [names[i] for i in np.flatnonzero(row)]


def _rows(test: Split, decisions: Mapping[str, np.ndarray], names: list[str]) -> pa.Table:
    lists = pa.list_(pa.string())
    columns = {
        "id": test.ids,
        "labels": pa.array([_named(row, names) for row in test.labels], lists),
        "group": test.groups,
    }
    for name, decided in decisions.items():
        columns[column_of(name, "predicted")] = pa.array([_named(row, names) for row in decided], lists)
    return pa.table(columns)
