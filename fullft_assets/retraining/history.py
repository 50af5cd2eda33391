"""What a decision to train again depends on, the decision, and what follows from the attempts, trainings and
windows so far.

The values can be kept in a log. Times are in seconds since the epoch.
"""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fullft_assets.errors import TRANSIENT, FailureClass
from fullft_assets.monitoring import Status
from fullft_assets.settings import RetrainingSettings
from fullft_assets.store import digest

Action = Literal["wait", "retrain", "request_labels", "alert", "hold"]
Outcome = Literal["in_flight", "succeeded", "failed", "cancelled"]


class _Frozen(BaseModel):
    """A value: numbers that are not finite are errors, never the reason of an action."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Attempt(_Frozen):
    """One automatic retrain, as its run says; times in seconds since the epoch.

    Attributes:
        ended_at: when its run ended. None: it has not, or nobody knows; then it is taken to have begun at
            once.
        hours: that its run (and Dagster's own retries of it) took from start to end: plan, baselines, pilot,
            training, evaluation.
        num_examples: rows of the snapshot that it was launched for.
        evidence: `Decision.evidence` of the decision that launched it.
        settings_version: `Signals.settings_version` then.
        num_drift_examples: `drift_examples` then.
        failure: the class of its failure.
    """

    started_at: float
    ended_at: float | None = None
    hours: float = Field(ge=0)
    num_examples: int = Field(ge=0)
    evidence: str
    settings_version: str = ""
    num_drift_examples: int = Field(default=0, ge=0)
    outcome: Outcome = "succeeded"
    failure: FailureClass | None = None


class State(_Frozen):
    """What happened so far; times in seconds since the epoch.

    Attributes:
        attempts: automatic retrains in any order.
        trained_on: content digest of the snapshot of the last training; None before the first.
        num_trained: its rows.
        trained_at: when that training ended.
        champion_since: when the champion was released; None before the first release.
        frozen: why a person froze the use case, in a sentence; None: it is not frozen.
        raised: when each incident that is open was raised last.
    """

    attempts: list[Attempt] = []
    trained_on: str | None = None
    num_trained: int = Field(default=0, ge=0)
    trained_at: float | None = None
    champion_since: float | None = None
    frozen: str | None = None
    raised: dict[str, float] = {}


class Window(_Frozen):
    """The verdict on one window of production documents, and when it was made (seconds since the epoch)."""

    key: str
    status: Status
    at: float


class RunInFlight(_Frozen):
    """A run that has not ended, and when it was asked for (seconds since the epoch)."""

    job: str
    run_id: str
    since: float
    has_started: bool = True


class Signals(_Frozen):
    """Everything else that a decision depends on, as of now.

    Attributes:
        now, month_start: seconds since the epoch; the calendar month of the budget.
        num_examples: rows of the newest snapshot. Only a snapshot knows what of a delivery is new: copies,
            near-duplicates, older versions and rows over a group's cap are not in it.
        num_uncounted: valid examples of batches that it does not have yet.
        data_version: its content digest.
        settings_version: digest of the YAML sections that shape the model.
        windows: the windows, oldest first.
        is_monitored: whether windows are expected.
        has_live_quality: whether late labels measure the champion on production.
        num_labels_since_drift: valid examples of the batches that were read since `drift_began`.
        score_drop: the champion's primary metric at its release minus its value on the test rows that are new
            since; None = unknown.
        num_drop_errors: by how many standard errors it is lower; 0 = unknown.
        num_live_errors: by how many standard errors it was right less often about labelled production
            documents than at its release; about those of the windows since `drift_began`, if a drift did. 0 =
            unknown.
        num_live_labels: of how many labelled production documents that is known; None = those that came last
            are not evaluated yet.
        live_drop: its accuracy at release minus that on production documents that were labelled since, where
            it certainly fell; else 0.
        estimated_hours: of the next run, from plan to evaluation.
        hourly_usd: price of the training machine.
        usd_per_point: what a point (0.01) of the primary metric is worth in a year; None = nobody says so.
        scheduled_at: when `retraining.schedule` came due last; None = there is no schedule.
        num_runs_in_flight: queued or started runs that train, evaluate or release the model, or freeze a
            snapshot.
        oldest_run: the one of them that was asked for first.
    """

    now: float
    month_start: float
    num_examples: int = Field(ge=0)
    num_uncounted: int = Field(default=0, ge=0)
    data_version: str
    settings_version: str = ""
    windows: list[Window] = []
    is_monitored: bool = False
    has_live_quality: bool = True
    num_labels_since_drift: int = Field(default=0, ge=0)
    score_drop: float | None = None
    num_drop_errors: float = 0.0
    num_live_errors: float = 0.0
    num_live_labels: int | None = Field(default=None, ge=0)
    live_drop: float = Field(default=0.0, ge=0)
    estimated_hours: float = Field(ge=0)
    hourly_usd: float = Field(default=0.0, ge=0)
    usd_per_point: float | None = Field(default=None, gt=0)
    scheduled_at: float | None = None
    num_runs_in_flight: int = Field(default=0, ge=0)
    oldest_run: RunInFlight | None = None


class Decision(_Frozen):
    """What to do, and why; `wait` has reasons too.

    Attributes:
        evidence: of a retrain, the digest of data and settings; of an alert or a request, the name of its
            incident.
        instruction: what an alert or a request asks of a person.
        incidents: names of all incidents that are open now.
        count_first: whether the delivered examples that no snapshot has yet could change the decision: a
            snapshot counts them.
    """

    action: Action
    reasons: list[str] = Field(min_length=1)
    evidence: str
    instruction: str = ""
    incidents: list[str] = []
    count_first: bool = False


class RecordedDecision(_Frozen):
    """One line of the decision log."""

    case: str
    time: float = Field(description="Seconds since the epoch.")
    signals: Signals
    decision: Decision


HOUR_SECONDS = 3600.0
DAY_SECONDS = 24 * HOUR_SECONDS
#: Windows among which drift is counted.
NUM_WINDOWS = 3
#: Standard errors by which new labels show a lower score that confirm a drift: of one that is none, in 5% of
#: cases.
_BELIEVED = 1.64
#: A lower score alone must be more certain, since somebody looks every day.
CERTAIN = 2.5
#: A window that is older no longer counts as evidence of drift.
_HORIZON_DAYS = 30.0
#: Attempts in a row that are repeated after a failure that may be gone.
MAX_RETRIES = 3
#: Statuses that are a verdict: of the others nothing follows.
VERDICTS: tuple[Status, ...] = ("ok", "alarm", "confirmed")


def in_order(state: State) -> list[Attempt]:
    """Return the attempts, oldest first."""
    return sorted(state.attempts, key=lambda attempt: attempt.started_at)


def date(at: float) -> str:
    """Return a time as the reasons of a decision show it."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return f"{at:.0f} s since 1970"


def has_same_settings(attempt: Attempt, signals: Signals) -> bool:
    """Return whether an attempt was made with today's settings."""
    return attempt.settings_version == signals.settings_version


def is_settled(attempt: Attempt, state: State) -> bool:
    """Return whether a training ended or a champion was released after the end of an attempt, so that its
    failure no longer matters.

    What its own run trained before it failed ended earlier, and does not count.
    """
    end = attempt.started_at + attempt.hours * HOUR_SECONDS if attempt.ended_at is None else attempt.ended_at
    return any(at is not None and at > end for at in (state.trained_at, state.champion_since))


def retrain_evidence(signals: Signals) -> str:
    """Return the digest of what a retrain would learn from. It does not depend on the rule that calls
    for it.
    """
    return digest([signals.data_version, signals.settings_version])


def hours_spent(state: State, signals: Signals) -> float:
    """Return the hours of the attempts that started in this calendar month."""
    return sum(
        (attempt.hours for attempt in state.attempts if attempt.started_at >= signals.month_start), 0.0
    )


def num_unproductive(state: State, signals: Signals, settings: RetrainingSettings) -> int:
    """Return how many attempts in a row, the newest last, gained nothing. One that a person cancelled says
    nothing.

    Attempts under today's settings count that started since the last promotion, by the gates or by hand.
    While a drift lasts, all of them count since the last window without drift: a champion that does not end a
    drift is no success.
    """
    since = state.champion_since
    if drift_began(state, signals.windows, signals.now, settings) is not None:
        since = max((window.at for window in signals.windows if window.status == "ok"), default=None)
    return sum(
        attempt.outcome not in ("in_flight", "cancelled")
        and has_same_settings(attempt, signals)
        and (since is None or attempt.started_at > since)
        for attempt in state.attempts
    )


def num_transient(state: State, signals: Signals) -> int:
    """Return how many attempts in a row, up to the newest, failed for a reason that may be gone; none once
    somebody trained since.
    """
    number = 0
    for attempt in reversed(in_order(state)):
        if (
            attempt.outcome != "failed"
            or attempt.failure not in TRANSIENT
            or not has_same_settings(attempt, signals)
            or is_settled(attempt, state)
        ):
            break
        number += 1
    return number


def score_fell(signals: Signals, settings: RetrainingSettings) -> bool:
    """Return whether labels show that the champion is worse than at its release: enough for a retrain, or
    enough to believe in a drift.
    """
    return _is_lower(signals, settings) or max(signals.num_drop_errors, signals.num_live_errors) >= _BELIEVED


def is_believed(signals: Signals, settings: RetrainingSettings) -> bool:
    """Return whether a drift needs no more evidence: labels confirm it, or do not have to."""
    return settings.on_drift == "labels_exist" or score_fell(signals, settings)


def is_lower_on_tests(signals: Signals, settings: RetrainingSettings) -> bool:
    """Return whether the champion certainly scores lower on the test rows that are new since its release, and
    production does not contradict.
    """
    is_certain = signals.num_drop_errors >= CERTAIN and signals.num_live_errors >= 0
    return is_certain and (signals.score_drop or 0.0) >= settings.max_score_drop


def _is_lower(signals: Signals, settings: RetrainingSettings) -> bool:
    return signals.live_drop >= settings.max_score_drop or is_lower_on_tests(signals, settings)


def new_examples(state: State, signals: Signals) -> tuple[int, str]:
    """Return how many rows the snapshot has grown by, and since what: the last training, or an attempt with
    today's settings.
    """
    attempt = attempt_of_most_rows(state, signals)
    if attempt is None:
        return max(0, signals.num_examples - state.num_trained), "the last training"
    since = f"the attempt of {date(attempt.started_at)}"
    if attempt.outcome == "cancelled":
        since += f", which {what_became_of(attempt)}"
    return max(0, signals.num_examples - attempt.num_examples), since


def attempt_of_most_rows(state: State, signals: Signals) -> Attempt | None:
    """Return the attempt with today's settings that had the most rows, the newest of several, if those are
    more than the last training's.
    """
    larger_attempts = (
        attempt
        for attempt in state.attempts
        if has_same_settings(attempt, signals) and attempt.num_examples > state.num_trained
    )
    return max(larger_attempts, key=lambda attempt: (attempt.num_examples, attempt.started_at), default=None)


def num_not_learned(state: State, signals: Signals) -> int:
    """Return how many rows of the snapshot came since the last training, and since the last attempt with
    today's settings that succeeded.
    """
    num_learned = [
        attempt.num_examples
        for attempt in state.attempts
        if has_same_settings(attempt, signals) and attempt.outcome == "succeeded"
    ]
    return max(0, signals.num_examples - max([state.num_trained, *num_learned]))


def what_became_of(attempt: Attempt) -> str:
    """Return the end of a sentence on the outcome of an attempt; for a cancelled attempt it says how to ask
    for another one.
    """
    if attempt.outcome == "cancelled":
        return "was cancelled and is not started again by itself (launch the model job by hand for it)"
    return (
        f"failed ({attempt.failure or 'unknown'})"
        if attempt.outcome == "failed"
        else attempt.outcome.replace("_", " ")
    )


def drift_began(
    state: State, windows: list[Window], now: float, settings: RetrainingSettings
) -> float | None:
    """Return when the drift that counts began, in seconds since the epoch, or None where none counts, as none
    does that is reported alone.

    Of the last three verdicts since the last training, enough must be confirmed drift within the horizon. It
    began with the first window that was not calm before them, however long ago: of a drift that no label
    confirms, labels are collected for months. A window without a verdict neither counts nor ends a drift.
    """
    trained_at = state.trained_at or -float("inf")
    horizon = now - _HORIZON_DAYS * DAY_SECONDS
    verdicts = [window for window in windows if window.status in VERDICTS and trained_at < window.at]
    drift_times = [
        window.at
        for window in verdicts[-NUM_WINDOWS:]
        if window.status == "confirmed" and window.at > horizon
    ]
    if len(drift_times) < settings.drift_windows or settings.on_drift == "report":
        return None
    last_calm = max(
        (window.at for window in verdicts if window.status == "ok" and window.at < drift_times[0]),
        default=trained_at,
    )
    return min(window.at for window in verdicts if window.at > last_calm and window.status != "ok")


def drift_examples(state: State, signals: Signals, settings: RetrainingSettings) -> int:
    """Return how many labelled examples of a drift a retrain would learn from now; 0 without a drift that
    labels confirm, where they have to.

    A lower score is a drift, too: labels show it, and all new examples since the last training count.
    """
    new, _ = new_examples(state, signals)
    last = next(reversed(in_order(state)), None)
    is_drift = drift_began(state, signals.windows, signals.now, settings) is not None
    if is_drift and is_believed(signals, settings):
        # What a failed attempt was to learn of it counts still.
        num_tried = last.num_drift_examples if last is not None and last.outcome == "failed" else 0
        return min(num_tried + new, signals.num_labels_since_drift)
    if _is_lower(signals, settings):
        return new
    num_learned = 0 if last is None else last.num_drift_examples
    return num_learned + new if 0 < num_learned < settings.min_new_examples else 0
