"""Estimates with the ends of their intervals, and the t statistics behind them."""

import math
from collections.abc import Mapping
from itertools import accumulate

import numpy as np
from pydantic import model_validator

from fullft_assets.record import Record

#: Probability with which a difference of the minimum detectable size is found.
POWER = 0.8
#: Confidence of the two-sided interval whose upper end is the quantile of `POWER`.
_POWER_CONFIDENCE = 2 * POWER - 1
#: Wider intervals on a log scale say as little, and their ends would not be numbers.
_MAX_LOG_REACH = 50.0


class Interval(Record):
    """An estimate with the ends of its interval."""

    estimate: float
    low: float
    high: float

    @model_validator(mode="after")
    def _is_an_interval(self) -> "Interval":
        if (
            not all(math.isfinite(end) for end in (self.estimate, self.low, self.high))
            or self.low > self.high
        ):
            raise ValueError(f"not an interval: {self.estimate} [{self.low}, {self.high}]")
        return self

    @property
    def half_width(self) -> float:
        """Half the distance between the ends."""
        return (self.high - self.low) / 2


class Gain(Interval):
    """A difference between two systems on the same rows, with what a decision needs of it.

    Attributes:
        standard_error: of the estimate, in the metric's units.
        degrees_of_freedom: of the t distribution that the interval is taken from.
        least_detectable: what could be detected of two systems that differ only where the better one is
            right. 0: not known.
    """

    standard_error: float
    degrees_of_freedom: float
    least_detectable: float = 0.0

    @classmethod
    def of(
        cls,
        estimate: float,
        standard_error: float,
        degrees_of_freedom: float,
        confidence: float,
        shifts: np.ndarray | None = None,
    ) -> "Gain":
        """Return the symmetric t interval of a difference.

        Where few groups differ, their spread says nothing about the error yet: no sign test of five groups
        can reach 95%. The interval then contains 0, and reaches at least as far as the largest difference
        that so many groups may fail to show.

        Args:
            shifts: by how much each group on which the systems differ moves the estimate [groups that
                differ]. None: not known; most groups differ.
        """
        half = t_quantile(confidence, degrees_of_freedom) * standard_error
        step = 0.0 if shifts is None else _step(shifts)
        if shifts is not None and len(shifts) < math.log2(2 / (1 - confidence)):
            half = max(half, _unseen(confidence, degrees_of_freedom + 1), abs(estimate))
            # One group may move the estimate by as much as it weighs, whatever the few that differ did.
            step = max(step, 1 / (degrees_of_freedom + 1))
        return cls(
            estimate=estimate,
            low=estimate - half,
            high=estimate + half,
            standard_error=standard_error,
            degrees_of_freedom=degrees_of_freedom,
            least_detectable=_detection_quantile(confidence, degrees_of_freedom) ** 2 * step,
        )

    def p_value_against(self, value: float) -> float:
        """Return the two-sided p-value of the hypothesis that the difference has this value."""
        from scipy.special import stdtr

        distance = abs(self.estimate - value)
        return float(
            2 * stdtr(self.degrees_of_freedom, -distance / self.standard_error)
            if self.standard_error
            else not distance
        )

    @property
    def detectable(self) -> float:
        """The smallest true difference that is found with a probability of 0.8: the minimum detectable
        difference (MDD).

        With a true difference of d, more groups differ than here, and they add d times a group's step to the
        variance v. The MDD is the d with d^2 = q^2 (v + d step), where q is the sum of the quantiles of
        confidence and power. It is at most 1, since scores are between 0 and 1.
        """
        least = self.least_detectable
        return min(1.0, (least + math.sqrt(least**2 + 4 * self._reach**2)) / 2)

    @property
    def _reach(self) -> float:
        """What would be detectable if a better model differed on no more groups: q sqrt(v)."""
        return self.half_width + t_quantile(_POWER_CONFIDENCE, self.degrees_of_freedom) * self.standard_error

    def times_needed(self, difference: float) -> float:
        """Return how many times as many groups would find a difference with a probability of 0.8."""
        return (self._reach / difference) ** 2 + self.least_detectable / difference

    def excludes_loss(self, margin: float, confidence: float) -> bool:
        """Return whether the gain is above minus a margin: non-inferiority at that margin.

        The standard error is that of two systems which differ by the margin. The standard error of two
        similar systems is smaller, and would accept losses that few groups cause.
        """
        # d^2 = q^2 (v + d step) at the margin instead of at d, see `detectable`.
        spread = math.sqrt(self._reach**2 + self.least_detectable * margin) / _detection_quantile(
            confidence, self.degrees_of_freedom
        )
        return (
            self.estimate - max(self.half_width, t_quantile(confidence, self.degrees_of_freedom) * spread)
            > -margin
        )

    def at_look(self, look: int, confidence: float) -> "Gain":
        """Return the gain with the interval of the n-th candidate on the same test rows, which may err an
        n-th as often as the first: of thirty candidates that are no better one is promoted in a tenth of
        cases at most (.025 (1 + 1/2 + ... + 1/30) = .1).

        Args:
            confidence: of the first one's interval.
        """
        wider = t_quantile(1 - (1 - confidence) / look, self.degrees_of_freedom) / t_quantile(
            confidence, self.degrees_of_freedom
        )
        ends = {
            name: getattr(self, name) + (wider - 1) * (getattr(self, name) - self.estimate)
            for name in ("low", "high")
        }
        return self.model_copy(update=ends)

    def with_seed_noise(self, variance: float, degrees_of_freedom: float, confidence: float) -> "Gain":
        """Return the gain as a claim on two recipes instead of two files: the variance between seeds is
        added.

        Degrees of freedom by Satterthwaite 1946, An approximate distribution of estimates of variance
        components.

        Args:
            variance: of the difference, that seeds alone explain.
            degrees_of_freedom: of that variance.
        """
        rows = self.standard_error**2
        if not variance or not rows + variance:
            return self
        freedom = (rows + variance) ** 2 / (
            rows**2 / self.degrees_of_freedom + variance**2 / degrees_of_freedom
        )
        claim = Gain.of(self.estimate, math.sqrt(rows + variance), freedom, confidence)
        # Recipes are never surer to differ than the models.
        half = max(claim.half_width, self.half_width)
        return claim.model_copy(
            update={
                "low": self.estimate - half,
                "high": self.estimate + half,
                "least_detectable": self.least_detectable,
            }
        )


