"""Whether a gain is worth its cost, and what follows from the answer."""

from typing import Any

import pytest

from fullft_assets.evaluation.verdict import check_outcomes, check_specs, verdict
from fullft_assets.planning import Point, pilot_check, predict_score
from fullft_assets.planning.worth import Worth, asked, judge_worth
from fullft_assets.settings import PlanningSettings, ReleaseSettings, UseCaseSettings
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
    assert not found.is_asked and not found.blocks
    assert found.sentence == "Whether that is worth its cost was not asked: set planning.usd_per_point."
    assert asked(use_case()) == {} != asked(use_case(usd_per_point=5))


def test_nothing_gained_is_not_worth_a_free_training() -> None:
    assert judged(-0.02, -0.01, 0.0, usd_per_point=100, hourly_usd=0).answer == "no"
    assert "(planning.hourly_usd is 0)" in judged(0.01, 0.02, 0.03, usd_per_point=100, hourly_usd=0).sentence


@pytest.mark.parametrize(
    ("policy", "usd_per_point", "answer"),
    [
        ("warn", 10.0, "promote"),
        ("block", 10.0, "keep"),
        ("block", 30.0, "inconclusive"),
        ("block", 50.0, "promote"),
    ],
)
def test_a_model_that_is_not_worth_it_is_kept_back_only_where_asked(
    policy: str, usd_per_point: float, answer: str
) -> None:
    evaluation = evaluated(gain=gained(0.05, 0.03, 0.07))
    worth = judged(0.03, 0.05, 0.07, usd_per_point=usd_per_point, if_not_justified=policy)
    found = verdict(evaluation, ReleaseSettings(), worth=worth)
    assert found.answer == answer
    assert (worth.sentence.rstrip(".") in found.sentence) == (answer != "promote")
    made = [
        outcome
        for outcome in check_outcomes(evaluation, found, worth)
        if outcome.name == "full_finetuning_is_justified"
    ]
    assert [(outcome.passed, outcome.severity) for outcome in made] == [(usd_per_point == 50.0, "warn")]
    names = {
        spec.name
        for spec in check_specs(
            ReleaseSettings(), use_case(usd_per_point=usd_per_point).planning, has_row_labels=False
        )
    }
    assert names == {outcome.name for outcome in check_outcomes(evaluation, found, worth)}


def test_not_asked_there_is_no_such_check() -> None:
    evaluation, worth = evaluated(), judged(0.03, 0.05, 0.07)
    made = check_outcomes(evaluation, verdict(evaluation, ReleaseSettings(), worth=worth), worth)
    assert {outcome.name for outcome in made} == {
        spec.name for spec in check_specs(ReleaseSettings(), PlanningSettings(), has_row_labels=False)
    }


@pytest.mark.parametrize(
    ("policy", "break_even", "passed"), [("block", 0.9, False), ("warn", 0.9, True), ("block", 0.01, True)]
)
def test_the_pilot_refuses_what_cannot_pay_even_at_best(policy: str, break_even: float, passed: bool) -> None:
    prediction = predict_score(
        [Point(rows=100, score=0.6), Point(rows=200, score=0.7), Point(rows=400, score=0.75)], 800, 500
    )
    settings = PlanningSettings.model_validate({"if_not_justified": policy, "usd_per_point": 1.0})
    check = pilot_check(prediction, "tfidf", 0.5, settings, break_even)
    assert check.passed is passed
    assert f"the planned cost is worth it from {break_even:+.4f}" in check.description
    assert ("set planning.if_not_justified: warn" in check.description) is not passed
