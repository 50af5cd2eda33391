"""The pilot: a training on few rows, whose gain over baselines predicts that of the full one."""

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
#: A training that ends so much below its own start failed, and says nothing of another one.
_MAX_FALL = 0.05
#: A training that gains less over its own start may have learned nothing yet, and learn it from more rows.
_TAKE_OFF = 0.02
#: How the gain over the best baseline changes with ten times the rows, in the metric's units: expected, by
#: chance (a standard deviation), and at most.
_GROWTH = 0.01
_STRAYING = 0.015
MAX_GROWTH = 0.06
#: Rows that two systems answer otherwise, as a share: what a gain's sampling error comes from.
_DIFFERENT = 0.25
#: The same of a language model, whose gain in nats a token becomes so many times as large: at least, as
#: expected and at most.
_TIMES = (1.0, 2.0, 3.0)
#: How differently texts gain (standard deviation): as a share of the mean gain, and at least, in nats.
_SPREAD = 0.5
_LEAST_SPREAD = 0.1
#: Standard errors to each side of a 90% interval.
_REACH = 1.645


class Point(Record):
    """Validation scores of a training on a number of rows.

    Attributes:
        start: before its first step: of the head that its rows fit, or of the base model.
        score: after its last one.
        baseline: of the best baseline that learned from the same rows, or of the start.
    """

    rows: int
    start: float
    score: float
    baseline: float

    @property
    def gain(self) -> float:
        """What the training has more than the baseline."""
        return self.score - self.baseline


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
    point: Point,
    baseline: float | None,
    target_rows: int,
    num_validation_rows: int,
    *,
    in_nats: bool = False,
) -> PredictedScore:
    """Return the prediction of the score after training on `target_rows`: its gain over the best baseline is
    that of the pilot over the best one on the pilot's rows.

    With ten times the rows a point is added, at the high end what the steps gained over the start once more,
    at least six: training learns from more rows than baselines do. Chance is the sampling error of the
    validation rows and 1.5 points of straying. Where no baseline is known, or the pilot failed, nothing
    bounds the interval. `python -m benchmarks.pilot` counts how often it covers what full trainings reach.

    Args:
        baseline: score in [0, 1] of the best baseline that learned from all rows, or of the start on them;
            None: not known.
        num_validation_rows: that everything was scored on.
        in_nats: the scores are probabilities of a language model's tokens, and the base model is the
            baseline: the gain in nats grows; without one nothing is bounded.
    """
    has_learned = point.score > point.start > 0 if in_nats else point.score - point.start >= -_MAX_FALL
    # A score that is not a number counts as a failure, too.
    if baseline is None or not has_learned:
        score = _bounded(point.score if baseline is None else baseline)
        return PredictedScore(point=point, target_rows=target_rows, predicted=score, low=0.0, high=1.0)
    decades = math.log10(max(1.0, target_rows / point.rows))
    if in_nats:
        nats = math.log(point.score / point.start)
        error = _REACH * max(_LEAST_SPREAD, _SPREAD * nats) / math.sqrt(max(1, num_validation_rows))
        ends = {
            name: math.exp(min(0.0, math.log(baseline) + nats * times**decades + chance))
            for name, times, chance in zip(
                ("low", "predicted", "high"), _TIMES, (-error, 0.0, error), strict=True
            )
        }
        return PredictedScore(point=point, target_rows=target_rows, **ends)
    score = baseline + point.gain
    chance = _REACH * math.sqrt(_DIFFERENT / max(1, num_validation_rows) + _STRAYING**2 * decades)
    return PredictedScore(
        point=point,
        target_rows=target_rows,
        predicted=_bounded(score + _GROWTH * decades),
        low=_bounded(score + _GROWTH * decades - chance),
        high=_bounded(score + max(MAX_GROWTH, point.score - point.start) * decades + chance),
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
    where the prediction is below. A pilot that hardly gains over its start predicts nothing.

    Args:
        baselines: validation scores by name.
        lora: validation score of LoRA on the pilot's rows; None: not measured.
    """
    best = max(baselines, key=baselines.__getitem__)
    baseline_score = baselines[best]
    last = prediction.point
    gain = prediction.predicted - baseline_score
    max_gain = prediction.high - baseline_score
    has_taken_off = last.rows >= prediction.target_rows or last.score > last.start + _TAKE_OFF
    is_hopeless = has_taken_off and max_gain < settings.min_predicted_gain
    has_passed = not is_hopeless and gain >= settings.min_predicted_gain
    verdict = (
        "no-go"
        if is_hopeless
        else "go"
        if 0 < prediction.low >= baseline_score + settings.min_predicted_gain
        else "open"
    )
    description = (
        f"{verdict}: the pilot on {last.rows:,} rows scores {last.score:.3f}"
        f"{'' if lora is None else f' (LoRA on the same rows {lora:.3f})'}, {last.gain:+.3f} over baselines"
        f" on the same rows; at {prediction.target_rows:,} rows {prediction.predicted:.3f} is predicted"
        f" ({prediction.low:.3f} to {prediction.high:.3f}); the best baseline ({best}) has"
        f" {baseline_score:.3f}: gain {gain:+.3f}, at best {max_gain:+.3f},"
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
