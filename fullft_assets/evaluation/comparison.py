"""How the systems of an evaluation are compared, and whether full fine-tuning was justified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fullft_assets.evaluation.intervals import Bootstrap, Interval, Record, bootstrap_over_groups, number_groups
from fullft_assets.evaluation.metrics.base import Predictions
from fullft_assets.evaluation.titles import CHAMPION, FINETUNED, title
from fullft_assets.settings import EvaluationSettings, UseCaseSettings
from fullft_assets.task import METRICS, TASKS

#: A wider interval around the primary metric (half its width) means that the test set is small.
MAX_HALF_WIDTH = 0.05


class Justification(Record):
    """Whether full fine-tuning beat the best baseline, and the sentence that says so."""

    best_baseline: str
    gain: Interval
    justified: bool
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """How the systems of an evaluation are compared."""

    settings: EvaluationSettings
    metric: str
    seed: int
    task: str
    min_gain: float = 0.0

    @classmethod
    def of(cls, settings: UseCaseSettings) -> Comparison:
        """Return the one that the settings ask for."""
        return cls(
            settings.evaluation, settings.primary_metric, settings.seed, settings.examples.task, settings.release.min_gain_over_baselines
        )

    def run(self, predictions: Mapping[str, Predictions], groups: Sequence[str], num_rows: int) -> dict[str, Any]:
        """Compute every metric of every system with its interval, and return the fields that each `Evaluation` has.

        Args:
            predictions: of `finetuned`, each baseline and, if there is one, `champion`.

        Raises:
            ValueError: input is misaligned, there are fewer than two groups, or there is no baseline among the systems.
        """
        index, num_groups = number_groups(groups, num_rows)
        shown = list(dict.fromkeys([*TASKS.get(self.task).shown_metrics, *self.settings.metrics]))
        found = {name: measured for name in shown if (measured := self._measure(name, predictions, index)) is not None}
        primary, confidence = found[self.metric], self.settings.confidence
        baselines = [name for name in primary.scores if name not in (FINETUNED, CHAMPION)]
        return {
            "task": self.task,
            "metrics": shown,
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

    def _measure(self, name: str, predictions: Mapping[str, Predictions], index: Any) -> Bootstrap | None:
        """Return the scores of the systems that a metric can measure; None where the fine-tuned model is not one of them."""
        metric, settings = METRICS.get(name), self.settings
        measured = {system: found for system, found in predictions.items() if metric.measures(found)}
        if FINETUNED not in measured:
            return None
        sampling = {"resamples": settings.resamples, "confidence": settings.confidence, "seed": self.seed}
        return bootstrap_over_groups(metric, measured, index, reference=FINETUNED, **sampling)


def justification(
    scores: Mapping[str, Interval],
    gains: Mapping[str, Interval],
    baselines: Sequence[str],
    *,
    metric: str,
    confidence: float,
    min_gain: float = 0.0,
) -> Justification:
    """Was full fine-tuning justified: is the interval of its gain over the best baseline above `min_gain` (and zero)?

    Args:
        gains: fine-tuned minus each other system.
        baselines: names of the baselines; the one with the highest estimate counts.
        min_gain: gain that the interval's lower end must exceed.
    """
    if not baselines:
        raise ValueError("there is no baseline to compare with; materialise cheaper_baselines")
    best = max(baselines, key=lambda name: scores[name].estimate)
    gain = gains[best]
    # A gate may allow a loss (for size or speed); that does not make a loss worth its price.
    justified = gain.low > max(min_gain, 0.0)
    asked = f"the required {min_gain:+.3f}" if min_gain > 0 else "zero"
    if justified:
        opening = "Full fine-tuning was worth it"
    elif gain.high < 0:
        opening = "Full fine-tuning was not worth it, a baseline is better"
    else:
        opening = f"Full fine-tuning is not shown to be worth it, the interval of its gain is not above {asked}"
    sentence = (
        f"{opening}: {title(metric)} is {scores[FINETUNED].estimate:.3f} against {scores[best].estimate:.3f} of the best "
        f"baseline ({title(best)}), a gain of {gain.estimate:+.3f} ({confidence:.0%} interval {gain.low:+.3f} to {gain.high:+.3f})."
    )
    return Justification(best_baseline=best, gain=gain, justified=justified, sentence=sentence)
