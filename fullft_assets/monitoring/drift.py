"""monitoring: is what production sees today what the model learned on?

Six tests compare a window of production documents with held-out rows of the training snapshot: text
length, tokenizer fertility, unknown words, prediction entropy, predicted labels and embeddings. Each
detector is `(reference, current) -> Outcome`; Bonferroni holds the false alarms of all six together.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from fullft_assets.errors import StoreError
from fullft_assets.monitoring import two_samples
from fullft_assets.settings import MonitoringSettings, UseCaseSettings
from fullft_assets.store import CheckOutcome

VERSION = "2"
#: The alarm threshold in units of the embedding test's smallest p-value. At 8, its two halves keep their power.
MIN_PERMUTATION_STEPS = 8
NUM_TESTS = 6
#: Below this expected count the chi-squared approximation fails.
MIN_EXPECTED_COUNT = 5.0
#: Dagster shows Markdown inline only below 1,000 characters.
MAX_TABLE_CHARACTERS = 999

Status = Literal["stable", "drifted", "insufficient_data"]
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Features:
    """What the tests look at, one entry a document.

    Attributes:
        num_tokens: [n] tokens of the whole text, special tokens left out.
        fertility: [n] tokens per word.
        unknown_share: [n] share of the text's words that the training texts never held.
        entropy: [n] entropy of the predicted label distribution, in nats.
        predicted: [n] index of the most probable label.
        embeddings: [n, d] pooled last hidden state, float32.
    """

    num_tokens: np.ndarray
    fertility: np.ndarray
    unknown_share: np.ndarray
    entropy: np.ndarray
    predicted: np.ndarray
    embeddings: np.ndarray

    def __post_init__(self) -> None:
        for field in fields(self):
            values, num_rows = getattr(self, field.name), len(self.num_tokens)
            if len(values) != num_rows or values.ndim != (2 if field.name == "embeddings" else 1):
                raise ValueError(f"features: `{field.name}` has shape {values.shape}, the others {num_rows} rows")
            if not np.isfinite(values).all():
                raise ValueError(f"features: `{field.name}` is not finite; the model or a text is broken")

    def __len__(self) -> int:
        return len(self.num_tokens)

    def select(self, indices: np.ndarray | Sequence[int]) -> Features:
        """Return the features of these rows."""
        indices = np.asarray(indices, dtype=np.int64)
        return Features(**{field.name: getattr(self, field.name)[indices] for field in fields(self)})

    def save(self, path: Path) -> None:
        """Write the features as a compressed .npz file."""
        np.savez_compressed(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Features:
        """Read what `save` wrote.

        Raises:
            StoreError: an array is missing.
        """
        with np.load(path, allow_pickle=False) as arrays:
            missing = [field.name for field in fields(cls) if field.name not in arrays]
            if missing:
                raise StoreError(f"{path}: no array `{missing[0]}`; materialise the drift report again")
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


class Outcome(BaseModel):
    """What one test found; `effect` is a size, not a test, and `change` says it in plain words."""

    model_config = ConfigDict(frozen=True)

    name: str
    statistic: float
    p_value: float
    effect: float
    effect_name: str
    change: str


class DriftVerdict(BaseModel):
    """The verdict on one window.

    `moved` says in plain words what the tests in `alarms` saw; a test alarms when its p-value is at most `threshold`.
    """

    model_config = ConfigDict(frozen=True)

    status: Status
    num_rows: int
    num_reference_rows: int | None
    threshold: float
    tests: list[Outcome] = []
    alarms: list[str] = []
    moved: list[str] = []
    notes: list[str] = []

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        if self.status == "insufficient_data":
            return "insufficient data: " + "; ".join(self.notes)
        if self.status == "stable":
            return f"{self.num_rows:,} documents look like what the model learned on"
        return "; ".join(self.moved)


Detector = Callable[[Features, Features], Outcome]


def compare(reference: Features, current: Features, settings: MonitoringSettings, seed: int, labels: Sequence[str] = ()) -> DriftVerdict:
    """Compare a window with the reference.

    Both should hold one row a group (`one_per_group`): related texts that arrive in bursts are not independent, and
    raise false alarms. The false alarm rate holds over draws of the reference too: one unlucky small reference errs in
    window after window, so it should have several times a window's rows where that many are held out.

    Args:
        reference: held-out rows of the snapshot that the model was trained on.
        current: the window's rows, seen by the same model.
        settings: rows needed, false alarm rate over all tests together, least number of permutations.
        seed: seed of the permutations and of the embedding test's subsample.
        labels: names of the predicted labels, for the plain words.
    """
    if min(len(reference), len(current)) < settings.min_window_rows:
        return insufficient(len(current), settings, num_reference_rows=len(reference))
    if reference.embeddings.shape[1] != current.embeddings.shape[1]:
        raise ValueError(
            f"embeddings have {reference.embeddings.shape[1]} and {current.embeddings.shape[1]} dimensions: "
            "reference and window were read by different models"
        )
    outcomes = [test(reference, current) for test in detectors(settings, seed, labels)]
    threshold = settings.false_alarm_rate / NUM_TESTS
    alarmed = [outcome for outcome in outcomes if outcome.p_value <= threshold]
    return DriftVerdict(
        status="drifted" if alarmed else "stable",
        num_rows=len(current),
        num_reference_rows=len(reference),
        threshold=threshold,
        tests=outcomes,
        alarms=[outcome.name for outcome in alarmed],
        moved=[outcome.change for outcome in alarmed],
    )


def insufficient(num_rows: int, settings: MonitoringSettings, *, num_reference_rows: int | None = None) -> DriftVerdict:
    """Return the verdict on a window, or against a reference, with too few rows to tell.

    Args:
        num_rows: rows of the window, one a group.
        settings: rows needed.
        num_reference_rows: None where the reference was not read.
    """
    counts = {"window": num_rows, "reference": num_reference_rows}
    return DriftVerdict(
        status="insufficient_data",
        num_rows=num_rows,
        num_reference_rows=num_reference_rows,
        threshold=settings.false_alarm_rate / NUM_TESTS,
        notes=[
            f"{count:,} {name} documents of the {settings.min_window_rows:,} needed (monitoring.min_window_rows)"
            for name, count in counts.items()
            if count is not None and count < settings.min_window_rows
        ],
    )


def check(verdict: DriftVerdict) -> CheckOutcome:
    """Return the check of a window: green unless it drifted, with what moved and what to do."""
    description = verdict.summary
    if verdict.status == "drifted":
        description += ". Read some of these documents; if they are here to stay, label and deliver them, and retrain"
    elif verdict.status == "insufficient_data":
        description += ". Let windows gather more documents"
    return CheckOutcome(name="window_matches_reference", passed=verdict.status != "drifted", severity="warn", description=description)


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that determine a drift report."""
    return {
        "monitoring": settings.monitoring.model_dump(exclude={"path"}),
        "chunks": settings.chunks.model_dump(include={"max_tokens", "stride", "max_windows"}),
        "group": settings.examples.group,
    }


