"""The judge of classifiers with several labels a row: labels given by the candidate, each cheaper baseline and the champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import AutoConfig

from fullft_assets import report
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import CHAMPION, FINETUNED, MultiLabelEvaluation, multi_label, title
from fullft_assets.snapshot import Split, label_names
from fullft_assets.workloads import multi_label_baselines
from fullft_assets.workloads.inference import predict
from fullft_assets.workloads.judging import Docket, Judged
from fullft_assets.workloads.judging_labels import NUM_ANSWERS, model_labels, windows_for


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
        shared = [label for label in ours if label in theirs]
        if not shared:
            raise StoreError(
                f"the model knows none of the labels {', '.join(ours)}, only {', '.join(theirs)}; give the new labels a use case of their own"
            )
        to, source = [ours.index(label) for label in shared], [theirs.index(label) for label in shared]
        probabilities, thresholds = np.zeros((len(self.probabilities), len(ours))), np.ones(len(ours))
        probabilities[:, to], thresholds[to] = self.probabilities[:, source], self.thresholds[source]
        return Given(probabilities, thresholds)


def judge(docket: Docket, test: Split) -> Judged:
    """Score every system on the test rows."""
    settings = docket.job.settings
    names = label_names(docket.inputs["training_snapshot"])
    given = _hear_all(docket, test, names)
    docket.progress.say(f"{settings.evaluation.resamples:,} resamples over the groups of {len(test):,} test rows ...")
    decisions = {name: each.labels for name, each in given.items()}
    found = multi_label.assess(
        test.labels,
        decisions,
        test.groups,
        names,
        given[FINETUNED].thresholds,
        settings.evaluation,
        seed=settings.seed,
        metric=settings.primary_metric,
        min_gain=settings.release.min_gain_over_baselines,
    )
    headline: dict[str, object] = {}
    for metric in multi_label.METRICS:
        score = found.scores[metric][FINETUNED]
        headline |= {metric: score.estimate, f"{metric}_low": score.low, f"{metric}_high": score.high}
    headline |= {"labels_a_row": found.labels_a_row, "labels_without_test_rows": found.unmeasured}
    return Judged(found, headline, _rows(test, decisions[FINETUNED], names), _pick_answers(test, decisions, found, settings.seed))


def _hear_all(docket: Docket, test: Split, names: list[str]) -> dict[str, Given]:
    progress, cheaper = docket.progress, docket.inputs["cheaper_baselines"]
    progress.say(f"fine-tuned model on {len(test):,} test rows ...")
    found = {FINETUNED: _hear(docket, "finetuned_checkpoint", test, names)}
    fitted = multi_label_baselines.load(docket.store.folder(cheaper), docket.base_model, docket.job.settings.chunks.added_tokens)
    for name, (baseline, thresholds) in fitted.items():
        progress.raise_if_stopped()
        progress.say(f"{title(name)} on {len(test):,} test rows ...")
        found[name] = Given(baseline.predict(test), thresholds).in_order(cheaper.metadata["labels"], names)
    if CHAMPION in docket.inputs:
        progress.say(f"champion on {len(test):,} test rows ...")
        found[CHAMPION] = _hear(docket, CHAMPION, test, names)
    return found


def _hear(docket: Docket, name: str, test: Split, names: list[str]) -> Given:
    folder = docket.model_folder(name)
    given = Given(predict(folder, windows_for(docket, name, test), progress=docket.progress).probabilities, read_thresholds(folder))
    return given.in_order(model_labels(folder), names)


def read_thresholds(model_folder: Path) -> np.ndarray:
    """Return the labels' thresholds [labels] that were saved with a model.

    Raises:
        StoreError: there are none, or not one for each label.
    """
    config = AutoConfig.from_pretrained(str(model_folder), trust_remote_code=False)
    thresholds = getattr(config, "label_thresholds", None)
    if not isinstance(thresholds, list) or len(thresholds) != config.num_labels:
        raise StoreError(f"{model_folder}/config.json: label_thresholds should be {config.num_labels} numbers; train the model again")
    return np.array(thresholds, np.float64)


def _pick_answers(test: Split, decisions: Mapping[str, np.ndarray], found: MultiLabelEvaluation, seed: int) -> list[report.Answer]:
    """Draw test rows at random, first among those on which the fine-tuned model and the best baseline disagree."""
    tuned, baseline = decisions[FINETUNED], decisions[found.justification.best_baseline]
    order = np.random.default_rng(seed).permutation(len(test))
    order = order[np.argsort((tuned[order] == baseline[order]).all(axis=1), kind="stable")]
    shown = [
        [", ".join(_named(row, found.labels)) or "none" for row in (test.labels[i], baseline[i], tuned[i])] for i in order[:NUM_ANSWERS]
    ]
    return [report.Answer(report.shorten(test.texts[i]), *answers) for i, answers in zip(order, shown, strict=False)]


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
