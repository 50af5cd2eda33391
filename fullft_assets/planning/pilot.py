"""The pilot: small trainings whose learning curve predicts the score of the full one."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from fullft_assets.errors import SettingsError
from fullft_assets.settings import PlanningSettings
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec

#: It does not block: a refusal is an answer, so the run goes on to its end, without training.
PILOT_PREDICTS_GAIN = CheckSpec(
    "pilot_predicts_gain", "The pilot predicts the required gain over the baselines."
)
#: Shares of the pilot's rows that are trained on, one training each.
_PARTS = (1, 2, 4, 8)
#: Each part has at least so many times the rows of the one before.
_LEAST_STEP = 1.4
#: How far trainings stray from their curve by chance, in the metric's units.
_STRAYING = 0.02
#: A training that scores so much less than one on fewer rows failed, and says nothing of the curve.
_MAX_FALL = 0.05
#: What a doubling of the rows is expected to gain, as a share of what the one before gained.
_SHRINKING = 0.6
#: A wider 90% interval says nothing.
_MAX_WIDTH = 0.1
#: Standard errors to each side of a 90% interval.
_REACH = 1.645


class Point(BaseModel):
    """Validation score after a whole training on a number of rows."""

    model_config = ConfigDict(frozen=True)

    rows: int
    score: float


class PredictedScore(BaseModel):
    """What the learning curve says of the score after training on all rows.

    Attributes:
        low, high: ends of the 90% interval.
    """

    model_config = ConfigDict(frozen=True)

    points: list[Point]
    target_rows: int
    predicted: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether the interval is narrow enough to say something."""
        return self.high - self.low <= _MAX_WIDTH


def pilot_rows(num_rows: int, share: float, batch_size: int) -> list[int]:
    """Return the numbers of training rows that the pilot is trained on, growing; the last is the given share
    of all.

    The subsets are nested and each is trained to the end of its own schedule: a score in the middle of a
    schedule is that of a learning rate that has not come down yet. An epoch more is not data, so rows are
    counted once. It takes at least two batches, as a curve has two points.

    Raises:
        SettingsError: there are fewer rows than two batches.
    """
    if num_rows < 2 * batch_size:
        raise SettingsError(
            f"training.batch_size: {num_rows:,} training rows are fewer than two batches of {batch_size:,},"
            f" so a pilot has no learning curve; lower it to {max(1, num_rows // 8):,}, or deliver more"
        )
    largest = min(num_rows, max(2 * batch_size, int(num_rows * share)))
    # Two that are nearly as large tell chance from nothing.
    sizes = [largest]
    for part in reversed(_PARTS[:-1]):
        size = max(batch_size, largest * part // _PARTS[-1])
        if size * _LEAST_STEP <= sizes[0]:
            sizes.insert(0, size)
    return sizes


def predict_score(points: Sequence[Point], target_rows: int, num_validation_rows: int) -> PredictedScore:
    """Return what the score at `target_rows` may be, from what each doubling of the rows has gained.

    Learning curves mostly flatten (Viering and Loog 2022, The shape of learning curves): each further
    doubling is expected to gain .6 of the one before. The low end gains nothing more; the high end as much
    each time as the better of the last two doublings. Nothing bounds it where the last one gained more than
    the one before, so that the take-off may be under way, or where a training failed, which says nothing
    itself. Chance is the sampling error of the validation rows and 2 points of straying. `python -m
    benchmarks.pilot` counts how often the interval covers what full trainings reach.

    Args:
        points: scores in [0, 1], by growing numbers of rows.
        num_validation_rows: that each point was scored on.
    """
    best_scores = np.fmax.accumulate([point.score for point in points])
    # A score that is not a number is on no curve.
    curve = [
        point for point, best in zip(points, best_scores, strict=True) if point.score >= best - _MAX_FALL
    ]
    rows = np.array([point.rows for point in curve], np.float64)
    scores = np.maximum.accumulate([point.score for point in curve])
    target = max(float(target_rows), rows[-1])
    # On all rows nothing is left to predict; a part that scored more did so by chance.
    last = float(scores[-1] if target > rows[-1] else curve[-1].score)
    chance = _REACH * math.sqrt(max(last * (1 - last), 0.0025) / max(1, num_validation_rows) + _STRAYING**2)
    gains = np.diff(scores) / np.diff(np.log2(rows))
    doublings = math.log2(target / rows[-1])
    gain = 0.0
    max_gain = min(doublings, 1.0)
    if len(gains):
        gain = gains[-2:].mean() * _SHRINKING * (1 - _SHRINKING**doublings) / (1 - _SHRINKING)
        if len(curve) == len(points) and (len(gains) == 1 or gains[-1] <= gains[-2]):
            max_gain = gains[-2:].max() * doublings
    low, predicted, high = np.clip([last - chance, last + gain, last + max_gain + chance], 0, 1).tolist()
    return PredictedScore(
        points=list(points), target_rows=int(target), predicted=predicted, low=low, high=high
    )


def pilot_check(
    prediction: PredictedScore,
    baselines: Mapping[str, float],
    settings: PlanningSettings,
) -> CheckOutcome:
    """Return the gate on the predicted gain over the best baseline: red where the 90% interval ends below
    what is asked, yellow where only the prediction is below. Trainings that are no better than the weakest
    of several baselines have not taken off yet, and predict nothing.

    Args:
        baselines: validation scores by name.
    """
    best = max(baselines, key=baselines.__getitem__)
    baseline_score = baselines[best]
    weakest = min(baselines.values())
    last = prediction.points[-1]
    gain = prediction.predicted - baseline_score
    max_gain = prediction.high - baseline_score
    is_early = last.rows < prediction.target_rows and weakest < baseline_score
    has_taken_off = not is_early or max(point.score for point in prediction.points) > weakest + _MAX_FALL
    is_hopeless = has_taken_off and max_gain < settings.min_predicted_gain
    passed = not is_hopeless and gain >= settings.min_predicted_gain
    description = (
        f"pilot on {last.rows:,} rows scores {last.score:.3f}; at {prediction.target_rows:,} rows"
        f" {prediction.predicted:.3f} is predicted ({prediction.low:.3f} to"
        f" {prediction.high:.3f}{'' if prediction.is_known else ', too wide to know'}); the best baseline"
        f" ({best}) has {baseline_score:.3f}: gain {gain:+.3f}, at best {max_gain:+.3f}, required"
        f" {settings.min_predicted_gain:+.3f}"
    )
    if is_hopeless:
        description += "; use the baseline, deliver more labels, or lower planning.min_predicted_gain"
    elif not passed:
        description += (
            "; it is trained, as the interval reaches the required gain; the baseline may stay better:"
            " deliver more labels, or raise planning.min_predicted_gain to refuse such a training"
        )
    return CheckOutcome(
        name=PILOT_PREDICTS_GAIN.name,
        passed=passed,
        severity="error" if is_hopeless else "warn",
        description=description,
        metadata={"predicted_score": prediction.predicted, "predicted_gain": gain, "hoped_gain": max_gain},
    )