def detectors(settings: MonitoringSettings, seed: int, labels: Sequence[str] = ()) -> list[Detector]:
    """Return the six tests, each `(reference, current) -> Outcome`."""
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


def compare_lengths(reference: Features, current: Features) -> Outcome:
    """Kolmogorov-Smirnov test on the number of tokens."""
    old, new = f"{np.median(reference.num_tokens):.0f}", f"{np.median(current.num_tokens):.0f}"
    way = _way(old, new, more="texts are longer", less="texts are shorter", same="text lengths are spread differently")
    return _ks("text_length", reference.num_tokens, current.num_tokens, f"{way}: median {old} -> {new} tokens")


def compare_fertility(reference: Features, current: Features) -> Outcome:
    """Kolmogorov-Smirnov test on tokens per word: a foreign script or broken text is split into more pieces."""
    old, new = f"{reference.fertility.mean():.2f}", f"{current.fertility.mean():.2f}"
    way = _way(
        old,
        new,
        more="words are split into more tokens",
        less="words are split into fewer tokens",
        same="words are split differently",
    )
    change = f"{way}: mean {old} -> {new} tokens a word"
    return _ks("tokenizer_fertility", reference.fertility, current.fertility, change)


def compare_unknown_words(reference: Features, current: Features) -> Outcome:
    """Kolmogorov-Smirnov test on the share of words that the training texts never held."""
    old, new = f"{100 * reference.unknown_share.mean():.1f}", f"{100 * current.unknown_share.mean():.1f}"
    way = _way(
        old,
        new,
        more="more words are new to the training texts",
        less="fewer words are new to the training texts",
        same="words new to the training texts are spread differently",
    )
    return _ks("unknown_words", reference.unknown_share, current.unknown_share, f"{way}: mean {old}% -> {new}%")


