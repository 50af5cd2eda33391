"""retraining: each rule, and months of operation simulated in milliseconds."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fullft_assets.retraining import (
    DAY_SECONDS,
    HOUR_SECONDS,
    Ask,
    Attempt,
    Decision,
    RecordedDecision,
    Signals,
    State,
    Window,
    decide,
    run_key,
)
from fullft_assets.settings import RetrainingSettings

pytestmark = pytest.mark.quick

SETTINGS = RetrainingSettings()
NOW = 1_000 * DAY_SECONDS
CALM = Signals(now=NOW, num_new_examples=0, data_version="v1", score_drop=0.0, estimated_hours=1.0)
RUNNING = State(trained_on="v1", champion="c1", champion_since=NOW - 10 * DAY_SECONDS)


def _signals(**changes: object) -> Signals:
    return Signals.model_validate({**CALM.model_dump(), **changes})


def _windows(*statuses: str) -> dict[str, object]:
    windows = [Window(key=f"w{i}", status=status, at=NOW + i) for i, status in enumerate(statuses)]
    return {"windows": windows, "num_windows_since_training": len(windows)}


def _decide(state: State = RUNNING, settings: RetrainingSettings = SETTINGS, **changes: object) -> Decision:
    return decide(state, _signals(**changes), settings)


def test_nothing_happening_waits_and_says_why_for_each_rule() -> None:
    decision = _decide()
    assert decision.action == "wait"
    assert decision.reasons == [
        "0 new examples, fewer than min_new_examples = 1,000",
        "0 drifted windows in a row since the last training, fewer than drift_windows = 2",
        "the champion's score changed by +0.000 on newer rows, within max_score_drop = 0.03",
        "the champion was trained or challenged 10 days ago (max_age_days = 180)",
    ]


@pytest.mark.parametrize(("count", "action"), [(999, "wait"), (1_000, "retrain")])
def test_enough_new_data_retrains(count: int, action: str) -> None:
    assert _decide(num_new_examples=count).action == action


def test_the_first_training_needs_no_champion() -> None:
    assert _decide(State(), num_new_examples=1_000, score_drop=None).action == "retrain"
    assert _decide(State(), num_new_examples=999, score_drop=None).action == "wait"


@pytest.mark.parametrize(
    ("statuses", "count", "action"),
    [
        (["confirmed"], 500, "wait"),
        (["confirmed", "ok"], 500, "wait"),
        (["confirmed", "confirmed", "ok"], 500, "wait"),
        (["ok", "confirmed", "confirmed"], 500, "retrain"),
        (["confirmed", "insufficient_data", "confirmed"], 500, "retrain"),
        (["confirmed", "insufficient_data"], 500, "wait"),
        (["confirmed", "confirmed"], 100, "retrain"),
        (["confirmed", "confirmed"], 99, "ask_for_labels"),
        (["confirmed", "confirmed"], 0, "ask_for_labels"),
    ],
)
def test_drift_retrains_with_labels_and_asks_without(statuses: list[str], count: int, action: str) -> None:
    assert _decide(num_new_examples=count, **_windows(*statuses)).action == action


def test_windows_seen_before_the_last_training_are_no_evidence() -> None:
    windows = {**_windows("confirmed", "confirmed", "confirmed"), "num_windows_since_training": 1}
    assert _decide(num_new_examples=500, **windows).action == "wait"
    with pytest.raises(ValidationError, match="num_windows_since_training: 4 is more than the 3 windows given"):
        _signals(**{**windows, "num_windows_since_training": 4})


def test_drift_with_nothing_new_never_retrains_whatever_the_settings() -> None:
    eager = RetrainingSettings(min_new_examples_on_drift=0, drift_windows=1)
    assert _decide(settings=eager, **_windows("confirmed")).action == "ask_for_labels"


@pytest.mark.parametrize(
    ("drop", "count", "action"),
    [
        (0.02, 100, "wait"),
        (0.03, 100, "retrain"),
        (0.03, 99, "ask_for_labels"),
        (0.03, 0, "ask_for_labels"),
        (None, 100, "wait"),
        (-0.2, 100, "wait"),
    ],
)
def test_a_worse_score_retrains(drop: float | None, count: int, action: str) -> None:
    assert _decide(score_drop=drop, num_new_examples=count).action == action


@pytest.mark.parametrize(
    ("days", "scheduled", "count", "action"),
    [(180, True, 1, "retrain"), (180, False, 1, "wait"), (179, True, 1, "wait"), (180, True, 0, "wait")],
)
def test_only_the_schedule_retrains_for_age(days: float, scheduled: bool, count: int, action: str) -> None:
    state = RUNNING.model_copy(update={"champion_since": NOW - days * DAY_SECONDS})
    assert _decide(state, scheduled=scheduled, num_new_examples=count).action == action


def test_a_champion_that_was_challenged_lately_is_not_challenged_for_its_age() -> None:
    old = {"champion_since": NOW - 200 * DAY_SECONDS, "trained_at": NOW - 20 * DAY_SECONDS}
    assert _decide(RUNNING.model_copy(update=old), scheduled=True, num_new_examples=10).action == "wait"


def _after(hours: float, *, spent: float = 1.0, evidence: str = "other") -> State:
    attempt = Attempt(started_at=NOW - hours * HOUR_SECONDS, hours=spent, evidence=evidence)
    return RUNNING.model_copy(update={"attempts": [attempt]})


def test_obstacles_are_named_beside_the_reasons() -> None:
    decision = _decide(_after(3), num_new_examples=1_200, num_runs_in_flight=1)
    assert decision.action == "wait"
    assert decision.reasons == [
        "1,200 new examples reach min_new_examples = 1,000",
        "but 1 run(s) of the model are in flight",
        "but the last attempt was at 1972-09-26 21:00 UTC (cooldown_hours = 24)",
    ]


def test_the_cooldown_ends() -> None:
    assert _decide(_after(23.9), num_new_examples=1_200).action == "wait"
    assert _decide(_after(24), num_new_examples=1_200).action == "retrain"


def test_the_newest_attempt_counts_in_whatever_order_they_are_kept() -> None:
    attempts = [*_after(1).attempts, *_after(500).attempts]
    assert _decide(RUNNING.model_copy(update={"attempts": attempts}), num_new_examples=1_200).action == "wait"


@pytest.mark.parametrize(("spent", "hours_ago", "action"), [(99.0, 48, "retrain"), (99.5, 48, "wait"), (99.5, 31 * 24, "retrain")])
def test_the_monthly_hours_include_the_next_run(spent: float, hours_ago: float, action: str) -> None:
    decision = _decide(_after(hours_ago, spent=spent), num_new_examples=1_200)
    assert decision.action == action
    if action == "wait":
        assert "max_hours_per_month = 100" in decision.reasons[-1]


def test_the_same_evidence_never_retrains_twice_and_more_data_or_other_settings_do() -> None:
    first = _decide(num_new_examples=1_200, data_version="v2")
    tried = _after(100, evidence=first.evidence)
    again = _decide(tried, num_new_examples=1_200, data_version="v2")
    assert again.action == "wait" and "already tried" in again.reasons[-1]
    # Another rule that notices the same data is no new evidence.
    assert _decide(tried, num_new_examples=1_200, data_version="v2", score_drop=0.2).action == "wait"
    assert _decide(tried, num_new_examples=1_300, data_version="v3").action == "retrain"
    assert _decide(tried, num_new_examples=1_200, data_version="v2", settings_version="fixed").action == "retrain"


def test_run_keys_repeat_for_a_repeated_tick_only() -> None:
    first = _decide(num_new_examples=1_200, data_version="v2")
    assert run_key(RUNNING, first) == run_key(RUNNING, _decide(num_new_examples=1_200, data_version="v2", now=NOW + 30))
    # The data returns to an earlier version after another attempt: a key of the data alone would be dropped.
    later = _after(48, evidence="another")
    assert run_key(later, _decide(later, num_new_examples=1_200, data_version="v2")) != run_key(RUNNING, first)


def test_one_drift_asks_for_labels_once_and_the_next_drift_again() -> None:
    asked = _decide(**_windows("confirmed", "confirmed"))
    state = RUNNING.model_copy(update={"asks": [Ask(at=NOW + 1.5, evidence=asked.evidence)]})
    lasting = _decide(state, data_version="v2", num_new_examples=20, **_windows("confirmed", "confirmed", "confirmed"))
    assert lasting.action == "wait" and lasting.reasons[-1] == "but labels were already asked for"
    fresh = _decide(state, **_windows("confirmed", "confirmed", "ok", "confirmed", "confirmed"))
    assert fresh.action == "ask_for_labels"


def test_a_worse_score_asks_once_a_champion() -> None:
    asked = _decide(score_drop=0.1)
    state = RUNNING.model_copy(update={"asks": [Ask(at=NOW, evidence=asked.evidence)]})
    assert _decide(state, score_drop=0.2, **_windows("ok", "ok")).action == "wait"
    assert _decide(state, score_drop=0.2, **_windows("confirmed", "confirmed")).action == "ask_for_labels"
    promoted = state.model_copy(update={"champion": "c2"})
    assert _decide(promoted, score_drop=0.1).action == "ask_for_labels"


def test_a_recorded_decision_survives_json_and_replays() -> None:
    signals = _signals(num_new_examples=1_200, **_windows("confirmed", "ok"))
    record = RecordedDecision(case="licences", time=NOW, signals=signals, decision=decide(RUNNING, signals, SETTINGS))
    read = RecordedDecision.model_validate_json(record.model_dump_json())
    assert read == record
    assert decide(RUNNING, read.signals, SETTINGS) == read.decision


class Operation:
    """A use case in operation: an hourly sensor, a weekly schedule, and trainings that gain, fail or gain nothing."""

    def __init__(self, settings: RetrainingSettings, hours_per_run: float):
        self.settings, self.hours_per_run = settings, hours_per_run
        self.state = State()
        self.num_examples = self.num_trained = 0
        self.windows: list[Window] = []
        self.num_windows_since_training = 0
        self.launches: list[tuple[float, Signals, Decision]] = []
        self.keys: list[str] = []
        self.num_asks = 0

    def signals(self, now: float, scheduled: bool, score_drop: float | None) -> Signals:
        return Signals(
            now=now,
            num_new_examples=self.num_examples - self.num_trained,
            data_version=f"{self.num_examples} examples",
            windows=self.windows[-10:],
            num_windows_since_training=min(self.num_windows_since_training, 10),
            score_drop=score_drop,
            estimated_hours=self.hours_per_run,
            scheduled=scheduled,
        )

    def tick(self, now: float, *, scheduled: bool = False, score_drop: float | None = None, outcome: str = "promoted") -> Decision:
        signals = self.signals(now, scheduled, score_drop)
        decision = decide(self.state, signals, self.settings)
        if decision.action == "ask_for_labels":
            self.num_asks += 1
            self.state = self.state.model_copy(update={"asks": [*self.state.asks, Ask(at=now, evidence=decision.evidence)]})
        if decision.action == "retrain":
            self.launches.append((now, signals, decision))
            self.keys.append(run_key(self.state, decision))
            attempt = Attempt(started_at=now, hours=self.hours_per_run, evidence=decision.evidence)
            self._train(now, attempt, outcome)
        return decision

    def _train(self, now: float, attempt: Attempt, outcome: str) -> None:
        update: dict[str, object] = {"attempts": [*self.state.attempts, attempt]}
        if outcome != "failed":
            update |= {"trained_on": f"{self.num_examples} examples", "trained_at": now}
            self.num_trained, self.num_windows_since_training = self.num_examples, 0
        if outcome == "promoted":
            update |= {"champion": f"champion of {now}", "champion_since": now}
        self.state = self.state.model_copy(update=update)

    def see_window(self, status: str, at: float) -> None:
        self.windows.append(Window(key=f"w{len(self.windows)}", status=status, at=at))
        self.num_windows_since_training += 1


def test_six_months_in_under_a_second() -> None:
    """2,000 examples, then 60 a day; on day 60 a new domain arrives, its labels from day 70."""
    started = time.monotonic()
    operation = Operation(RetrainingSettings(min_new_examples=2_000, max_hours_per_month=40), hours_per_run=6.0)
    operation.num_examples = 2_000
    asked: list[int] = []
    for hour in range(180 * 24):
        day, now = hour // 24, hour * HOUR_SECONDS
        if hour % 24 == 0:
            operation.num_examples += 0 if 45 <= day < 70 else 60
            knows_new_domain = (operation.state.trained_at or 0.0) >= 70 * DAY_SECONDS
            operation.see_window("confirmed" if day >= 60 and not knows_new_domain else "ok", now)
        if operation.tick(now, scheduled=hour % 168 == 0).action == "ask_for_labels":
            asked.append(day)
    days = [int(now // DAY_SECONDS) for now, _, _ in operation.launches]
    assert days == [
        0,  # the first data
        34,  # 2,000 new examples, at 60 a day
        61,  # the second drifted window; 660 new examples were waiting, of the old domain
        71,  # still drifted, and the labels that were asked for have come
        105,  # 2,000 new examples again, twice
        139,
        173,
    ]
    assert asked == [63]
    assert time.monotonic() - started < 1


def test_a_drift_that_brings_no_labels_asks_once_and_never_trains() -> None:
    operation = Operation(SETTINGS, hours_per_run=1.0)
    operation.num_examples = 1_000
    operation.tick(0.0)
    for day in range(1, 181):
        operation.see_window("confirmed", day * DAY_SECONDS)
        for hour in range(24):
            operation.tick(day * DAY_SECONDS + hour * HOUR_SECONDS, scheduled=hour == 0)
    assert (len(operation.launches), operation.num_asks) == (1, 1)


def test_a_training_that_always_fails_is_not_repeated_on_the_same_data() -> None:
    operation = Operation(SETTINGS, hours_per_run=1.0)
    operation.num_examples = 5_000
    for hour in range(30 * 24):
        operation.tick(hour * HOUR_SECONDS, outcome="failed")
    assert len(operation.launches) == 1


@hypothesis_settings(deadline=None, max_examples=150)
@given(
    cooldown=st.sampled_from([0.0, 6.0, 24.0, 100.0]),
    budget=st.floats(1, 60),
    hours_per_run=st.floats(0.1, 20),
    days=st.lists(
        st.tuples(
            st.sampled_from([0, 0, 1, 50, 150, 1_500]),
            st.sampled_from(["ok", "confirmed", "confirmed", "insufficient_data"]),
            st.one_of(st.none(), st.floats(-0.2, 0.2)),
            st.sampled_from(["promoted", "kept", "failed"]),
        ),
        min_size=20,
        max_size=60,
    ),
)
def test_whatever_happens_the_policy_stays_within_its_bounds(
    cooldown: float, budget: float, hours_per_run: float, days: list[tuple]
) -> None:
    settings = RetrainingSettings(cooldown_hours=cooldown, max_hours_per_month=budget, min_new_examples=1_000, max_age_days=20)
    operation = Operation(settings, hours_per_run)
    for day, (num_examples, status, score_drop, outcome) in enumerate(days):
        operation.num_examples += num_examples
        operation.see_window(status, day * DAY_SECONDS)
        for hour in (0, 5, 11, 17):
            now = day * DAY_SECONDS + hour * HOUR_SECONDS
            decision = operation.tick(now, scheduled=hour == 0, score_drop=score_drop, outcome=outcome)
            assert decision.reasons
    times = [now for now, _, _ in operation.launches]
    assert all(later - now >= cooldown * HOUR_SECONDS for now, later in zip(times, times[1:], strict=False))
    for now in times:
        month = [at for at in times if now - 30 * DAY_SECONDS < at <= now]
        assert len(month) * hours_per_run <= budget + 1e-9
    assert all(signals.num_new_examples > 0 for _, signals, _ in operation.launches)
    evidence = [decision.evidence for _, _, decision in operation.launches]
    assert len(set(evidence)) == len(evidence) and len(set(operation.keys)) == len(operation.keys)
    # The data bounds the retrains: each needs a version of the data that was not there before.
    assert len(times) <= 1 + sum(num_examples > 0 for num_examples, *_ in days)
