"""Is full fine-tuning worth its cost: what a gain over the best baseline is worth in a year, against training
and a year of retraining.
"""

from typing import Any, Literal

from fullft_assets.planning.pilot import MAX_GROWTH
from fullft_assets.planning.targets import retrains_a_year
from fullft_assets.record import StrictRecord
from fullft_assets.settings import UseCaseSettings

#: Points of a metric between 0 and 1.
_POINTS = 100
#: A gain that is missing, in the metric's units, beyond which a forecast says nothing.
_FARTHEST = 0.1
NOT_ASKED = "Whether that is worth its cost was not asked: set planning.usd_per_point"


class Worth(StrictRecord):
    """The answer, and what it rests on.

    Attributes:
        answer: yes: even the lower end of the gain is worth more than the cost; no: not even the upper end
            is.
        cost_usd: of training, and of a year of retraining.
        break_even: gain in the metric's units that is worth the cost; None where it was not asked.
    """

    answer: Literal["yes", "no", "inconclusive", "not_asked"]
    cost_usd: float
    break_even: float | None
    sentence: str

    @property
    def is_asked(self) -> bool:
        """Whether the user said what a point is worth."""
        return self.answer != "not_asked"


def judge_worth(low: float, gain: float, high: float, seconds: float, settings: UseCaseSettings) -> Worth:
    """Return whether a gain over the best baseline is worth its cost.

    Args:
        low, gain, high: of the primary metric, with the ends of its interval.
        seconds: of a pilot and a training; each retraining takes as long again.
    """
    planning = settings.planning
    retrains = retrains_a_year(settings)
    cost = seconds / 3600 * planning.hourly_usd * (1 + retrains)
    if planning.usd_per_point is None:
        return Worth(answer="not_asked", cost_usd=cost, break_even=None, sentence=f"{NOT_ASKED}.")
    usd_per_unit = _POINTS * planning.usd_per_point
    lowest = low * usd_per_unit
    highest = high * usd_per_unit
    break_even = cost / planning.usd_per_point
    # A model that costs nothing is still worth nothing if it gains nothing.
    answer = "yes" if lowest > cost else "no" if highest <= cost else "inconclusive"
    opening = {
        "yes": "Worth its cost",
        "no": "Not worth its cost",
        "inconclusive": (
            "Whether it is worth its cost is open, as the interval of its gain contains the break-even"
        ),
    }[answer]
    free = "" if planning.hourly_usd else " (planning.hourly_usd is 0)"
    sentence = (
        f"{opening}: a gain of {gain * _POINTS:+.1f} points ({low * _POINTS:+.1f} to {high * _POINTS:+.1f})"
        f" is worth {gain * usd_per_unit:,.2f} USD a year ({lowest:,.2f} to {highest:,.2f}) at"
        f" {planning.usd_per_point:g} USD a point; training and a year of {retrains:.1f} retrainings cost"
        f" {cost:,.2f} USD{free}; it breaks even at {break_even:+.2f} points."
    )
    return Worth(answer=answer, cost_usd=cost, break_even=break_even / _POINTS, sentence=sentence)


def turning_points(
    low: float, gain: float, high: float, worth: Worth, num_rows: int
) -> list[tuple[str, str]]:
    """Return the price of a point, and the number of training rows, at which the answer turns, as (name,
    value) rows.

    Args:
        low, gain, high: over the best baseline, with the ends of its interval.
    """
    price = "unknown: nothing was gained, or the training has no price (planning.hourly_usd)"
    if worth.cost_usd and high > 0:
        price = f"not worth it below {worth.cost_usd / (_POINTS * high):,.2f} USD a year, "
        price += (
            f"worth it above {worth.cost_usd / (_POINTS * low):,.2f} USD"
            if low > 0
            else "worth it for certain at no price, as nothing may be gained"
        )
    missing_gain = (worth.break_even or 0.0) - gain
    rows = f"fewer than {num_rows:,}; how many is unknown" if missing_gain <= 0 else "unknown"
    if 0 < missing_gain <= _FARTHEST:
        rows = (
            f"at least {num_rows * 10 ** (missing_gain / MAX_GROWTH):,.0f}: with ten times the rows a gain"
            f" was seen to grow by {MAX_GROWTH * _POINTS:.0f} points at most"
        )
    return [("price of a point at which this turns", price), ("training rows at which it turns", rows)]


def asked(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that the answer depends on, for the key of an evaluation."""
    if settings.planning.usd_per_point is None:
        return {}
    planning = settings.planning.model_dump(include={"usd_per_point", "hourly_usd"}, mode="json")
    return {**planning, "retrains_a_year": retrains_a_year(settings)}
