"""Bounds of a share that hold at every look at once, however often and whenever somebody looks.

The one-sided beta-binomial mixture of Howard, Ramdas, McAuliffe and Sekhon 2021, "Time-uniform,
nonparametric, nonasymptotic confidence sequences" (Annals of Statistics 49): for a true share of at least p,
the likelihood ratio of shares below p, mixed by a beta distribution with the mean p that is cut off there, is
a supermartingale that begins at 1, so the chance that it ever reaches 1 / error is at most `error` (Ville
1939). Only counts enter: in which order the outcomes came changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: Weight of the mixing distribution in observations: the bounds are tight from some dozens to some thousands
#: of outcomes.
_WEIGHT = 20.0


def log_evidence_below(num_right: Any, num: Any, share: Any) -> Any:
    """Return the logarithm of the evidence that the true share is below `share`, of counts of any shape.

    Args:
        num_right: outcomes that were right.
        num: all outcomes.
        share: strictly between 0 and 1.
    """
    from scipy.special import betainc, betaln, xlog1py, xlogy

    share = np.asarray(share, np.float64)
    right, wrong = np.asarray(num_right, np.float64), np.asarray(num, np.float64) - num_right
    a, b = _WEIGHT * share, _WEIGHT * (1 - share)
    with np.errstate(divide="ignore"):
        mixed = (
            betaln(a + right, b + wrong)
            - betaln(a, b)
            + np.log(betainc(a + right, b + wrong, share))
            - np.log(betainc(a, b, share))
        )
    return mixed - xlogy(right, share) - xlog1py(wrong, -share)


def upper_bound(num_right: int, num: int, error: float) -> float:
    """Return the upper bound of the true share that is wrong at any look with a chance of at most `error`; 1
    without outcomes.
    """
    from scipy.optimize import brentq

    if not 0 <= num_right <= num:
        raise ValueError(f"{num_right} of {num} is no share")
    limit, highest = -np.log(error), 1 - 1e-9
    lowest = max(num_right / num if num else 0.0, 1e-9)
    if lowest >= highest or log_evidence_below(num_right, num, highest) < limit:
        return 1.0
    root: Any = brentq(
        lambda share: float(log_evidence_below(num_right, num, share)) - limit, lowest, highest
    )
    return float(root)


def lower_bound(num_right: int, num: int, error: float) -> float:
    """Return the lower bound in the same sense; 0 without outcomes."""
    return 1.0 - upper_bound(num - num_right, num, error)
