"""evaluation: how good, how sure, where weak, and was full fine-tuning worth it.

Labels and predictions are integer positions [n] in the label order, probabilities are floats [n, k].
Macro-F1 averages over the labels that occur in the test labels: a label that the test set lacks cannot
be measured. A label that occurs but is never predicted has precision, and so F1, of 0.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from fullft_assets.settings import EvaluationSettings

VERSION = "2"
Metric = Literal["macro_f1", "accuracy"]
METRICS: tuple[Metric, ...] = ("macro_f1", "accuracy")
FINETUNED = "finetuned"
CHAMPION = "champion"
#: What people call each system and metric.
TITLES = {
    FINETUNED: "fully fine-tuned model",
    CHAMPION: "champion",
    "majority": "majority label",
    "tfidf": "TF-IDF + logistic regression",
    "frozen_probe": "frozen base model + trained head",
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
}
#: A wider interval around the primary metric (half its width) says that the test set is small.
MAX_HALF_WIDTH = 0.05
#: Numbers in one chunk of resampling weights (float64: 32 MB).
_CHUNK_NUMBERS = 4_000_000


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Figures):
    """An estimate with the ends of its percentile interval."""

    estimate: float
    low: float
    high: float

    @model_validator(mode="after")
    def _is_an_interval(self) -> Interval:
        if not all(math.isfinite(end) for end in (self.estimate, self.low, self.high)) or self.low > self.high:
            raise ValueError(f"not an interval: {self.estimate} [{self.low}, {self.high}]")
        return self

    @property
    def half_width(self) -> float:
        """Half the distance between the ends."""
        return (self.high - self.low) / 2


class LabelScore(_Figures):
    """One row of the per-class table."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class ReliabilityBin(_Figures):
    """The rows whose highest probability lies in (low, high]."""

    low: float
    high: float
    num_rows: int
    confidence: float
    accuracy: float


class GroupScore(_Figures):
    """How one group of related test rows fared."""

    group: str
    num_rows: int
    num_errors: int


class Agreement(_Figures):
    """Test rows by who was right: the fine-tuned model, the best cheaper baseline, both or neither."""

    both_right: int
    only_finetuned_right: int
    only_baseline_right: int
    both_wrong: int


class Justification(_Figures):
    """Whether full fine-tuning beat the best cheaper way, and the sentence that says so."""

    best_baseline: str
    gain: Interval
    justified: bool
    sentence: str


class Bootstrap(_Figures):
    """Each system's score, and the reference's gain over every other system."""

    scores: dict[str, Interval]
    gains: dict[str, Interval]


class Evaluation(_Figures):
    """Every figure of an evaluation; `scores` and `gains` go metric -> system."""

    primary_metric: Metric
    confidence: float
    resamples: int
    labels: list[str]
    num_test_rows: int
    num_test_groups: int
    baselines: list[str]
    has_champion: bool
    scores: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Interval]]
    calibration_error: float
    reliability: list[ReliabilityBin]
    per_label: list[LabelScore]
    #: Rows: true label, columns: predicted label.
    confusion: list[list[int]]
    weakest_groups: list[GroupScore]
    agreement: Agreement
    justification: Justification

    @property
    def score(self) -> Interval:
        """The fine-tuned model's primary metric."""
        return self.scores[self.primary_metric][FINETUNED]

    @property
    def gain_over_best_baseline(self) -> Interval:
        """Primary metric, fine-tuned minus the best cheaper baseline."""
        return self.justification.gain

    @property
    def gain_over_champion(self) -> Interval | None:
        """Primary metric, fine-tuned minus champion; None without a champion."""
        return self.gains[self.primary_metric].get(CHAMPION)


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Share of rows [n] whose prediction is the label."""
    labels, predicted = require_labels(labels, predicted)
    return float((labels == predicted).mean())


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 over the labels that occur in `labels` [n]."""
    labels, predicted = require_labels(labels, predicted)
    num_labels = int(max(labels.max(), predicted.max())) + 1
    counts = _count(labels, predicted, np.zeros(len(labels), np.int64), 1, num_labels)
    return float(_macro_f1(*counts)[0])


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    """Counts [k, k]: rows are true labels, columns predicted ones."""
    labels, predicted = require_labels(labels, predicted, num_labels)
    return np.bincount(labels * num_labels + predicted, minlength=num_labels**2).reshape(num_labels, num_labels)


