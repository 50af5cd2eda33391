"""The judge of classifiers with several labels a row: labels given by the candidate, each cheaper baseline and the champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from fullft_assets import report
from fullft_assets.base_model import ModelFolder
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import FINETUNED, MultiLabelEvaluation, multi_label
from fullft_assets.models import loading
from fullft_assets.models.inference import predict
from fullft_assets.snapshot import Split
from fullft_assets.tasks.classification.judge import model_labels, windows_for
from fullft_assets.tasks.judging import Docket, Judged, pick_rows, shared_labels
from fullft_assets.tasks.multi_label import baselines as multi_label_baselines


@dataclass(frozen=True)
class Given:
    """What a system makes of n rows, in the snapshot's label order: probabilities [n, k], and thresholds [k]."""

    probabilities: np.ndarray
    thresholds: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The labels that it gives: bool [n, k]."""
        return self.probabilities >= self.thresholds

    def in_order(self, theirs: list[str], ours: list[str]) -> Given:
        """Bring it from their label order into ours; a label that the system does not know it never gives.

        Raises:
            StoreError: the two label lists have nothing in common.
        """
        shared = shared_labels(theirs, ours)
        to, source = [ours.index(label) for label in shared], [theirs.index(label) for label in shared]
        probabilities, thresholds = np.zeros((len(self.probabilities), len(ours))), np.ones(len(ours))
        probabilities[:, to], thresholds[to] = self.probabilities[:, source], self.thresholds[source]
        return Given(probabilities, thresholds)


def judge(docket: Docket, test: Split) -> Judged:
    """Score every system on the test rows."""
    names = docket.labels
    given = _hear_all(docket, test, names)
    decisions = {name: each.labels for name, each in given.items()}
    found = multi_label.assess(test.labels, decisions, test.groups, names, given[FINETUNED].thresholds, docket.terms(test))
    headline = {**found.headline, "labels_a_row": found.labels_a_row, "labels_without_test_rows": found.unmeasured}
    answers = _pick_answers(test, decisions, found, docket.job.settings.seed)
    return Judged(found, headline, _rows(test, decisions[FINETUNED], names), answers)


def _hear_all(docket: Docket, test: Split, names: list[str]) -> dict[str, Given]:
    cheaper, added_tokens = docket.inputs["cheaper_baselines"], docket.job.settings.chunks.added_tokens

    def hear(checkpoint: str) -> Given:
        folder = docket.model_folder(checkpoint)
        found = predict(folder, windows_for(docket, checkpoint, test), progress=docket.progress).probabilities
        return Given(found, read_thresholds(folder)).in_order(model_labels(folder), names)

    def hear_cheaper(baseline: multi_label_baselines.Baseline, thresholds: np.ndarray) -> Given:
        return Given(baseline.predict(test), thresholds).in_order(cheaper.metadata["labels"], names)

    fitted = multi_label_baselines.load(docket.store.folder(cheaper), docket.base_model, added_tokens)
    return docket.hear(test, hear, {name: partial(hear_cheaper, *found) for name, found in fitted.items()})


def read_thresholds(model_folder: ModelFolder) -> np.ndarray:
    """Return the labels' thresholds [labels] that were saved with a model.

    Raises:
        StoreError: there are none, or not one for each label.
    """
    config = loading.read_config(model_folder)
    thresholds = getattr(config, "label_thresholds", None)
    if not isinstance(thresholds, list) or len(thresholds) != config.num_labels:
        raise StoreError(f"{model_folder}/config.json: label_thresholds should be {config.num_labels} numbers; train the model again")
    return np.array(thresholds, np.float64)


def _pick_answers(test: Split, decisions: Mapping[str, np.ndarray], found: MultiLabelEvaluation, seed: int) -> list[report.Answer]:
    tuned, baseline = decisions[FINETUNED], decisions[found.justification.best_baseline]
    return [
        report.Answer(
            report.shorten(test.texts[i]), *(", ".join(_named(each[i], found.labels)) or "none" for each in (test.labels, baseline, tuned))
        )
        for i in pick_rows((tuned == baseline).all(axis=1), seed)
    ]


def _named(row: np.ndarray, names: list[str]) -> list[str]:
    return [names[i] for i in np.flatnonzero(row)]


def _rows(test: Split, decided: np.ndarray, names: list[str]) -> pa.Table:
    columns = {
        "id": test.ids,
        "labels": [_named(row, names) for row in test.labels],
        "predicted": [_named(row, names) for row in decided],
        "group": test.groups,
    }
    return pa.table(columns)
