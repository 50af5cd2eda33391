"""The pilot: a training on few rows, whose gain over its start predicts that of the full one."""

import math
from collections.abc import Mapping

from fullft_assets.errors import SettingsError
from fullft_assets.record import Record
from fullft_assets.settings import PlanningSettings
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec

#: It does not block: a refusal is an answer, so the run goes on to its end, without training.
PILOT_PREDICTS_GAIN = CheckSpec(
    "pilot_predicts_gain", "The pilot predicts the required gain over the baselines."
)
#: How far trainings stray from their curve by chance, in the metric's units.
_STRAYING = 0.02
#: A training that ends so much below its own start failed, and says nothing of another one.
_MAX_FALL = 0.05
#: What each doubling of the rows adds to what the steps gain, in the metric's units: expected and at most.
GROWTH = 0.01
MAX_GROWTH = 0.04
#: What more rows may take from the pilot's gain, as a share: they help the start, too.
_MAX_LOSS = 0.5
#: Standard errors to each side of a 90% interval.
_REACH = 1.645


class Point(Record):
    """Validation scores of a training on a number of rows.

    Attributes:
        start: before its first step: of the head that its rows fit, or of the base model.
        score: after its last one.
    """

    rows: int
    start: float
    score: float

    @property
    def gain(self) -> float:
        """What the steps gained."""
        return self.score - self.start


class PredictedScore(Record):
    """What the pilot says of the score after training on all rows.

    Attributes:
        low, high: ends of the 90% interval; 0 and 1 where nothing is known.
    """

    point: Point
    target_rows: int
    predicted: float
    low: float
    high: float


def pilot_rows(num_rows: int, share: float, batch_size: int) -> int:
    """Return the number of training rows that the pilot is trained on: the given share of all, at least two
    batches.

    It is trained to the end of its own schedule: a score in the middle of one is that of a learning rate that
    has not come down yet. An epoch more is not data, so rows are counted once.

    Raises:
        SettingsError: there are fewer rows than two batches.
    """
    if num_rows < 2 * batch_size:
        raise SettingsError(
            f"training.batch_size: {num_rows:,} training rows are fewer than two batches of {batch_size:,},"
            f" so a pilot says nothing; lower it to {max(1, num_rows // 8):,}, or deliver more"
        )
    return max(2 * batch_size, int(num_rows * share))


def predict_score(
    point: Point, start: float | None, target_rows: int, num_validation_rows: int
) -> PredictedScore:
    """Return the prediction of the score after training on `target_rows`: the start of that training is
    known, and the pilot measured what steps add to a start.

    Each doubling of the rows adds a point to what is expected, and to the high end four, together at least
    the pilot's gain again. The low end has half of that gain, as more rows help the start, too. Chance is the
    sampling error of the validation rows and 2 points of straying. Where the start is not known, or the pilot
    failed, nothing bounds the interval. `python -m benchmarks.pilot` counts how often it covers what full
    trainings reach.

    Args:
        start: score in [0, 1] before the first step of the training on all rows; None: not known.
        num_validation_rows: that everything was scored on.
    """
    doublings = math.log2(max(1.0, target_rows / point.rows))
    # Also where it is not a number.
    if start is None or not point.gain >= -_MAX_FALL:
        score = _bounded(point.score if start is None else start)
        return PredictedScore(point=point, target_rows=target_rows, predicted=score, low=0.0, high=1.0)
    score = start + point.gain
    chance = _REACH * math.sqrt(max(score * (1 - score), 0.0025) / max(1, num_validation_rows) + _STRAYING**2)
    return PredictedScore(
        point=point,
        target_rows=target_rows,
        predicted=_bounded(score + GROWTH * doublings),
        low=_bounded(score - max(0.0, _MAX_LOSS * point.gain * min(1.0, doublings)) - chance),
        high=_bounded(score + max(MAX_GROWTH * doublings, point.gain * min(1.0, doublings)) + chance),
    )


def _bounded(score: float) -> float:
    return min(max(0.0, score), 1.0)


def pilot_check(
    prediction: PredictedScore,
    baselines: Mapping[str, float],
    settings: PlanningSettings,
    lora: float | None = None,
) -> CheckOutcome:
    """Return the gate on the predicted gain over the best baseline: go where even the low end of the 90%
    interval reaches what is asked, no-go and red where even the high end does not, else open, and yellow
    where the prediction is below. Trainings that are no better than the weakest of several baselines have not
    taken off yet, and predict nothing.

    Args:
        baselines: validation scores by name.
        lora: validation score of LoRA on the pilot's rows; None: not measured.
    """
    best = max(baselines, key=baselines.__getitem__)
    baseline_score = baselines[best]
    weakest = min(baselines.values())
    last = prediction.point
    gain = prediction.predicted - baseline_score
    max_gain = prediction.high - baseline_score
    has_taken_off = (
        last.rows >= prediction.target_rows or weakest >= baseline_score or last.score > weakest + _MAX_FALL
    )
    is_hopeless = has_taken_off and max_gain < settings.min_predicted_gain
    has_passed = not is_hopeless and gain >= settings.min_predicted_gain
    verdict = (
        "no-go"
        if is_hopeless
        else "go"
        if prediction.low - baseline_score >= settings.min_predicted_gain
        else "open"
    )
    description = (
        f"{verdict}: the pilot on {last.rows:,} rows scores {last.score:.3f}"
        f"{'' if lora is None else f' (LoRA on the same rows {lora:.3f})'}; at {prediction.target_rows:,}"
        f" rows {prediction.predicted:.3f} is predicted ({prediction.low:.3f} to {prediction.high:.3f}); the"
        f" best baseline ({best}) has {baseline_score:.3f}: gain {gain:+.3f}, at best {max_gain:+.3f},"
        f" required {settings.min_predicted_gain:+.3f}"
    )
    if is_hopeless:
        description += "; use the baseline, deliver more labels, or lower planning.min_predicted_gain"
    elif not has_passed:
        description += (
            "; it is trained, as the interval reaches the required gain; the baseline may stay better:"
            " deliver more labels, or raise planning.min_predicted_gain to refuse such a training"
        )
    return CheckOutcome(
        name=PILOT_PREDICTS_GAIN.name,
        passed=has_passed,
        severity="error" if is_hopeless else "warn",
        description=description,
        metadata={
            "verdict": verdict,
            "predicted_score": prediction.predicted,
            "predicted_gain": gain,
            "hoped_gain": max_gain,
        },
    )
