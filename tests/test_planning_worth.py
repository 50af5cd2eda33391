"""Whether a gain is worth its cost, and what follows from the answer."""

from typing import Any

import pytest

from fullft_assets.evaluation.verdict import check_outcomes, check_specs, verdict
from fullft_assets.planning.worth import Worth, asked, judge_worth, turning_points
from fullft_assets.settings import ReleaseSettings, UseCaseSettings
from tests.test_release import evaluated, gained

pytestmark = pytest.mark.quick

#: Ten hours at 3 USD, and three retrainings as long: 120 USD.
TEN_HOURS = 36_000.0


def use_case(**planning: Any) -> UseCaseSettings:
    return UseCaseSettings.model_validate(
        {
            "base_model": "m",
            "documents": {"path": "d"},
            "examples": {"label": "label"},
            "planning": {"hourly_usd": 3.0, **planning},
            "retraining": {"max_age_days": 365 / 3},
        }
    )


def judged(low: float, gain: float, high: float, **planning: Any) -> Worth:
    return judge_worth(low, gain, high, TEN_HOURS, use_case(**planning))


@pytest.mark.parametrize(
    ("low", "high", "usd_per_point", "answer"),
    [
        (0.03, 0.07, 50.0, "yes"),
        (0.03, 0.07, 30.0, "inconclusive"),
        (0.03, 0.07, 10.0, "no"),
        (-0.02, 0.07, 1e6, "inconclusive"),
        (-0.05, -0.01, 1e6, "no"),
    ],
)
def test_the_interval_is_weighed_against_the_cost(
    low: float, high: float, usd_per_point: float, answer: str
) -> None:
    found = judged(low, (low + high) / 2, high, usd_per_point=usd_per_point)
    assert (found.answer, found.cost_usd) == (answer, 120.0)
    assert found.break_even == pytest.approx(1.2 / usd_per_point)
    assert f"it breaks even at {120 / usd_per_point:+.2f} points" in found.sentence
    assert "cost 120.00 USD" in found.sentence


def test_without_a_value_it_is_not_asked() -> None:
    found = judged(0.03, 0.05, 0.07)
    assert not found.is_asked and found.sentence.endswith("set planning.usd_per_point.")
    assert asked(use_case()) == {} != asked(use_case(usd_per_point=5))


@pytest.mark.parametrize(
    ("low", "high", "price", "rows"),
    [
        (0.03, 0.07, "not worth it below 17.14 USD a year, worth it above 40.00 USD", "fewer than 800;"),
        (-0.06, 0.02, "not worth it below 60.00 USD a year, worth it for certain at no", "at least 1,724: "),
        (-0.6, -0.2, "unknown: nothing was gained", "unknown"),
    ],
)
def test_the_price_and_the_rows_at_which_the_answer_turns(
    low: float, high: float, price: str, rows: str
) -> None:
    gain = (low + high) / 2
    values = dict(turning_points(low, gain, high, judged(low, gain, high), 800))
    assert values["price of a point at which this turns"].startswith(price)
    assert values["training rows at which it turns"].startswith(rows)


def test_nothing_gained_is_not_worth_a_free_training() -> None:
    assert judged(-0.02, -0.01, 0.0, usd_per_point=100, hourly_usd=0).answer == "no"
    assert "(planning.hourly_usd is 0)" in judged(0.01, 0.02, 0.03, usd_per_point=100, hourly_usd=0).sentence


@pytest.mark.parametrize(("usd_per_point", "is_worth_it"), [(10.0, False), (30.0, False), (50.0, True)])
def test_a_model_that_is_not_worth_it_is_promoted_with_a_warning(
    usd_per_point: float, is_worth_it: bool
) -> None:
    evaluation = evaluated(gain=gained(0.05, 0.03, 0.07))
    worth = judged(0.03, 0.05, 0.07, usd_per_point=usd_per_point)
    decision = verdict(evaluation, ReleaseSettings())
    outcomes = check_outcomes(decision, worth, use_case(usd_per_point=usd_per_point))
    assert decision.answer == "promote"
    (outcome,) = [outcome for outcome in outcomes if outcome.name == "full_finetuning_is_justified"]
    assert (outcome.passed, outcome.severity) == (is_worth_it, "warn")


@pytest.mark.parametrize("general", [None, {"path": "g"}])
def test_a_check_that_cannot_apply_is_not_defined(general: dict[str, str] | None) -> None:
    evaluation, worth = evaluated(), judged(0.03, 0.05, 0.07)
    settings = UseCaseSettings.model_validate({**use_case().model_dump(), "snapshot": {"general": general}})
    names = {
        outcome.name for outcome in check_outcomes(verdict(evaluation, ReleaseSettings()), worth, settings)
    }
    assert names == {spec.name for spec in check_specs(settings)}
    assert "full_finetuning_is_justified" not in names
    assert ("forgetting_is_within_budget" in names) == (general is not None)
