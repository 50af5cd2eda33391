"""How far a champion scores below its release once there are newer rows with labels."""

from statistics import NormalDist
from typing import NamedTuple

#: Fewer new rows say nothing.
LEAST_ROWS = 20


class Released(NamedTuple):
    """A champion's score at its release, the lower end of its interval, its test rows, and the interval's
    two-sided confidence.
    """

    score: float
    low: float
    num_rows: int
    confidence: float = 0.95

    @property
    def error(self) -> float:
        """The standard error of the score; 0 = unknown."""
        return max(0.0, (self.score - self.low) / NormalDist().inv_cdf((1 + self.confidence) / 2))


class Drop(NamedTuple):
    """How far the score fell, and by how many standard errors; 0 = unknown."""

    drop: float
    num_errors: float


def score_drop(released: Released, newest: float, num_rows: int) -> Drop:
    """Return the score at release minus the score on the test rows that came since.

    Most test rows were there at the release, so a mean over all rows hides for months what production sends
    now. With few new rows, the drop is on all rows, without an error.

    Args:
        newest: score on the test rows of today, old and new.
        num_rows: test rows of today.
    """
    num_new = num_rows - released.num_rows
    if num_new < LEAST_ROWS:
        return Drop(released.score - newest, 0.0)
    drop = (released.score - newest) * (num_rows / num_new)
    error = released.error * (1 + released.num_rows / num_new) ** 0.5
    return Drop(drop, drop / error if error else 0.0)


def num_errors_below(released: Released, num_right: int, num: int) -> float:
    """Return by how many standard errors an accuracy of `num_right` of `num` documents is below that at
    release; 0 = unknown.
    """
    if num < LEAST_ROWS or not released.error:
        return 0.0
    accuracy = num_right / num
    # As if one more were right, and one wrong: ten of ten are no proof that all are.
    variance = (num_right + 1) * (num - num_right + 1) / (num + 2) ** 2 / num
    return (released.score - accuracy) / (released.error**2 + variance) ** 0.5
