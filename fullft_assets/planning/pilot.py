"""The pilot: small trainings whose learning curve predicts the score of the full one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
#: How far a real curve strays from every shape, in the metric's units.
_TOLERANCE = 0.02
#: More data of the same kind may hurt by as much: trainings differ by chance.
_MAX_FALL = 0.05
#: A wider 90% interval says nothing.
_MAX_WIDTH = 0.1
#: The gate adds it to the optimistic end: a good training that is refused is lost for ever, a bad one is
#: stopped by its evaluation.
_DOUBT = 0.02
#: Weight of a shape whose rise is still to come or bends, against those that go on as they began.
_RARE = 0.05
_DRAWS_A_SHAPE = 150
_NUM_REACHED, _NUM_FIRST = 201, 9

Shape = Callable[[np.ndarray], np.ndarray]


class Point(BaseModel):
    """Validation score after a whole training on a number of rows."""

    model_config = ConfigDict(frozen=True)

    rows: int
    score: float


class PredictedScore(BaseModel):
    """What the learning curve says of the score after training on all rows.

    Attributes:
        predicted: median.
        low, high: ends of the 90% interval.
        optimistic: 98 of 100 curves end below.
    """

    model_config = ConfigDict(frozen=True)

    points: list[Point]
    target_rows: int
    predicted: float
    low: float
    high: float
    optimistic: float

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
    return sorted({max(batch_size, largest * part // _PARTS[-1]) for part in _PARTS})


def predict_score(points: Sequence[Point], target_rows: int, num_validation_rows: int) -> PredictedScore:
    """Return the posterior of the score at `target_rows` over the shapes that learning curves have.

    Seven shapes: power law, logarithm, saturation and S (a take-off that was seen), and with little weight
    late S (one still to come), Gompertz and a power law that breaks (Viering and Loog 2022, The shape of
    learning curves). Each is drawn with many parameters and scaled between the score at the first point and
    that at the target, which are as likely anywhere, more data hurting by 5 points at most. The likelihood
    allows for the sampling error of the validation rows and 2 points of straying. `python -m
    benchmarks.pilot` counts how often the interval covers what full trainings reach.

    Args:
        points: scores in [0, 1], by growing numbers of rows.
        num_validation_rows: that each point was scored on.
    """
    rows = np.array([point.rows for point in points], np.float64)
    # A fall on the way is chance: what was reached at the end counts.
    scores = np.minimum.accumulate([point.score for point in points][::-1])[::-1]
    target = max(float(target_rows), rows[-1])
    errors = np.clip(scores * (1 - scores), 0.0025, None) / max(1, num_validation_rows) + _TOLERANCE**2
    # Beyond three standard errors from the first point's score nothing is likely.
    reached, first = (
        np.linspace(0, 1, _NUM_REACHED),
        scores[0] + np.sqrt(errors[0]) * np.linspace(-3, 3, _NUM_FIRST),
    )
    weights = np.zeros(_NUM_REACHED)
    # A curve's score at a point is `reached` to the share that it has come, and `first` to the rest.
    is_possible = (reached[:, None] >= first - _MAX_FALL).astype(float)
    for weight, shape in _shapes(rows[0], rows[-1], target):
        begin, end = shape(rows[:1])[0], shape(np.array([target]))[0]
        if begin - end < 1e-9:
            continue
        ahead = (shape(rows) - end) / (begin - end)
        curves = reached[:, None, None] * (1 - ahead) + first[:, None] * ahead
        weights += weight * (np.exp(-0.5 * ((curves - scores) ** 2 / errors).sum(-1)) * is_possible).sum(1)
    quantiles = _quantiles(reached, weights, float(np.sqrt(errors[-1])))
    if target == rows[-1]:
        # Nothing is left to predict but chance.
        quantiles = [
            float(np.clip(scores[-1] + shift * np.sqrt(errors[-1]), 0, 1))
            for shift in (0, -1.645, 1.645, 2.054)
        ]
    predicted, low, high, optimistic = quantiles
    return PredictedScore(
        points=list(points),
        target_rows=int(target),
        predicted=predicted,
        low=low,
        high=high,
        optimistic=optimistic,
    )


def pilot_check(
    prediction: PredictedScore,
    best_baseline: str,
    baseline_score: float,
    settings: PlanningSettings,
    break_even: float | None = None,
) -> CheckOutcome:
    """Return the gate on the predicted gain over the best baseline: red only where even the optimistic end is
    not enough, yellow below it.

    Args:
        break_even: gain that is worth the planned cost; None: it was not asked. It counts where
            `planning.if_not_justified` is block.
    """
    gain, hoped = prediction.predicted - baseline_score, prediction.optimistic + _DOUBT - baseline_score
    is_unpaid = break_even is not None and hoped <= break_even
    is_hopeless = hoped < settings.min_predicted_gain or (is_unpaid and settings.if_not_justified == "block")
    passed = not is_hopeless and gain >= settings.min_predicted_gain
    last = prediction.points[-1]
    description = (
        f"pilot on {last.rows:,} rows scores {last.score:.3f}; at {prediction.target_rows:,} rows"
        f" {prediction.predicted:.3f} is predicted ({prediction.low:.3f} to"
        f" {prediction.high:.3f}{'' if prediction.is_known else ', too wide to know'}); the best baseline"
        f" ({best_baseline}) has {baseline_score:.3f}: gain {gain:+.3f}, at best {hoped:+.3f}, required"
        f" {settings.min_predicted_gain:+.3f}"
    )
    if break_even is not None:
        description += f"; the planned cost is worth it from {break_even:+.4f}"
    if is_hopeless:
        description += "; use the baseline, deliver more labels, or lower planning.min_predicted_gain"
        description += ", or set planning.if_not_justified: warn" if is_unpaid else ""
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
        metadata={"predicted_score": prediction.predicted, "predicted_gain": gain, "hoped_gain": hoped},
    )


def _shapes(first: float, last: float, target: float) -> Iterator[tuple[float, Shape]]:
    """Yield falling functions of the number of rows with their weights, the same for the same numbers of
    rows.
    """
    rng = np.random.default_rng(0)

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    for _ in range(_DRAWS_A_SHAPE):
        power = between(0.05, 2)
        other = between(0.5, 2)
        bend = between(first, target)
        yield 1, lambda n, power=power: n**-power
        yield 1, lambda n: -np.log(n)
        scale = between(first, 3 * target)
        yield 1, lambda n, scale=scale: np.exp(-n / scale)
        middle, steepness = between(first / 2, last), rng.uniform(1, 6)
        yield 1, lambda n, middle=middle, steepness=steepness: 1 / (1 + (n / middle) ** steepness)
        late, steepness = between(last, 4 * target), rng.uniform(1.5, 6)
        yield _RARE, lambda n, late=late, steepness=steepness: 1 / (1 + (n / late) ** steepness)
        yield _RARE, lambda n, bend=bend, steepness=steepness: -np.expm1(-((n / bend) ** -steepness))
        yield (
            _RARE,
            lambda n, power=power, other=other, bend=bend: np.where(
                n < bend, n**-power, bend ** (-power * (1 - other)) * n ** (-power * other)
            ),
        )


def _quantiles(values: np.ndarray, weights: np.ndarray, noise: float) -> list[float]:
    """Return median, 5%, 95% and 98% of the score that a training reaches: the curve's, and chance."""
    spread = np.exp(-0.5 * ((values[:, None] - values) / noise) ** 2)
    density = (spread / spread.sum(0)) @ (weights / weights.sum())
    below = np.cumsum(density) / density.sum()
    return [float(np.interp(share, below, values)) for share in (0.5, 0.05, 0.95, 0.98)]
