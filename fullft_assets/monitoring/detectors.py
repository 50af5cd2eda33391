"""The six drift tests, each `(reference, current) -> DriftTestResult`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from fullft_assets.monitoring import two_samples
from fullft_assets.monitoring.features import Features
from fullft_assets.settings import MonitoringSettings

NUM_TESTS = 6
#: The alarm threshold in units of the embedding test's smallest p-value. At 8, its two halves keep their power.
MIN_PERMUTATION_STEPS = 8
#: Below this expected count the chi-squared approximation fails.
MIN_EXPECTED_COUNT = 5.0


class DriftTestResult(BaseModel):
    """Result of one test; `effect` is the size of the change, and `change` describes it in words."""

    model_config = ConfigDict(frozen=True)

    name: str
    statistic: float
    p_value: float
    effect: float
    effect_name: str
    change: str


Detector = Callable[[Features, Features], DriftTestResult]


def detectors(settings: MonitoringSettings, seed: int, labels: Sequence[str] = ()) -> list[Detector]:
    """Return the six tests, each `(reference, current) -> DriftTestResult`."""
    # A permutation p-value is a multiple of 1 / (1 + permutations): with too few the test could never alarm.
    permutations = max(settings.permutations, math.ceil(MIN_PERMUTATION_STEPS * NUM_TESTS / settings.false_alarm_rate))
    return [
        compare_lengths,
        compare_fertility,
        compare_unknown_words,
        compare_entropy,
        partial(compare_predictions, labels=labels),
        partial(compare_embeddings, permutations=permutations, seed=seed),
    ]


def compare_lengths(reference: Features, current: Features) -> DriftTestResult:
    """Kolmogorov-Smirnov test on the number of tokens."""
    old, new = f"{np.median(reference.num_tokens):.0f}", f"{np.median(current.num_tokens):.0f}"
    direction = _direction(old, new, more="texts are longer", less="texts are shorter", same="text lengths are distributed differently")
    return _ks("text_length", reference.num_tokens, current.num_tokens, f"{direction}: median {old} -> {new} tokens")


def compare_fertility(reference: Features, current: Features) -> DriftTestResult:
    """Kolmogorov-Smirnov test on tokens per word: words of a foreign script or of broken text are split into more tokens."""
    old, new = f"{reference.fertility.mean():.2f}", f"{current.fertility.mean():.2f}"
    direction = _direction(
        old,
        new,
        more="words are split into more tokens",
        less="words are split into fewer tokens",
        same="words are split differently",
    )
    change = f"{direction}: mean {old} -> {new} tokens a word"
    return _ks("tokenizer_fertility", reference.fertility, current.fertility, change)


def compare_unknown_words(reference: Features, current: Features) -> DriftTestResult:
    """Kolmogorov-Smirnov test on the share of words that are not in the training texts."""
    old, new = f"{100 * reference.unknown_share.mean():.1f}", f"{100 * current.unknown_share.mean():.1f}"
    direction = _direction(
        old,
        new,
        more="more words are new to the training texts",
        less="fewer words are new to the training texts",
        same="words new to the training texts are distributed differently",
    )
    return _ks("unknown_words", reference.unknown_share, current.unknown_share, f"{direction}: mean {old}% -> {new}%")


def compare_entropy(reference: Features, current: Features) -> DriftTestResult:
    """Kolmogorov-Smirnov test on the entropy of the predictions."""
    old, new = f"{reference.entropy.mean():.2f}", f"{current.entropy.mean():.2f}"
    direction = _direction(
        old,
        new,
        more="the model is less certain",
        less="the model is more certain",
        same="the model's certainty is distributed differently",
    )
    return _ks("prediction_entropy", reference.entropy, current.entropy, f"{direction}: mean entropy {old} -> {new} nats")


def compare_predictions(reference: Features, current: Features, *, labels: Sequence[str] = ()) -> DriftTestResult:
    """Chi-squared test of homogeneity on the predicted labels, rare ones pooled.

    Labels are pooled, rarest first, until each expected count is at least 5. The effect is the Jensen-Shannon
    divergence in bits (0 = alike, 1 = disjoint) over all labels.
    """
    from scipy.stats import chi2_contingency

    size = int(max(reference.predicted.max(), current.predicted.max())) + 1
    counts = np.stack([np.bincount(features.predicted, minlength=size) for features in (reference, current)])
    table = _pool_rare(counts)
    statistic, p_value = 0.0, 1.0
    if table.shape[1] > 1:
        statistic, p_value = _statistic_and_p_value(chi2_contingency(table, correction=False))
    shares = counts / counts.sum(axis=1, keepdims=True)
    largest = int(np.argmax(np.abs(shares[1] - shares[0])))
    name = labels[largest] if largest < len(labels) else f"label {largest}"
    return DriftTestResult(
        name="predicted_labels",
        statistic=statistic,
        p_value=p_value,
        effect=two_samples.jensen_shannon(shares[0], shares[1]),
        effect_name="JS",
        change=f"predicted labels shift, most `{name}`: {shares[0, largest]:.1%} -> {shares[1, largest]:.1%}",
    )


def compare_embeddings(reference: Features, current: Features, *, permutations: int, seed: int) -> DriftTestResult:
    """Permutation test on the embeddings, at most 2,000 rows a side: has their distribution, or its mean, changed?

    It detects label shifts, a changed spread and a small new domain: see `two_samples.permutation_test`.
    """
    rng = np.random.default_rng(seed)
    old, new = (two_samples.subsample(features.embeddings, rng) for features in (reference, current))
    discrepancy, p_value = two_samples.permutation_test(old, new, permutations=permutations, rng=rng)
    old_mean, new_mean = old.mean(axis=0), new.mean(axis=0)
    cosine = float(old_mean @ new_mean / max(np.linalg.norm(old_mean) * np.linalg.norm(new_mean), 1e-12))
    return DriftTestResult(
        name="embeddings",
        statistic=discrepancy,
        p_value=p_value,
        effect=1 - cosine,
        effect_name="cosine distance",
        change=f"the content of the texts changed: mean embeddings differ by a cosine distance of {1 - cosine:.3f}",
    )


def _direction(old: str, new: str, *, more: str, less: str, same: str) -> str:
    """Return the words for a change between two printed numbers; numbers that print alike have no direction."""
    if float(old) == float(new):
        return same
    return more if float(new) > float(old) else less


def _ks(name: str, reference: np.ndarray, current: np.ndarray, change: str) -> DriftTestResult:
    from scipy.stats import ks_2samp

    # Ties (many texts have no unknown word) make the test conservative, never anti-conservative.
    statistic, p_value = _statistic_and_p_value(ks_2samp(reference, current, method="asymp"))
    return DriftTestResult(
        name=name,
        statistic=statistic,
        p_value=p_value,
        effect=two_samples.population_stability(reference, current),
        effect_name="PSI",
        change=change,
    )


def _statistic_and_p_value(result: Any) -> tuple[float, float]:
    """Return statistic and p-value of a scipy test, whose result has no type."""
    return float(result.statistic), float(result.pvalue)


def _pool_rare(counts: np.ndarray) -> np.ndarray:
    """Merge columns of a [2, k] table, rarest first, until each expected count is at least 5."""
    order = np.argsort(counts.sum(axis=0), kind="stable")
    columns = [counts[:, column] for column in order if counts[:, column].any()]
    smaller_share = counts.sum(axis=1).min() / counts.sum()
    while len(columns) > 1 and columns[0].sum() * smaller_share < MIN_EXPECTED_COUNT:
        columns[1] = columns[0] + columns[1]
        columns = sorted(columns[1:], key=lambda column: column.sum())
    return np.stack(columns, axis=1)
