"""score_drop: what the newest test rows say of a champion, though most of them are those of its release."""

from __future__ import annotations

import pytest

from fullft_assets.evaluation.drop import Drop, Released, score_drop

pytestmark = pytest.mark.quick

#: 800 rows, of which 680 were right.
RELEASED = Released(score=0.85, low=0.825, num_rows=800)


def _after(num_new: int, num_right: int) -> Drop:
    num_rows = RELEASED.num_rows + num_new
    return score_drop(RELEASED, (680 + num_right) / num_rows, num_rows)


def test_a_fall_on_the_new_rows_is_not_hidden_by_those_of_the_release() -> None:
    assert _after(100, 60).drop == pytest.approx(0.25)
    # The mean of all rows fell by less than three points.
    assert RELEASED.score - 740 / 900 < 0.03


@pytest.mark.parametrize(("num_new", "num_right"), [(100, 78), (19, 5), (100, 85), (100, 95), (0, 0)])
def test_what_may_be_chance_counts_as_it_is_among_all_rows(num_new: int, num_right: int) -> None:
    assert _after(num_new, num_right).drop == pytest.approx(0.85 - (680 + num_right) / (800 + num_new))


def test_it_says_by_how_many_standard_errors() -> None:
    # Half of the interval is 1.96 errors of 800 rows; 100 rows have three times as much, with those of the release.
    assert _after(100, 78).num_errors == pytest.approx(0.07 / (0.025 / 1.96 * 3))
    assert _after(100, 95).num_errors < 0 and _after(19, 5).num_errors == 0


def test_a_test_set_that_shrank_or_a_release_without_an_interval_is_compared_as_it_is() -> None:
    assert score_drop(RELEASED, 0.7, 500) == (pytest.approx(0.15), 0)
    assert score_drop(RELEASED._replace(low=0.85), 0.7, 1_000) == (pytest.approx(0.15), 0)
