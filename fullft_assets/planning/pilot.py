"""The pilot: a small training whose learning curve predicts the score of the full one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from fullft_assets.errors import SettingsError
from fullft_assets.settings import PlanningSettings
from fullft_assets.store import CheckOutcome

#: Largest exponent of a learning curve: what theory allows and more than was ever measured (Hestness et al. 2017, sections 3 and 4).
_MAX_EXPONENT = 0.5


class Point(BaseModel):
    """Validation score after training on a number of rows."""

    model_config = ConfigDict(frozen=True)

    rows: int
    score: float


class PredictedScore(BaseModel):
    """The score that the pilot's learning curve predicts at the planned number of rows, with its band."""

    model_config = ConfigDict(frozen=True)

    points: list[Point]
    target_rows: int
    predicted: float
    low: float
    high: float


def pilot_rows(num_rows: int, epochs: float, share: float, batch_size: int) -> list[int]:
    """Return the growing numbers of rows after which the pilot is scored; the last one is its full budget.

    The pilot is one run over nested, growing subsets, each row read once, so that `share` of the
    planned row visits buys the longest possible learning curve. It takes at least two batches, as a
    curve has two points.
    """
    if num_rows < 2 * batch_size:
        raise SettingsError(
            f"training.batch_size: {num_rows:,} training rows are fewer than two batches of {batch_size:,}, so a pilot has no "
            f"learning curve; lower it to {max(1, num_rows // 8):,}, or deliver more"
        )
    budget = max(2 * batch_size, min(num_rows, int(num_rows * epochs * share)) // batch_size * batch_size)
    return sorted({max(batch_size, budget * part // 8 // batch_size * batch_size) for part in (1, 2, 4, 8)})


def extrapolate(points: Sequence[Point], target_rows: int) -> PredictedScore:
    """Extend a learning curve to `target_rows` by a power law of the error.

    error(n) = a * n^-b (Hestness et al. 2017, arXiv 1712.00409), fitted by least squares on logarithms
    over the later half of the curve, where the transient of the first steps is over, with b >= 0: more data of
    the same kind does not hurt, and b <= 0.5: part of the gain at the last point comes from its lower learning rate. The band takes b
    from half to one and a half times the fit.
    """
    if len(points) < 2:
        raise ValueError(f"a learning curve needs two points, got {len(points)}; raise planning.pilot_share")
    late = list(points)[-max(2, math.ceil(len(points) / 2)) :]
    x = np.log([point.rows for point in late])
    y = np.log([max(1e-4, 1 - point.score) for point in late])
    exponent = min(_MAX_EXPONENT, max(0.0, -float(np.polyfit(x, y, 1)[0])))
    last = points[-1]
    growth = math.log(max(target_rows, last.rows) / last.rows)
    low, predicted, high = (1 - (1 - last.score) * math.exp(-exponent * factor * growth) for factor in (0.5, 1.0, 1.5))
    return PredictedScore(points=list(points), target_rows=target_rows, predicted=predicted, low=low, high=high)


def pilot_check(prediction: PredictedScore, best_baseline: str, baseline_score: float, settings: PlanningSettings) -> CheckOutcome:
    """Return the gate on the predicted gain over the best baseline."""
    gain = prediction.predicted - baseline_score
    passed = gain >= settings.min_predicted_gain
    last = prediction.points[-1]
    description = (
        f"pilot on {last.rows:,} rows scores {last.score:.3f} and predicts {prediction.predicted:.3f} at "
        f"{prediction.target_rows:,}; the best baseline ({best_baseline}) has {baseline_score:.3f}: gain {gain:+.3f}, "
        f"required {settings.min_predicted_gain:+.3f}"
    )
    fix = "; use the baseline, deliver more labels, or lower planning.min_predicted_gain"
    return CheckOutcome(
        name="pilot_predicts_gain",
        passed=passed,
        description=description if passed else description + fix,
        metadata={"predicted_score": prediction.predicted, "predicted_gain": gain},
    )