def compare_entropy(reference: Features, current: Features) -> Outcome:
    """Kolmogorov-Smirnov test on the entropy of the predictions."""
    old, new = f"{reference.entropy.mean():.2f}", f"{current.entropy.mean():.2f}"
    way = _way(
        old,
        new,
        more="the model is less sure",
        less="the model is more sure",
        same="the model's sureness is spread differently",
    )
    return _ks("prediction_entropy", reference.entropy, current.entropy, f"{way}: mean entropy {old} -> {new} nats")


def compare_predictions(reference: Features, current: Features, *, labels: Sequence[str] = ()) -> Outcome:
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
        result = chi2_contingency(table, correction=False)
        statistic, p_value = float(result.statistic), float(result.pvalue)
    shares = counts / counts.sum(axis=1, keepdims=True)
    most = int(np.argmax(np.abs(shares[1] - shares[0])))
    name = labels[most] if most < len(labels) else f"label {most}"
    return Outcome(
        name="predicted_labels",
        statistic=statistic,
        p_value=p_value,
        effect=two_samples.jensen_shannon(shares[0], shares[1]),
        effect_name="JS",
        change=f"predicted labels shift, most `{name}`: {shares[0, most]:.1%} -> {shares[1, most]:.1%}",
    )


def compare_embeddings(reference: Features, current: Features, *, permutations: int, seed: int) -> Outcome:
    """Permutation test on the embeddings, at most 2,000 rows a side: has the distribution, or its mean, moved?

    It sees label shifts, a changed spread and a small new domain: see `two_samples.permutation_test`.
    """
    rng = np.random.default_rng(seed)
    old, new = (two_samples.subsample(features.embeddings, rng) for features in (reference, current))
    discrepancy, p_value = two_samples.permutation_test(old, new, permutations=permutations, rng=rng)
    old_mean, new_mean = old.mean(axis=0), new.mean(axis=0)
    cosine = float(old_mean @ new_mean / max(np.linalg.norm(old_mean) * np.linalg.norm(new_mean), 1e-12))
    return Outcome(
        name="embeddings",
        statistic=discrepancy,
        p_value=p_value,
        effect=1 - cosine,
        effect_name="cosine distance",
        change=f"the texts' content moved: mean embeddings differ by a cosine distance of {1 - cosine:.3f}",
    )


def one_per_group(texts: Sequence[str], groups: Sequence[str | None], seed: int, *, limit: int | None = None) -> np.ndarray:
    """Return the indices, ascending, of one row a group: the one that a hash keyed with the seed puts first.

    Related texts in bursts are not independent: row by row they raise alarms in most unchanged windows. A row without a
    group is grouped with the texts equal to it. The choice depends on the texts, not on their order.

    Args:
        texts: [n] texts.
        groups: [n] group of each row; None or "" = none.
        seed: key of the hash.
        limit: most rows returned, drawn by the same hash. Default: all groups.
    """
    ranks = [_keyed_hash(f"{seed}:{text}") for text in texts]
    first: dict[tuple[str, str], int] = {}
    for index, (text, group) in enumerate(zip(texts, groups, strict=True)):
        key = ("group", group) if group else ("text", text)
        if key not in first or ranks[index] < ranks[first[key]]:
            first[key] = index
    chosen = sorted(first.values(), key=lambda index: (ranks[index], index))
    return np.array(sorted(chosen[:limit]), dtype=np.int64)


def vocabulary_of(texts: Sequence[str]) -> set[str]:
    """Return the words of these texts, case folded."""
    return {word for text in texts for word in _WORD.findall(text.casefold())}


