"""How far a champion scores below its release once there are newer test rows."""

from __future__ import annotations

from typing import NamedTuple

#: Standard errors by which the new rows must score lower to count by themselves: somebody looks every day.
_CERTAIN = 2.5
#: Half-width of a 95% interval in standard errors.
_HALF_WIDTH = 1.96
#: Fewer new rows say nothing.
_LEAST_ROWS = 20


class Released(NamedTuple):
    """A champion's score at its release, the lower end of its 95% interval, and its test rows."""

    score: float
    low: float
    num_rows: int


class Drop(NamedTuple):
    """How far the score fell, and by how many standard errors the new test rows alone score lower."""

    drop: float
    num_errors: float


def score_drop(released: Released, newest: float, num_rows: int) -> Drop:
    """Return the score at release minus that of today: on all test rows, or on the new ones where those are certainly worse.

    Most of the rows are those of the release. What production sends now is in the new ones, and a mean of all hides it for months.

    Args:
        newest: score on the test rows of today, which are those of the release and new ones.
        num_rows: test rows of today.
    """
    drop, num_new = released.score - newest, num_rows - released.num_rows
    error = (released.score - released.low) / _HALF_WIDTH
    if num_new < _LEAST_ROWS or error <= 0:
        return Drop(drop, 0.0)
    on_new = drop * num_rows / num_new
    num_errors = on_new / (error * (1 + released.num_rows / num_new) ** 0.5)
    return Drop(on_new if num_errors > _CERTAIN else drop, num_errors)
