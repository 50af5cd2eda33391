"""score_drop: what the newest test rows say of a champion, though most of them are those of its release."""

import pytest

from fullft_assets.evaluation.drop import Drop, Released, num_errors_below, score_drop

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


def test_few_new_rows_say_nothing_by_themselves() -> None:
    assert _after(19, 5) == (pytest.approx(0.85 - 685 / 819), 0) and _after(0, 0) == (pytest.approx(0), 0)


def test_it_says_by_how_many_standard_errors() -> None:
    # Half of the interval is 1.96 errors of 800 rows; 100 rows have three times as much, with those of the
    # release.
    assert _after(100, 78) == (pytest.approx(0.07), pytest.approx(0.07 / (RELEASED.error * 3)))
    assert _after(100, 95).num_errors < 0


def test_a_test_set_that_shrank_or_a_release_without_an_interval_has_no_error() -> None:
    assert score_drop(RELEASED, 0.7, 500) == (pytest.approx(0.15), 0)
    assert score_drop(RELEASED._replace(low=0.85), 0.7, 1_600) == (pytest.approx(0.3), 0)


def test_an_accuracy_on_other_documents_is_below_by_its_own_error_and_that_of_the_release() -> None:
    error = (RELEASED.error**2 + 76 * 26 / 102**2 / 100) ** 0.5
    assert num_errors_below(RELEASED, 75, 100) == pytest.approx(0.1 / error)
    assert num_errors_below(RELEASED, 90, 100) < 0 < num_errors_below(RELEASED, 0, 20)
    assert num_errors_below(RELEASED, 0, 19) == num_errors_below(RELEASED._replace(low=0.9), 75, 100) == 0


def test_the_error_is_that_of_an_interval_of_any_confidence() -> None:
    assert RELEASED.error == pytest.approx(0.025 / 1.96, rel=1e-3)
    assert RELEASED._replace(confidence=0.8).error == pytest.approx(0.025 / 1.2816, rel=1e-3)