def label_scores(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> list[LabelScore]:
    """The per-class table, in label order; a ratio without a denominator is 0."""
    matrix = confusion_matrix(labels, predicted, len(names)).astype(float)
    right, support, chosen = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    precision = np.divide(right, chosen, out=np.zeros_like(right), where=chosen > 0)
    recall = np.divide(right, support, out=np.zeros_like(right), where=support > 0)
    f1 = np.divide(2 * right, support + chosen, out=np.zeros_like(right), where=support + chosen > 0)
    return [
        LabelScore(label=name, precision=precision[i], recall=recall[i], f1=f1[i], support=int(support[i])) for i, name in enumerate(names)
    ]


def reliability(labels: np.ndarray, probabilities: np.ndarray, num_bins: int) -> list[ReliabilityBin]:
    """Confidence against accuracy in equal-width bins of the highest probability; empty bins are left out."""
    probabilities = require_probabilities(probabilities, labels)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    return [
        ReliabilityBin(
            low=b / num_bins,
            high=(b + 1) / num_bins,
            num_rows=int((bins == b).sum()),
            confidence=float(confidence[bins == b].mean()),
            accuracy=float(right[bins == b].mean()),
        )
        for b in np.unique(bins)
    ]


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, num_bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by rows (Guo et al. 2017, eq. 3)."""
    bins = reliability(labels, probabilities, num_bins)
    return sum(b.num_rows * abs(b.accuracy - b.confidence) for b in bins) / sum(b.num_rows for b in bins)


def cluster_bootstrap(
    labels: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    groups: Sequence[str],
    *,
    metric: Metric,
    reference: str,
    resamples: int,
    confidence: float,
    seed: int,
) -> Bootstrap:
    """Percentile intervals from resampling whole groups, the same resample for every system.

    Rows of one group err together, so resampling rows would promise intervals that are far too narrow
    (Davison and Hinkley 1997, section 3.8). A metric only needs each group's true positives, support
    and predicted counts per label, so a resample is a product of group weights with those counts.

    Args:
        labels: true labels [n].
        predictions: predicted labels [n] of each system.
        groups: the group of each row [n].
        metric: what to score.
        reference: the system whose gain over each other one is estimated.
        resamples: number of resamples.
        confidence: level of the intervals, such as 0.95.
        seed: of the resampling.

    Raises:
        ValueError: input is empty, misaligned or out of range, or there are fewer than two groups.
    """
    checked = {name: require_labels(labels, predicted, name=name)[1] for name, predicted in predictions.items()}
    labels = np.asarray(labels)
    if reference not in checked:
        raise ValueError(f"reference `{reference}` is not among the systems: {', '.join(checked)}")
    if len(groups) != len(labels):
        raise ValueError(f"groups: {len(groups)} for {len(labels)} rows")
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ValueError("groups: all rows belong to one group, so no interval can be drawn; deliver more groups")
    num_labels = 1 + max(int(labels.max()), *(int(p.max()) for p in checked.values()))
    score = {"macro_f1": _macro_f1, "accuracy": _accuracy}[metric]
    counts = {name: _count(labels, predicted, index, len(names), num_labels) for name, predicted in checked.items()}
    estimates = {name: float(score(*(c.sum(0, keepdims=True) for c in found))[0]) for name, found in counts.items()}
    draws: dict[str, list[np.ndarray]] = {name: [] for name in checked}
    for weights in _group_weights(len(names), resamples, seed):
        for name, found in counts.items():
            draws[name].append(score(*(weights @ c for c in found)))
    drawn = {name: np.concatenate(parts) for name, parts in draws.items()}
    others = [name for name in checked if name != reference]
    return Bootstrap(
        scores={name: _interval(estimates[name], drawn[name], confidence) for name in checked},
        gains={name: _interval(estimates[reference] - estimates[name], drawn[reference] - drawn[name], confidence) for name in others},
    )


def justification(
    scores: Mapping[str, Interval],
    gains: Mapping[str, Interval],
    baselines: Sequence[str],
    *,
    metric: Metric,
    confidence: float,
    min_gain: float = 0.0,
) -> Justification:
    """Was full fine-tuning justified: does the interval of its gain over the best cheaper baseline lie above `min_gain` (and zero)?

    Args:
        scores: the metric of each system, the fine-tuned one among them.
        gains: fine-tuned minus each other system.
        baselines: names of the cheaper baselines; the one with the highest estimate counts.
        metric: which metric that is.
        confidence: level of the intervals.
        min_gain: gain that the interval's lower end must exceed.

    Raises:
        ValueError: there are no baselines.
    """
    if not baselines:
        raise ValueError("no cheaper baseline to compare with; materialise cheaper_baselines")
    best = max(baselines, key=lambda name: scores[name].estimate)
    gain = gains[best]
    # A gate may allow a loss (for size or speed); that does not make a loss worth its price.
    justified = gain.low > max(min_gain, 0.0)
    asked = f"the required {min_gain:+.3f}" if min_gain > 0 else "zero"
    if justified:
        opening = "Full fine-tuning was worth it"
    elif gain.high < 0:
        opening = "Full fine-tuning was not worth it, a cheaper way is better"
    else:
        opening = f"Full fine-tuning is not shown to be worth it, the interval of its gain does not lie above {asked}"
    sentence = (
        f"{opening}: {TITLES[metric]} is {scores[FINETUNED].estimate:.3f} against {scores[best].estimate:.3f} of the best "
        f"cheaper way ({title(best)}), a gain of {gain.estimate:+.3f} ({confidence:.0%} interval {gain.low:+.3f} to {gain.high:+.3f})."
    )
    return Justification(best_baseline=best, gain=gain, justified=justified, sentence=sentence)


def assess(
    labels: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    groups: Sequence[str],
    label_names: Sequence[str],
    settings: EvaluationSettings,
    *,
    seed: int,
    metric: Metric = "macro_f1",
    min_gain: float = 0.0,
) -> Evaluation:
    """Compute every figure of an evaluation.

    Args:
        labels: true labels [n].
        probabilities: label probabilities [n, k] of `finetuned`, of each baseline and, if there is one, of `champion`.
        groups: the group of each row [n].
        label_names: the k names in label order.
        settings: level and size of the bootstrap.
        seed: of the bootstrap.
        metric: the one that decides.
        min_gain: gain over the best cheaper baseline that would justify the fine-tuning.

    Raises:
        ValueError: input is empty, misaligned, not finite or out of range; the message names what.
    """
    predictions = {name: require_probabilities(p, labels, len(label_names), name).argmax(axis=1) for name, p in probabilities.items()}
    baselines = [name for name in predictions if name not in (FINETUNED, CHAMPION)]
    found = {
        each: cluster_bootstrap(
            labels,
            predictions,
            groups,
            metric=each,
            reference=FINETUNED,
            resamples=settings.resamples,
            confidence=settings.confidence,
            seed=seed,
        )
        for each in METRICS
    }
    primary = found[metric]
    justified = justification(
        primary.scores,
        primary.gains,
        baselines,
        metric=metric,
        confidence=settings.confidence,
        min_gain=min_gain,
    )
    tuned = predictions[FINETUNED]
    return Evaluation(
        primary_metric=metric,
        confidence=settings.confidence,
        resamples=settings.resamples,
        labels=list(label_names),
        num_test_rows=len(labels),
        num_test_groups=len(set(groups)),
        baselines=baselines,
        has_champion=CHAMPION in predictions,
        scores={each: bootstrap.scores for each, bootstrap in found.items()},
        gains={each: bootstrap.gains for each, bootstrap in found.items()},
        calibration_error=expected_calibration_error(labels, probabilities[FINETUNED], settings.calibration_bins),
        reliability=reliability(labels, probabilities[FINETUNED], settings.calibration_bins),
        per_label=label_scores(labels, tuned, label_names),
        confusion=confusion_matrix(labels, tuned, len(label_names)).tolist(),
        weakest_groups=weakest_groups(labels, tuned, groups),
        agreement=agreement(labels, tuned, predictions[justified.best_baseline]),
        justification=justified,
    )


def weakest_groups(
    labels: np.ndarray, predicted: np.ndarray, groups: Sequence[str], *, most: int = 5, min_rows: int = 3
) -> list[GroupScore]:
    """The groups of at least `min_rows` rows with the largest share of errors, worst first."""
    rights: dict[str, list[bool]] = defaultdict(list)
    for group, right in zip(groups, labels == predicted, strict=True):
        rights[group].append(bool(right))
    scores = [
        GroupScore(group=group, num_rows=len(found), num_errors=len(found) - sum(found))
        for group, found in rights.items()
        if len(found) >= min_rows and not all(found)
    ]
    return sorted(scores, key=lambda s: (-s.num_errors / s.num_rows, -s.num_errors, s.group))[:most]


def agreement(labels: np.ndarray, tuned: np.ndarray, baseline: np.ndarray) -> Agreement:
    """Count the rows [n] by which of the two predictions was right."""
    ours, theirs = labels == tuned, labels == baseline
    return Agreement(
        both_right=int((ours & theirs).sum()),
        only_finetuned_right=int((ours & ~theirs).sum()),
        only_baseline_right=int((~ours & theirs).sum()),
        both_wrong=int((~ours & ~theirs).sum()),
    )


def title(system: str) -> str:
    """What people call a system or a metric."""
    return TITLES.get(system, system.replace("_", " "))


def require_labels(
    labels: np.ndarray, predicted: np.ndarray, num_labels: int | None = None, name: str = "predictions"
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as integer arrays [n].

    Raises:
        ValueError: one is empty, not integer or out of range, or their lengths differ.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    for what, values in (("labels", labels), (name, predicted)):
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"{what}: expected a non-empty list of labels, got shape {values.shape}")
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{what}: labels are whole numbers, got {values.dtype}")
        wrong = (values < 0) | (values >= num_labels if num_labels is not None else False)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"{what}: row {row} has label {values[row]}, allowed are 0 to {num_labels - 1 if num_labels else 'k - 1'}")
    if len(labels) != len(predicted):
        raise ValueError(f"{name}: {len(predicted)} for {len(labels)} labels")
    return labels, predicted


def require_probabilities(
    probabilities: np.ndarray, labels: np.ndarray, num_labels: int | None = None, name: str = "probabilities"
) -> np.ndarray:
    """Return them as floats [n, k] that fit the labels [n].

    Raises:
        ValueError: wrong shape, not finite, outside [0, 1], rows that do not add up to 1, or a label out of range.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or probabilities.size == 0:
        raise ValueError(f"{name}: expected rows of label probabilities, got shape {probabilities.shape}")
    if num_labels is not None and probabilities.shape[1] != num_labels:
        raise ValueError(f"{name}: {probabilities.shape[1]} columns for {num_labels} labels")
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name}: row {int(finite.argmin())} of {len(finite)} is not finite ({int((~finite).sum())} such rows)")
    wrong = (probabilities < 0).any(axis=1) | (np.abs(probabilities.sum(axis=1) - 1) > 1e-3)
    if wrong.any():
        raise ValueError(f"{name}: row {int(wrong.argmax())} is not a distribution over the labels")
    require_labels(labels, probabilities.argmax(axis=1), probabilities.shape[1], name)
    return probabilities


def _count(labels: np.ndarray, predicted: np.ndarray, index: np.ndarray, num_groups: int, num_labels: int) -> tuple[np.ndarray, ...]:
    """True positives, support and predicted counts [groups, k], as floats for the product with weights."""

    def table(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        flat = np.bincount(rows * num_labels + values, minlength=num_groups * num_labels)
        return flat.reshape(num_groups, num_labels).astype(np.float64)

    right = labels == predicted
    return table(labels[right], index[right]), table(labels, index), table(predicted, index)


def _macro_f1(true_positives: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Macro-F1 [resamples] over the labels that occur in each resample; arguments are [resamples, k]."""
    occurs = support > 0
    f1 = np.divide(2 * true_positives, support + predicted, out=np.zeros_like(support), where=occurs)
    return f1.sum(axis=1) / occurs.sum(axis=1)


def _accuracy(true_positives: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return true_positives.sum(axis=1) / support.sum(axis=1)


def _group_weights(num_groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group was drawn, [resamples in the chunk, groups]."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_NUMBERS // num_groups)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(0, num_groups, (size, num_groups)) + num_groups * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * num_groups).reshape(size, num_groups).astype(np.float64)


def _interval(estimate: float, drawn: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate=estimate, low=float(low), high=float(high))
