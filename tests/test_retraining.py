"""retraining: each rule, each obstacle, and years of operation simulated in milliseconds."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st
from pydantic import ValidationError

from benchmarks.retraining_year import WORLDS, World, Year
from fullft_assets.retraining import (
    DAY_SECONDS,
    Attempt,
    Decision,
    RunInFlight,
    Signals,
    State,
    Window,
    decide,
    drift_began,
    drift_examples,
    raised_after,
    retrain_evidence,
)
from fullft_assets.retraining.history import score_fell
from fullft_assets.settings import RetrainingSettings

pytestmark = pytest.mark.quick

SETTINGS = RetrainingSettings(min_new_examples=1_000)
NOW = 1_000 * DAY_SECONDS
ROWS = 5_000
CALM = Signals(
    now=NOW,
    month_start=NOW - 9 * DAY_SECONDS,
    num_examples=ROWS,
    data_version="v1",
    score_drop=0.0,
    estimated_hours=1.0,
)
RUNNING = State(
    trained_on="v1",
    num_trained=ROWS,
    trained_at=NOW - 10 * DAY_SECONDS,
    champion_since=NOW - 10 * DAY_SECONDS,
)


#: Told that the month's budget holds a retrain back.
_TOLD = RUNNING.model_copy(update={"raised": {"month's budget": NOW}})


def _signals(**changes: object) -> Signals:
    if "new" in changes:
        changes = {"num_examples": ROWS + changes.pop("new"), "data_version": "v2", **changes}
    if changes.get("score_drop"):  # by more than chance, where a test does not say otherwise
        changes = {"num_drop_errors": 2.5, **changes}
    return Signals.model_validate({**CALM.model_dump(), **changes})


def _windows(*statuses: str, at: float = NOW, apart: float = 3_600.0) -> dict[str, object]:
    first = at - apart * (len(statuses) - 1)
    return {
        "windows": [
            Window(key=f"w{i}", status=status, at=first + apart * i) for i, status in enumerate(statuses)
        ]
    }


def _decide(state: State = RUNNING, settings: RetrainingSettings = SETTINGS, **changes: object) -> Decision:
    return decide(state, _signals(**changes), settings)


def _after(*days_ago: float, state: State = RUNNING, **changes: object) -> State:
    """Return a state with attempts; each was launched for what is trained on now, unless changed."""
    values = {"hours": 1.0, "num_examples": ROWS, "evidence": "other", **changes}
    attempts = [
        Attempt.model_validate({"started_at": NOW - days * DAY_SECONDS, **values}) for days in days_ago
    ]
    return state.model_copy(update={"attempts": [*state.attempts, *attempts]})


class TestRules:
    def test_nothing_happening_waits_and_says_why_for_each_rule(self) -> None:
        decision = _decide()
        assert (decision.action, decision.incidents) == ("wait", [])
        parts = ["min_new_examples = 1,000", "2 of the last 3", "max_score_drop = 0.03", "max_age_days = 180"]
        assert all(part in reason for reason, part in zip(decision.reasons, parts, strict=True))

    @pytest.mark.parametrize(
        ("state", "count", "action"),
        [
            (RUNNING, ROWS + 999, "wait"),
            (RUNNING, ROWS + 1_000, "retrain"),
            # It must have grown by a share as well.
            (RUNNING.model_copy(update={"num_trained": 10_000}), 11_999, "wait"),
            (RUNNING.model_copy(update={"num_trained": 10_000}), 12_000, "retrain"),
            # The first training needs no champion.
            (State(), 999, "wait"),
            (State(), 1_000, "retrain"),
        ],
    )
    def test_a_snapshot_that_has_grown_retrains(self, state: State, count: int, action: str) -> None:
        assert _decide(state, num_examples=count, score_drop=None).action == action

    def test_delivered_examples_are_counted_by_a_snapshot_before_anything_is_trained(self) -> None:
        uncounted = _decide(num_uncounted=2_000)
        assert (uncounted.action, uncounted.count_first) == ("wait", True)
        assert not _decide(num_uncounted=900).count_first
        assert not _decide(new=1_000, num_uncounted=900).count_first
        assert _decide(num_uncounted=100, score_drop=0.1).count_first

    @pytest.mark.parametrize(
        ("statuses", "action"),
        [
            (["confirmed"], "wait"),
            (["confirmed", "ok", "ok"], "wait"),
            (["confirmed", "confirmed", "ok", "ok"], "wait"),
            (["alarm", "alarm", "alarm"], "wait"),
            (["ok", "confirmed", "confirmed"], "retrain"),
            (["confirmed", "ok", "confirmed"], "retrain"),
            (["confirmed", "insufficient_data", "feed_broken", "confirmed", "warming_up"], "retrain"),
        ],
    )
    def test_drift_counts_if_two_of_the_last_three_verdicts_confirm_it(
        self, statuses: list[str], action: str
    ) -> None:
        assert _decide(new=500, num_labels_since_drift=500, **_windows(*statuses)).action == action

    @pytest.mark.parametrize(
        ("new", "labels", "action"),
        [(500, 100, "retrain"), (500, 99, "request_labels"), (99, 500, "request_labels")],
    )
    @pytest.mark.parametrize("shown", ["num_drop_errors", "num_live_errors"])
    def test_drift_retrains_with_labels_that_came_since_it_began(
        self, new: int, labels: int, action: str, shown: str
    ) -> None:
        assert (
            _decide(
                new=new, num_labels_since_drift=labels, **{shown: 1.65}, **_windows("confirmed", "confirmed")
            ).action
            == action
        )

    @pytest.mark.parametrize(
        ("labels", "action"), [(99, "request_labels"), (100, "wait"), (299, "wait"), (300, "retrain")]
    )
    @pytest.mark.parametrize(
        ("live", "said"),
        [
            ({}, "live_quality has not evaluated the"),
            ({"has_live_quality": False}, "not shown to be worse on newer test rows"),
            ({"has_live_quality": False, "score_drop": None}, "not been evaluated on newer test rows yet"),
        ],
    )
    def test_a_drift_that_labels_do_not_confirm_needs_three_times_as_many(
        self, labels: int, action: str, live: dict[str, object], said: str
    ) -> None:
        drift = {"new": 500, "num_labels_since_drift": labels, **_windows("confirmed", "confirmed")}
        decision = _decide(num_drop_errors=1.6, **drift, **live)
        assert decision.action == action and (said in str(decision.reasons)) == (100 <= labels < 300)

    @pytest.mark.parametrize(
        ("on_drift", "labels", "action", "learned"),
        [
            ("labels_exist", 99, "request_labels", 99),
            ("labels_exist", 100, "retrain", 100),
            ("labels_confirm", 100, "wait", 0),
            ("report", 99, "wait", 0),
            ("report", 500, "wait", 0),
        ],
    )
    def test_what_a_drift_starts_is_a_setting(
        self, on_drift: str, labels: int, action: str, learned: int
    ) -> None:
        settings = RetrainingSettings(min_new_examples=1_000, on_drift=on_drift)
        drift = {"new": 500, "num_labels_since_drift": labels, **_windows("confirmed", "confirmed")}
        decision = _decide(settings=settings, **drift)
        assert (decision.action, drift_examples(RUNNING, _signals(**drift), settings)) == (action, learned)
        assert any("on_drift" in reason for reason in decision.reasons) == (on_drift == "report")

    @pytest.mark.parametrize(
        ("evaluated", "action", "said"),
        [
            (None, "wait", "but live_quality has not evaluated the 130 labelled examples yet"),
            (
                19,
                "request_labels",
                (
                    "but only 19 of 130 labelled examples are of its windows and were not chosen as far, too"
                    " few to tell "
                ),
            ),
            (
                20,
                "wait",
                (
                    "but 20 of 130 labelled examples are of its windows and were not chosen as far, and do"
                    " not show "
                ),
            ),
        ],
    )
    def test_labels_show_no_loss_only_once_they_are_evaluated(
        self, evaluated: int | None, action: str, said: str
    ) -> None:
        drift = {"new": 130, "num_labels_since_drift": 130, **_windows("confirmed", "confirmed")}
        decision = _decide(num_live_labels=evaluated, **drift)
        assert (decision.action, said in "; ".join(decision.reasons)) == (action, True)
        # Asked for once, however often further labels are yet to be evaluated.
        again = _decide(
            RUNNING.model_copy(update={"raised": {"random_labels": NOW}}), num_live_labels=evaluated, **drift
        )
        assert (again.action, again.incidents) == ("wait", [] if evaluated == 20 else ["random_labels"])

    def test_no_more_labels_are_asked_for_while_a_retrain_learns_from_those_of_the_drift(self) -> None:
        learning = _after(0.1, outcome="in_flight", num_examples=ROWS + 500)
        asked = {"new": 500, "num_labels_since_drift": 500, **_windows("confirmed", "confirmed")}
        assert _decide(learning, **asked, num_runs_in_flight=1).action == "wait"
        assert (
            _decide(_after(0.1, outcome="succeeded", num_examples=ROWS + 500), **asked).action
            == "request_labels"
        )

    @pytest.mark.parametrize("sign", ["drift", "score"])
    @pytest.mark.parametrize(
        ("ended", "came_to"),
        [
            (
                {"outcome": "cancelled"},
                "was cancelled and is not started again by itself (launch the model job by hand for it)",
            ),
            ({"outcome": "failed", "failure": "data"}, "failed (data)"),
        ],
    )
    def test_no_labels_are_asked_for_that_are_there_and_that_an_attempt_did_not_learn(
        self, sign: str, ended: dict[str, str], came_to: str
    ) -> None:
        seen = (
            {"num_labels_since_drift": 500, **_windows("confirmed", "confirmed")}
            if sign == "drift"
            else {"score_drop": 0.1}
        )
        last = _after(3, num_examples=ROWS + 500, **ended)
        told = last.model_copy(update={"raised": {"failed attempt of 1972-09-24 00:00 UTC": NOW}})
        decision = _decide(told, new=500, **seen)
        assert decision.action == "wait" and not [
            key for key in decision.incidents if key.startswith("labels")
        ]
        said = (
            "500 labelled examples are there to learn from, but the attempt of 1972-09-24 00:00 UTC that had"
            f" them {came_to}"
        )
        assert [reason for reason in decision.reasons if reason.endswith(said)]
        # More that were delivered are counted, and so many that they are enough by themselves are learned.
        assert _decide(told, new=500, num_uncounted=100, **seen).count_first
        assert _decide(told, new=600, **{**seen, "num_labels_since_drift": 600}).action == "retrain"
        # Where the rows were too few before it, too, more are needed.
        few = _after(3, num_examples=ROWS + 50, **ended).model_copy(update={"raised": told.raised})
        assert _decide(few, new=50, **seen).action == "request_labels"

    @pytest.mark.parametrize(
        ("new", "action", "price"),
        [
            (124, "wait", {}),
            (125, "retrain", {}),
            # 2 sqrt(3 USD / 12 USD): as many again.
            (249, "wait", {"hourly_usd": 1.0, "estimated_hours": 3.0, "usd_per_point": 12.0}),
            (250, "retrain", {"hourly_usd": 1.0, "estimated_hours": 3.0, "usd_per_point": 12.0}),
        ],
    )
    def test_a_drift_is_learned_again_from_half_as_many_labels_more_or_as_the_price_says(
        self, new: int, action: str, price: dict[str, float]
    ) -> None:
        state = _after(2, num_drift_examples=250).model_copy(update={"champion_since": NOW - 2 * DAY_SECONDS})
        assert _decide(state, new=new, **price).action == action
        assert _decide(_after(2), new=new).action == "wait"
        assert drift_examples(state, _signals(new=new), SETTINGS) == 250 + new
        shown = {"num_labels_since_drift": 120, **_windows("confirmed", "confirmed")}
        for num_errors, count in ((0.0, 0), (1.7, 120)):
            signals = _signals(new=500, num_live_errors=num_errors, **shown)
            assert drift_examples(RUNNING, signals, SETTINGS) == count
        for drop, count in (
            ({"score_drop": 0.03}, 150),
            ({"live_drop": 0.03}, 150),
            ({"score_drop": 0.02}, 0),
        ):
            assert drift_examples(RUNNING, _signals(new=150, **drop), SETTINGS) == count

    @pytest.mark.parametrize(
        ("trained_at", "windows"),
        [
            (0.0, _windows("confirmed", "confirmed", apart=380 * DAY_SECONDS)),
            (0.0, _windows("confirmed", "confirmed", at=NOW - 40 * DAY_SECONDS)),
            (NOW - 1_800.0, _windows("confirmed", "confirmed", "confirmed")),
        ],
        ids=["a year apart", "long ago", "before the last training"],
    )
    def test_windows_that_are_no_evidence(self, trained_at: float, windows: dict[str, object]) -> None:
        state = RUNNING.model_copy(update={"trained_at": trained_at})
        assert _decide(state, new=500, num_labels_since_drift=500, **windows).action == "wait"

    def test_a_drift_that_lasts_longer_than_the_horizon_began_when_it_did(self) -> None:
        """Labels since then were those of the last 30 days, so that few a day were never enough for a drift
        that they do not confirm.
        """
        shown = _windows("ok", *["confirmed"] * 10, apart=9 * DAY_SECONDS)
        windows = [Window.model_validate(window) for window in shown["windows"]]
        state = RUNNING.model_copy(update={"trained_at": NOW - 200 * DAY_SECONDS})
        assert drift_began(state, windows, NOW, SETTINGS) == windows[1].at

    @pytest.mark.parametrize(
        ("live_drop", "new", "action"),
        [(0.029, 500, "wait"), (0.03, 500, "retrain"), (0.03, 99, "request_labels")],
    )
    def test_a_drop_on_labelled_production_documents_counts_as_one_on_newer_rows(
        self, live_drop: float, new: int, action: str
    ) -> None:
        decision = _decide(new=new, live_drop=live_drop, score_drop=None)
        assert decision.action == action
        assert any("on labelled production" in reason for reason in decision.reasons) == (action != "wait")

    @pytest.mark.parametrize(
        ("drop", "count", "action"),
        [
            (0.02, 100, "wait"),
            (0.03, 100, "retrain"),
            (0.03, 99, "request_labels"),
            (None, 100, "wait"),
            (-0.2, 100, "wait"),
        ],
    )
    def test_a_worse_score_retrains_with_labels(self, drop: float | None, count: int, action: str) -> None:
        assert _decide(score_drop=drop, new=count).action == action

    @pytest.mark.parametrize(
        ("seen", "said"),
        [
            ({"num_drop_errors": 0.0}, "which may be chance (an unknown number of standard errors of 2.5)"),
            (
                {"num_drop_errors": 2.4},
                "fell by 0.100 on newer rows, which may be chance (2.4 standard errors of 2.5)",
            ),
            (
                {"num_live_errors": -0.1},
                "but it is right about labelled production documents as often as at release",
            ),
        ],
    )
    def test_a_lower_score_that_labels_do_not_bear_out_waits(self, seen: dict[str, float], said: str) -> None:
        decision = _decide(score_drop=0.1, new=500, **seen)
        assert decision.action == "wait" and [reason for reason in decision.reasons if said in reason]

    @pytest.mark.parametrize(
        ("days", "version", "action"), [(180, "v2", "retrain"), (179, "v2", "wait"), (180, "v1", "wait")]
    )
    def test_an_old_champion_is_challenged_if_there_are_other_rows(
        self, days: float, version: str, action: str
    ) -> None:
        old = {"champion_since": NOW - days * DAY_SECONDS, "trained_at": NOW - days * DAY_SECONDS}
        state = RUNNING.model_copy(update=old)
        assert _decide(state, data_version=version).action == action
        tried = _after(120, state=state, evidence=retrain_evidence(_signals(data_version=version)))
        assert _decide(tried, data_version=version).action == "wait"

    @pytest.mark.parametrize(
        ("trained", "changes", "action"),
        [
            ({}, {"data_version": "v2"}, "retrain"),
            ({}, {"data_version": "v1"}, "wait"),
            ({}, {"data_version": "v2", "num_uncounted": 9}, "wait"),
            ({"trained_at": NOW - DAY_SECONDS}, {"data_version": "v2"}, "wait"),
            ({"trained_on": None, "trained_at": None}, {"num_examples": 0, "data_version": ""}, "wait"),
        ],
    )
    def test_a_schedule_is_due_once_if_there_are_other_rows(
        self, trained: dict[str, Any], changes: dict[str, Any], action: str
    ) -> None:
        due = {"scheduled_at": NOW - 2 * DAY_SECONDS, **changes}
        decision = _decide(RUNNING.model_copy(update=trained), **due)
        assert (decision.action, decision.count_first) == (action, "num_uncounted" in changes)
        reasons = [reason for reason in decision.reasons if "scheduled retraining is due since" in reason]
        assert len(reasons) == ("trained_at" not in trained or "trained_on" in trained)
        tried = _after(1.5, state=RUNNING.model_copy(update=trained), evidence="of other rows")
        assert _decide(tried, **due).action == "wait"

    @pytest.mark.parametrize(
        ("changes", "fell"),
        [
            ({}, False),
            ({"num_drop_errors": 1.6}, False),
            ({"num_drop_errors": 1.7}, True),
            ({"num_live_errors": 1.7}, True),
            ({"score_drop": 0.03}, True),
            ({"live_drop": 0.03}, True),
        ],
    )
    def test_labels_that_show_a_lower_score_confirm_a_drift(
        self, changes: dict[str, float], fell: bool
    ) -> None:
        assert score_fell(_signals(**changes), SETTINGS) == fell


class TestObstacles:
    def test_the_wait_doubles_with_each_attempt_in_vain(self) -> None:
        state = RUNNING.model_copy(
            update={"champion_since": NOW - 100 * DAY_SECONDS, "raised": {"attempts in vain": NOW}}
        )
        for number, days in ((1, 2), (2, 4), (3, 8), (4, 16), (9, 90)):
            earlier = [30.0 + i for i in range(number - 1)] if days < 30 else [95.0] * (number - 1)
            assert _decide(_after(*earlier, days - 0.1, state=state), new=1_200).action == "wait"
            assert _decide(_after(*earlier, days, state=state), new=1_200).action == "retrain"

    def test_an_attempt_that_a_person_cancelled_is_none_in_vain(self) -> None:
        state = RUNNING.model_copy(update={"champion_since": NOW - 100 * DAY_SECONDS})
        decision = _decide(_after(7, 6, 5, 4, 1.1, state=state, outcome="cancelled"), new=1_200)
        assert (decision.action, decision.incidents) == ("retrain", [])
        assert (
            "cooldown_hours = 24"
            in _decide(_after(0.9, state=state, outcome="cancelled"), new=1_200).reasons[-1]
        )
        # One in vain before it: its own backoff goes on, and no other begins.
        assert (
            _decide(_after(1.1, state=_after(1.9, state=state), outcome="cancelled"), new=1_200).action
            == "wait"
        )
        assert (
            _decide(_after(1.1, state=_after(2, state=state), outcome="cancelled"), new=1_200).action
            == "retrain"
        )

    def test_a_promotion_by_whomever_ends_the_backoff(self) -> None:
        tried = _after(8, 6, 2, state=RUNNING.model_copy(update={"raised": {"attempts in vain": NOW}}))
        assert _decide(tried, new=1_200).action == "wait"
        promoted = tried.model_copy(update={"champion_since": NOW - 1.5 * DAY_SECONDS})
        assert _decide(promoted, new=1_200).action == "retrain"

    def test_rows_that_an_attempt_had_are_not_new_whatever_it_came_to(self) -> None:
        failed = _after(100, num_examples=ROWS + 1_200, outcome="failed", failure="infrastructure")
        failed = failed.model_copy(update={"champion_since": NOW})
        assert _decide(failed, new=1_200).action == "wait"
        assert _decide(failed, new=2_200).action == "retrain"
        # Whoever edits the YAML has looked at it.
        assert _decide(failed, new=1_200, settings_version="fixed").action == "retrain"

    @pytest.mark.parametrize(
        ("changes", "spent", "days_ago", "action", "said"),
        [
            ({}, 99.0, 3, "retrain", ""),
            (
                {},
                99.5,
                3,
                "wait",
                "but 99.5 h were spent this month and the next run takes about 1.0 h (max_hours_per_month ="
                " 100)",
            ),
            ({}, 99.5, 9.5, "retrain", ""),
            ({"max_usd_per_month": 50}, 14.0, 3, "retrain", ""),
            (
                {"max_usd_per_month": 50},
                16.0,
                3,
                "wait",
                "but 48.00 USD were spent this month and the next run costs about 3.00 USD",
            ),
        ],
    )
    def test_the_calendar_month_has_a_budget(
        self, changes: dict[str, float], spent: float, days_ago: float, action: str, said: str
    ) -> None:
        settings = RetrainingSettings(**{"min_new_examples": 1_000, **changes})
        decision = _decide(_after(days_ago, hours=spent, state=_TOLD), settings, new=1_200, hourly_usd=3.0)
        assert decision.action == action and decision.reasons[-1].startswith(said)


class TestFailures:
    def test_preemption_is_resumed_soon_and_boundedly(self) -> None:
        new = {"num_examples": ROWS + 1_200, "outcome": "failed", "failure": "preemption"}
        hour = 1 / 24
        assert _decide(_after(hour, **new), new=1_200).action == "retrain"
        assert _decide(_after(hour * 0.9, **new), new=1_200).action == "wait"
        fourth = _decide(_after(4, 3, 2, 1, **new), new=1_200)
        assert fourth.action == "alert" and "4 attempts in a" in fourth.reasons[0]

    def test_an_outage_is_repeated_three_times_then_a_person_is_alerted(self) -> None:
        new = {"num_examples": ROWS + 1_200, "outcome": "failed", "failure": "infrastructure"}
        for number in range(1, 5):
            decision = _decide(_after(*range(number + 5, 5, -1), **new), new=1_200)
            assert decision.action == ("retrain" if number <= 2 else "alert")
        assert "1972-09-21 00:00 UTC failed (infrastructure)" in decision.reasons[0]
        assert "newest failed run" in decision.instruction

    @pytest.mark.parametrize("since", ["trained_at", "champion_since"])
    @pytest.mark.parametrize("failure", ["preemption", "data"])
    def test_a_training_or_a_release_since_then_settles_a_failed_attempt(
        self, failure: str, since: str
    ) -> None:
        new = {
            "num_examples": ROWS + 1_200,
            "outcome": "failed",
            "failure": failure,
            "ended_at": NOW - 0.5 * DAY_SECONDS,
        }
        failed = _after(2, **new).model_copy(update={"num_trained": ROWS + 1_200})
        unsettled = "retrain" if failure == "preemption" else "alert"
        assert _decide(failed, new=1_200).action == unsettled
        # What its own run trained before it failed is no training since.
        assert _decide(failed.model_copy(update={since: NOW - DAY_SECONDS}), new=1_200).action == unsettled
        settled = _decide(failed.model_copy(update={since: NOW - 0.4 * DAY_SECONDS}), new=1_200)
        assert settled.action == "wait" and not settled.incidents

    @pytest.mark.parametrize(
        "failure", ["data", "settings", "gate", "out_of_memory", "divergence", "unknown"]
    )
    def test_what_waiting_does_not_fix_alerts_at_once(self, failure: str) -> None:
        decision = _decide(
            _after(0.01, num_examples=ROWS + 1_200, outcome="failed", failure=failure), new=1_200
        )
        assert (decision.action, decision.evidence) == ("alert", "failed attempt of 1972-09-26 23:45 UTC")
        assert decision.reasons[0].endswith(f"failed ({failure})")


class TestPeople:
    def test_what_costs_nothing_is_not_held_back(self) -> None:
        spent = _after(0.1, hours=500.0)
        for state in (spent, spent.model_copy(update={"frozen": "Frozen by hand"})):
            assert _decide(state, score_drop=0.1).action == "request_labels"

    def test_no_label_is_asked_for_while_a_run_may_release_what_learned_them(self) -> None:
        waiting = _decide(score_drop=0.1, num_runs_in_flight=1)
        assert (waiting.action, waiting.incidents) == ("wait", ["labels"])
        # A run of each day neither ends what was asked for nor repeats it.
        asked = RUNNING.model_copy(update={"raised": {"labels": NOW - DAY_SECONDS}})
        signals = _signals(score_drop=0.1, num_runs_in_flight=1)
        assert raised_after(asked, signals, decide(asked, signals, SETTINGS)) == asked.raised
        assert _decide(asked, score_drop=0.1).action == "wait"

    @pytest.mark.parametrize(
        ("settings", "price", "said"),
        [
            (
                SETTINGS,
                {"estimated_hours": 120.0},
                "the next run takes about 120.0 h, more than max_hours_per_month",
            ),
            (
                RetrainingSettings(max_usd_per_month=50),
                {"estimated_hours": 20.0, "hourly_usd": 3.0},
                "the next run costs about 60.00 USD",
            ),
        ],
    )
    def test_an_estimate_above_the_whole_budget_needs_a_person(
        self, settings: RetrainingSettings, price: dict[str, float], said: str
    ) -> None:
        decision = _decide(settings=settings, new=1_200, **price)
        assert decision.action == "alert" and decision.reasons[0].startswith(said)

    @pytest.mark.parametrize(
        ("spent", "said"),
        [
            (
                {"max_hours_per_month": 100.0},
                (
                    "60.0 h were spent this month and the next run takes about 60.0 h (max_hours_per_month ="
                    " 100)"
                ),
            ),
            (
                {"max_usd_per_month": 300.0, "max_hours_per_month": 200.0},
                (
                    "180.00 USD were spent this month and the next run costs about 180.00 USD"
                    " (max_usd_per_month = 300)"
                ),
            ),
        ],
    )
    def test_a_month_that_holds_a_retrain_back_is_told_once(self, spent: dict[str, float], said: str) -> None:
        settings = SETTINGS.model_copy(update=spent)
        month = {"estimated_hours": 60.0, "hourly_usd": 3.0}
        state, signals = _after(3, hours=60.0), _signals(new=1_200, **month)
        told = decide(state, signals, settings)
        assert (told.action, told.evidence) == ("alert", "month's budget") and told.instruction
        assert [reason.partition(", so that")[0] for reason in told.reasons] == [said]
        state = state.model_copy(update={"raised": raised_after(state, signals, told)})
        # Nor does an evaluation in between end it.
        for changes in ({}, {"num_runs_in_flight": 1}, {}):
            again = _decide(state, settings, new=1_200, **month, **changes)
            assert again.action == "wait" and again.reasons[-1] == f"but {said}"
            state = state.model_copy(update={"raised": raised_after(state, signals, again)})
        over = {**month, "month_start": NOW + 21 * DAY_SECONDS, "now": NOW + 21 * DAY_SECONDS}
        assert _decide(state, settings, new=1_200, **over).action == "retrain"

    def test_a_month_that_is_not_what_holds_a_retrain_back_is_not_told(self) -> None:
        spent = _after(3, hours=60.0)
        assert _decide(spent, estimated_hours=60.0).incidents == [], "none is called for"
        assert (
            _decide(
                spent, SETTINGS.model_copy(update={"cooldown_hours": 96.0}), new=1_200, estimated_hours=60.0
            ).incidents
            == []
        )
        assert (
            _decide(spent.model_copy(update={"frozen": "by hand"}), new=1_200, estimated_hours=60.0).action
            == "hold"
        )
        assert _decide(spent, new=1_200, estimated_hours=120.0).incidents == ["budget"], (
            "the whole month would not be enough"
        )

    @pytest.mark.parametrize(
        ("hours", "estimated", "hangs"),
        [(23, 1.0, False), (25, 1.0, True), (29, 10.0, False), (31, 10.0, True)],
    )
    def test_a_run_that_may_never_end_and_holds_retrains_back_needs_a_person(
        self, hours: float, estimated: float, hangs: bool
    ) -> None:
        run = RunInFlight(job="licences_model", run_id="0f3a", since=NOW - hours * 3_600)
        decision = _decide(num_runs_in_flight=1, oldest_run=run, estimated_hours=estimated)
        assert decision.incidents == (["run 0f3a in flight"] if hangs else [])
        limit = max(24, 3 * estimated)
        said = f"has not ended in {limit:.0f} h and holds retrains back"
        assert not hangs or (decision.action == "alert" and decision.reasons[0].endswith(said))
        waits = _decide(
            num_runs_in_flight=1,
            oldest_run=run.model_copy(update={"has_started": False}),
            estimated_hours=estimated,
        )
        assert not hangs or f"not begun in {limit:.0f} h" in waits.reasons[0]

    @pytest.mark.parametrize(
        ("windows", "since", "alerts"),
        [
            ([], 29, False),
            ([], 31, True),
            (["insufficient_data"] * 9, 5, False),
            (["feed_broken"] * 10, 5, True),
            (["warming_up"] * 10, 5, False),
        ],
    )
    def test_production_that_is_not_seen_needs_a_person(
        self, windows: list[str], since: float, alerts: bool
    ) -> None:
        state = RUNNING.model_copy(update={"champion_since": NOW - since * DAY_SECONDS})
        decision = _decide(state, is_monitored=True, **_windows(*windows))
        assert (decision.action == "alert") == alerts
        assert not alerts or decision.evidence == "production is not seen"

    def test_an_incident_is_raised_once_then_after_a_month_and_again_when_it_comes_back(self) -> None:
        signals = _signals(score_drop=0.1)
        asked = decide(RUNNING, signals, SETTINGS)
        state = RUNNING.model_copy(update={"raised": raised_after(RUNNING, signals, asked)})
        again = decide(state, signals, SETTINGS)
        assert again.action == "wait" and "asked for on 1972-09-27" in again.reasons[-1]
        assert raised_after(state, signals, again) == state.raised
        assert _decide(state, score_drop=0.1, now=NOW + 31 * DAY_SECONDS).action == "request_labels"
        assert raised_after(state, _signals(), decide(state, _signals(), SETTINGS)) == {}

    def test_labels_are_asked_for_once_whatever_shows_the_change(self) -> None:
        drifted, lower = _windows("confirmed", "confirmed"), {"score_drop": 0.1}
        asked = _decide(**drifted)
        assert asked.incidents == ["labels"] and "drift is confirmed" in asked.reasons[0]
        state = RUNNING.model_copy(update={"raised": raised_after(RUNNING, _signals(**drifted), asked)})
        for shown in ({**drifted, **lower}, lower, drifted):
            assert _decide(state, **shown).action == "wait"


class TestTotality:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("name", ["now", "month_start", "score_drop", "estimated_hours", "hourly_usd"])
    def test_a_number_that_is_not_finite_is_an_error(self, name: str, value: float) -> None:
        with pytest.raises(ValidationError, match="finite number"):
            _signals(**{name: value})

    @given(
        now=st.floats(allow_nan=False, allow_infinity=False),
        new=st.integers(0, 10**9),
        drop=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        hours=st.floats(0, 1e300),
        started=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=80),
        outcome=st.sampled_from(["in_flight", "succeeded", "failed", "cancelled"]),
    )
    @hypothesis_settings(deadline=None, max_examples=100)
    def test_every_finite_input_has_a_decision(
        self, now: float, new: int, drop: float | None, hours: float, started: list[float], outcome: str
    ) -> None:
        values = {"hours": 1.0, "num_examples": 1, "evidence": "e", "outcome": outcome}
        attempts = [Attempt.model_validate({"started_at": at, **values}) for at in started]
        assert _decide(
            RUNNING.model_copy(update={"attempts": attempts}),
            now=now,
            new=new,
            score_drop=drop,
            estimated_hours=hours,
        ).reasons


#: Worlds whose retrains each learn from as many new rows as were asked for.
_HEALTHY = {"a plan of 40 h, 3,000 labels a day", "drift from day 60, its labels from day 70"}
#: Worlds where nobody is needed.
_CALM = {
    "nothing happens",
    "60 labels a day",
    "the same 2,000 rows a day under a new name",
    "a false confirmed window in ten, 50 labels a day",
    "drift from day 60, its labels from day 70",
}


@pytest.mark.heavy
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_no_world_runs_away_or_stops_silently_in_a_year(world: World) -> None:
    year = Year(world).run()
    assert year.count("retrain") <= (14 if world.name in _HEALTHY else 12)
    needed = year.count("alert") + year.count("request_labels")
    assert needed <= 25
    assert (needed > 0) == (world.name not in _CALM) or world.name.startswith("drift from day 60")
    months = [int(attempt.started_at // (30 * DAY_SECONDS)) for attempt in year.state.attempts]
    assert all(months.count(month) * world.hours <= year.settings.max_hours_per_month for month in months)


@pytest.mark.parametrize(
    ("num_errors", "on_drift", "requests", "retrains"),
    [
        # 100 labels of the new kind: two days after the first. Then half as many more, again and again.
        (3.0, "labels_confirm", [61], [71, 73, 75, 78]),
        # Without labels that confirm it.
        (0.0, "labels_confirm", [61], [74]),
        (0.0, "labels_exist", [61], [71, 73, 75, 78]),
        (0.0, "report", [], []),
    ],
)
def test_a_drift_is_asked_for_once_trained_on_as_the_settings_say_and_over(
    num_errors: float, on_drift: str, requests: list[int], retrains: list[int]
) -> None:
    (world,) = (world for world in WORLDS if world.name == "drift from day 60, its labels from day 70")
    year = Year(replace(world, num_errors=num_errors, settings={"on_drift": on_drift})).run(days=100)
    assert year.days("request_labels") == requests
    assert [day for day in year.days("retrain") if 60 <= day < 80] == retrains