def t_quantile(confidence: float, degrees_of_freedom: float) -> float:
    """Return how many standard errors a two-sided t interval reaches to each side."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, (1 + confidence) / 2))


def _detection_quantile(confidence: float, degrees_of_freedom: float) -> float:
    """Return how many standard errors a difference must have to be found with a probability of `POWER`."""
    return t_quantile(confidence, degrees_of_freedom) + t_quantile(_POWER_CONFIDENCE, degrees_of_freedom)


def _step(shifts: np.ndarray) -> float:
    """Return by how much a further group that differs moves a difference, the groups drawn by how much they
    move it.
    """
    size = float(np.abs(shifts).sum())
    return float((shifts**2).sum()) / size if size else 0.0


def effective_number(masses: np.ndarray) -> float:
    """Return how many groups of equal mass tell as much as these [groups]: (sum m)^2 / sum m^2 (Kish
    1965).
    """
    total = float((masses**2).sum())
    return float(masses.sum()) ** 2 / total if total else 0.0


def bounded_interval(
    estimate: float,
    standard_error: float,
    degrees_of_freedom: float,
    confidence: float,
    bounds: tuple[float | None, float | None],
) -> Interval:
    """Return the t interval of a score on the scale on which it has no bounds: logit, log, or its own.

    At a bound (all right, all wrong) nothing varies; the exact binomial limit of as many groups is the other
    end then.

    Args:
        bounds: smallest and largest value of the score; None: there is none.
    """
    from scipy.special import expit, logit

    low, high = bounds
    reach = t_quantile(confidence, degrees_of_freedom) * standard_error
    if low is None:
        return Interval(estimate=estimate, low=estimate - reach, high=estimate + reach)
    if high is None:
        above = estimate - low
        factor = math.exp(min(reach / above, _MAX_LOG_REACH)) if above > 0 else 1.0
        return Interval(estimate=estimate, low=low + above / factor, high=low + above * factor)
    width = high - low
    share = min(max((estimate - low) / width, 0.0), 1.0)
    unseen = _unseen(confidence, degrees_of_freedom + 1)
    if share * (1 - share) < 1e-12:
        ends = (0.0, unseen) if share < 0.5 else (1 - unseen, 1.0)
    else:
        reach = reach / width / (share * (1 - share))
        ends = (expit(logit(share) - reach), expit(logit(share) + reach))
    return Interval(estimate=estimate, low=low + width * ends[0], high=low + width * ends[1])


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the p-values corrected for their number (Holm 1979, A simple sequentially rejective multiple
    test procedure).
    """
    names = sorted(p_values, key=lambda name: p_values[name])
    scaled_values = (
        min(1.0, (len(names) - position) * p_values[name]) for position, name in enumerate(names)
    )
    # A later p-value is never smaller than an earlier one.
    return dict(zip(names, accumulate(scaled_values, max), strict=True))


def _unseen(confidence: float, num_groups: float) -> float:
    """Return the largest share of cases of which this number of groups may show none (Clopper and Pearson
    1934).
    """
    return 1 - ((1 - confidence) / 2) ** (1 / max(num_groups, 1.0))