def build_features(
    texts: Sequence[str],
    num_tokens: Sequence[int] | np.ndarray,
    vocabulary: Collection[str],
    probabilities: np.ndarray,
    embeddings: np.ndarray,
) -> Features:
    """Return the features of texts that a model has read.

    Args:
        texts: [n] texts.
        num_tokens: [n] tokens of the whole text, special tokens left out.
        vocabulary: words of the training texts (`vocabulary_of`); a set.
        probabilities: [n, k] predicted label distribution.
        embeddings: [n, d] pooled last hidden state.
    """
    words = [_WORD.findall(text.casefold()) for text in texts]
    unknown = [sum(word not in vocabulary for word in row) / max(len(row), 1) for row in words]
    counts = np.asarray(num_tokens, dtype=np.int64).reshape(len(texts))
    probabilities = np.asarray(probabilities, dtype=np.float64)
    return Features(
        num_tokens=counts,
        fertility=counts / np.array([max(len(row), 1) for row in words], dtype=np.float64).reshape(len(texts)),
        unknown_share=np.array(unknown, dtype=np.float64),
        entropy=-np.sum(probabilities * np.log(np.maximum(probabilities, 1e-12)), axis=1),
        predicted=probabilities.argmax(axis=1).astype(np.int64),
        embeddings=np.asarray(embeddings, dtype=np.float32),
    )


def render_table(verdict: DriftVerdict) -> str:
    """Return the tests as a Markdown table short enough to be shown inline by Dagster (below 1,000 characters)."""
    if not verdict.tests:
        return verdict.summary
    lines = ["| test | p-value | effect | alarm |", "|---|---|---|---|"]
    for test in verdict.tests:
        alarm = "**yes**" if test.name in verdict.alarms else "no"
        lines.append(f"| {test.name} | {test.p_value:.2g} | {test.effect_name} {test.effect:.3f} | {alarm} |")
    lines += ["", f"An alarm is p <= {verdict.threshold:.2g}."]
    return "\n".join(lines)[:MAX_TABLE_CHARACTERS]


def render_report(verdict: DriftVerdict, title: str) -> str:
    """Return the whole verdict as Markdown."""
    lines = [f"# {title}", "", f"Status: **{verdict.status}**.", ""]
    lines += [f"- {change}" for change in (verdict.moved or [verdict.summary])] + [""]
    lines += [f"Note: {note}.\n" for note in verdict.notes if note not in verdict.summary]
    if verdict.tests:
        lines += [
            f"{verdict.num_rows:,} window documents against {verdict.num_reference_rows:,} held-out documents of the "
            "training snapshot, one a group.",
            "",
        ]
        lines += [render_table(verdict)]
    return "\n".join(lines) + "\n"


def _way(old: str, new: str, *, more: str, less: str, same: str) -> str:
    """Return the words for two numbers as they are printed: equal print is no direction."""
    if float(old) == float(new):
        return same
    return more if float(new) > float(old) else less


def _ks(name: str, reference: np.ndarray, current: np.ndarray, change: str) -> Outcome:
    from scipy.stats import ks_2samp

    # Ties (many texts hold no unknown word) make the test conservative, never anti-conservative.
    result = ks_2samp(reference, current, method="asymp")
    return Outcome(
        name=name,
        statistic=float(result.statistic),
        p_value=float(result.pvalue),
        effect=two_samples.population_stability(reference, current),
        effect_name="PSI",
        change=change,
    )


def _pool_rare(counts: np.ndarray) -> np.ndarray:
    """Merge columns of a [2, k] table, rarest first, until each expected count is at least 5."""
    order = np.argsort(counts.sum(axis=0), kind="stable")
    columns = [counts[:, column] for column in order if counts[:, column].any()]
    smaller_share = counts.sum(axis=1).min() / counts.sum()
    while len(columns) > 1 and columns[0].sum() * smaller_share < MIN_EXPECTED_COUNT:
        columns[1] = columns[0] + columns[1]
        columns = sorted(columns[1:], key=lambda column: column.sum())
    return np.stack(columns, axis=1)


def _keyed_hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
