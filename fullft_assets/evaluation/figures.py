"""What the evaluations of all tasks share: figures with intervals, resampling over groups, the justification."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from fullft_assets.settings import EvaluationSettings, UseCaseSettings

FINETUNED = "finetuned"
CHAMPION = "champion"
BASE_MODEL = "base_model"
#: What people call each system and metric.
TITLES = {
    FINETUNED: "fully fine-tuned model",
    CHAMPION: "champion",
    BASE_MODEL: "base model, not fine-tuned",
    "majority": "majority label",
    "tfidf": "TF-IDF + logistic regression",
    "frozen_probe": "frozen base model + trained head",
    "label_shares": "labels by their shares",
    "no_spans": "no spans at all",
    "dictionary": "dictionary of training spans",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "subset_accuracy": "subset accuracy",
    "accuracy": "accuracy",
    "token_probability": "token probability",
    "token_accuracy": "token accuracy",
    "perplexity": "perplexity",
}
#: A wider interval around the primary metric (half its width) says that the test set is small.
MAX_HALF_WIDTH = 0.05
#: Numbers in one chunk of resampling weights (float64: 32 MB).
_CHUNK_NUMBERS = 4_000_000


class Figures(BaseModel):
    """Numbers of an evaluation: fixed, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Figures):
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


class Justification(Figures):
    """Whether full fine-tuning beat the best cheaper way, and the sentence that says so."""

    best_baseline: str
    gain: Interval
    justified: bool
    sentence: str


class Bootstrap(Figures):
    """Each system's score, and the reference's gain over every other system."""

    scores: dict[str, Interval]
    gains: dict[str, Interval]


class Evaluation(Figures, ABC):
    """What a release and a report need to know of an evaluation, whatever the task; `scores` and `gains` go metric -> system.

    Attributes:
        kind: folder of the templates that show what only this kind of evaluation has.
        gains: fine-tuned minus each other system.
        calibration_error: None: not measured for this task.
    """

    kind: ClassVar[str]

    primary_metric: str
    confidence: float
    resamples: int
    num_test_rows: int
    num_test_groups: int
    baselines: list[str]
    has_champion: bool
    scores: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Interval]]
    justification: Justification
    calibration_error: float | None = None

    @property
    @abstractmethod
    def columns(self) -> dict[str, dict[str, Interval]]:
        """What a table of the systems shows: metric -> system -> interval; a system without one could not be measured so."""

    @property
    @abstractmethod
    def limits(self) -> list[str]:
        """Known limits that the figures show, one sentence each."""

    @property
    def headline(self) -> dict[str, float]:
        """The fine-tuned model's metrics, each with the ends of its interval."""
        found: dict[str, float] = {}
        for metric, values in self.columns.items():
            if FINETUNED in values:
                score = values[FINETUNED]
                found |= {metric: score.estimate, f"{metric}_low": score.low, f"{metric}_high": score.high}
        return found

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


@dataclass(frozen=True)
class Terms:
    """How the systems of an evaluation are compared.

    Attributes:
        settings: level and size of the bootstrap.
        metric: the one that decides.
        seed: of the bootstrap.
        min_gain: gain over the best cheaper baseline that would justify the fine-tuning.
    """

    settings: EvaluationSettings
    metric: str
    seed: int
    min_gain: float = 0.0

    @classmethod
    def of(cls, settings: UseCaseSettings) -> Terms:
        """Return those that the settings ask for."""
        return cls(settings.evaluation, settings.primary_metric, settings.seed, settings.release.min_gain_over_baselines)

    def resample(self, counts: Mapping[str, tuple[np.ndarray, ...]], score: Callable[..., np.ndarray]) -> Bootstrap:
        """Return each system's score and the fine-tuned model's gains: see `bootstrap_over_groups`."""
        settings = self.settings
        return bootstrap_over_groups(
            counts, score, reference=FINETUNED, resamples=settings.resamples, confidence=settings.confidence, seed=self.seed
        )

    def shared(self, found: Mapping[str, Bootstrap], num_rows: int, num_groups: int) -> dict[str, Any]:
        """Return the fields that every `Evaluation` has.

        Args:
            found: by metric; the one that decides has all systems.
            num_rows: test rows.
            num_groups: theirs.

        Raises:
            ValueError: there are no cheaper baselines among the systems.
        """
        primary, confidence = found[self.metric], self.settings.confidence
        baselines = [name for name in primary.scores if name not in (FINETUNED, CHAMPION)]
        return {
            "primary_metric": self.metric,
            "confidence": confidence,
            "resamples": self.settings.resamples,
            "num_test_rows": num_rows,
            "num_test_groups": num_groups,
            "baselines": baselines,
            "has_champion": CHAMPION in primary.scores,
            "scores": {metric: each.scores for metric, each in found.items()},
            "gains": {metric: each.gains for metric, each in found.items()},
            "justification": justification(
                primary.scores, primary.gains, baselines, metric=self.metric, confidence=confidence, min_gain=self.min_gain
            ),
        }


def title(system: str) -> str:
    """What people call a system or a metric."""
    return TITLES.get(system, system.replace("_", " "))


def number_groups(groups: Sequence[str], num_rows: int) -> tuple[np.ndarray, int]:
    """Return the number of each row's group [rows], and how many groups there are.

    Raises:
        ValueError: there are more or fewer than the rows, or fewer than two groups.
    """
    if len(groups) != num_rows:
        raise ValueError(f"groups: {len(groups)} for {num_rows} rows")
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ValueError("groups: all rows belong to one group, so no interval can be drawn; deliver more groups")
    return index, len(names)


def bootstrap_over_groups(
    counts: Mapping[str, tuple[np.ndarray, ...]],
    score: Callable[..., np.ndarray],
    *,
    reference: str,
    resamples: int,
    confidence: float,
    seed: int,
) -> Bootstrap:
    """Percentile intervals from resampling whole groups, the same resample for every system.

    Rows of one group err together, so resampling rows would promise intervals that are far too narrow
    (Davison and Hinkley 1997, section 3.8). A metric that is a function of counts only needs each group's,
    so a resample is a product of group weights with those.

    Args:
        counts: of each system, tables [groups, k] or [groups].
        score: takes them summed over the drawn groups, [resamples, k] or [resamples], and returns the metric [resamples].
        reference: the system whose gain over each other one is estimated.
        resamples: number of resamples.
        confidence: level of the intervals, such as 0.95.
        seed: of the resampling.

    Raises:
        ValueError: the reference is not among the systems.
    """
    if reference not in counts:
        raise ValueError(f"reference `{reference}` is not among the systems: {', '.join(counts)}")
    estimates = {name: float(score(*(c.sum(0, keepdims=True) for c in found))[0]) for name, found in counts.items()}
    num_groups = len(next(iter(counts.values()))[0])
    draws: dict[str, list[np.ndarray]] = {name: [] for name in counts}
    for weights in _group_weights(num_groups, resamples, seed):
        for name, found in counts.items():
            draws[name].append(score(*(weights @ c for c in found)))
    drawn = {name: np.concatenate(parts) for name, parts in draws.items()}
    others = [name for name in counts if name != reference]
    return Bootstrap(
        scores={name: _interval(estimates[name], drawn[name], confidence) for name in counts},
        gains={name: _interval(estimates[reference] - estimates[name], drawn[reference] - drawn[name], confidence) for name in others},
    )


def justification(
    scores: Mapping[str, Interval],
    gains: Mapping[str, Interval],
    baselines: Sequence[str],
    *,
    metric: str,
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
