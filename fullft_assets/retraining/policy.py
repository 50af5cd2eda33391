"""When to train again, when a person is needed, and when to wait: the rules that call for a retrain, what
keeps one from starting now, what a person has to do, and the decision.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from fullft_assets.errors import TRANSIENT
from fullft_assets.evaluation.drop import LEAST_ROWS
from fullft_assets.monitoring import MOST_WITHOUT_VERDICT
from fullft_assets.retraining.history import (
    CERTAIN,
    DAY_SECONDS,
    HOUR_SECONDS,
    MAX_RETRIES,
    NUM_WINDOWS,
    VERDICTS,
    Action,
    Attempt,
    Decision,
    Signals,
    State,
    attempt_of_most_rows,
    date,
    drift_began,
    has_same_settings,
    hours_spent,
    in_order,
    is_believed,
    is_settled,
    new_examples,
    num_not_learned,
    num_transient,
    num_unproductive,
    retrain_evidence,
    what_became_of,
)
from fullft_assets.settings import RetrainingSettings

#: Share of the last training's rows by which a snapshot must grow as well.
_MIN_GROWTH = 0.2
#: Growth of the labelled examples since a drift began that is worth another retrain, where nobody says what a
#: point is worth.
_MORE_OF_DRIFT = 0.5
#: A drift that labels do not confirm needs so many times the labelled examples.
_NOT_CONFIRMED = 3
#: Rule, and incident, of a drift whose labels were not drawn at random.
RANDOM_LABELS = "random_labels"
#: Documents far from the training data do not show how often the champion is right.
_LABEL_AT_RANDOM = "label production documents that `fullft export CASE FILE --random` draws"


class Rule(NamedTuple):
    """Result of one rule: what it calls for and why.

    Attributes:
        count_first: whether examples that no snapshot has yet could change the result.
        instruction: of a request for labels, which ones.
    """

    name: Literal["new_data", "drift", "random_labels", "more_of_drift", "score", "age", "schedule", "retry"]
    action: Action
    reason: str
    count_first: bool = False
    instruction: str = ""


def apply_rules(state: State, signals: Signals, settings: RetrainingSettings) -> list[Rule]:
    """Return the result of every rule."""
    return [
        *_retry(state, signals),
        _new_data(state, signals, settings),
        _drift(state, signals, settings),
        *_more_of_drift(state, signals, settings),
        _score(state, signals, settings),
        _age(state, signals, settings),
        *_schedule(state, signals),
    ]


def _retry(state: State, signals: Signals) -> Iterator[Rule]:
    number = num_transient(state, signals)
    if 0 < number <= MAX_RETRIES:
        last = in_order(state)[-1]
        yield Rule(
            "retry",
            "retrain",
            (
                f"the attempt of {date(last.started_at)} failed by {last.failure}, so that it is resumed"
                f" ({number} of {MAX_RETRIES})"
            ),
        )


def _new_data(state: State, signals: Signals, settings: RetrainingSettings) -> Rule:
    new, since = new_examples(state, signals)
    share = _MIN_GROWTH * state.num_trained
    num_needed = max(settings.min_new_examples, round(share))
    is_enough, count_first = _reach(signals, num_needed, new)
    name = (
        f"min_new_examples = {num_needed:,}"
        if share <= num_needed and num_needed == settings.min_new_examples
        else f"{num_needed:,} (a growth by {_MIN_GROWTH:.0%})"
    )
    reason = f"{new:,} new examples since {since}, {'enough for' if is_enough else 'fewer than'} {name}"
    if count_first:
        reason += f"; a snapshot has yet to tell how many of {signals.num_uncounted:,} delivered ones are new"
    return Rule("new_data", "retrain" if is_enough else "wait", reason, count_first)


def _drift(state: State, signals: Signals, settings: RetrainingSettings) -> Rule:
    drift_start = drift_began(state, signals.windows, signals.now, settings)
    if drift_start is None:
        return Rule(
            "drift",
            "wait",
            "drift is reported and starts no retrain (on_drift = report)"
            if settings.on_drift == "report"
            else f"drift is not confirmed in {settings.drift_windows} of the last {NUM_WINDOWS} windows",
        )
    reason = f"drift is confirmed since the window of {date(drift_start)}"
    num_labels = signals.num_labels_since_drift
    num_needed = _NOT_CONFIRMED * settings.min_new_examples_on_drift
    if settings.min_new_examples_on_drift <= num_labels < num_needed and not is_believed(signals, settings):
        return _not_confirmed(state, signals, f"{reason}, but", num_needed)
    return _with_labels(state, signals, settings, "drift", reason, num_labels)


def _not_confirmed(state: State, signals: Signals, reason: str, num_needed: int) -> Rule:
    if not signals.has_live_quality:
        return Rule(
            "drift",
            "wait",
            f"{reason} fewer than {num_needed:,} labelled examples are no reason where the champion"
            + (
                " has not been evaluated on newer test rows yet"
                if signals.score_drop is None
                else " is not shown to be worse on newer test rows"
            ),
        )
    if signals.num_live_labels is None:
        # A request for labels stays open until the labels are evaluated.
        return Rule(
            RANDOM_LABELS,
            "request_labels" if RANDOM_LABELS in state.raised else "wait",
            f"{reason} live_quality has not evaluated the {signals.num_labels_since_drift:,} labelled"
            " examples yet",
            instruction=_LABEL_AT_RANDOM,
        )
    counts = (
        f"{signals.num_live_labels:,} of {signals.num_labels_since_drift:,} labelled examples are of its"
        " windows and were not chosen as far"
    )
    if signals.num_live_labels < LEAST_ROWS:
        return Rule(
            RANDOM_LABELS,
            "request_labels",
            f"{reason} only {counts}, too few to tell whether the champion is worse",
            instruction=_LABEL_AT_RANDOM,
        )
    return Rule(
        "drift",
        "wait",
        f"{reason} {counts}, and do not show that the champion is worse; fewer than {num_needed:,} are no"
        " reason then",
    )


def _more_of_drift(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[Rule]:
    """Yield that a drift which labels confirmed is learned again as they grow: the first retrain has few, and
    makes the drift its reference. By how much depends on the price of a run.

    The error of a model falls about with the root of its examples. Between two retrains the old model's error
    stays, so that a growth by the share g costs about g^2 / 4 of the error while the examples are collected:
    g = 2 sqrt(price) is best where that error is a point in a year.
    """
    last = next(reversed(in_order(state)), None)
    if last is None or not last.num_drift_examples or last.outcome != "succeeded":
        return
    new, since = new_examples(state, signals)
    num_learned = last.num_drift_examples
    growth = (
        _MORE_OF_DRIFT
        if signals.usd_per_point is None
        else 2 * math.sqrt(signals.estimated_hours * signals.hourly_usd / signals.usd_per_point)
    )
    num_needed = max(round(growth * num_learned), settings.min_new_examples_on_drift)
    if (
        not has_same_settings(last, signals)
        or num_learned >= settings.min_new_examples
        or num_needed > settings.min_new_examples
    ):
        return
    is_enough, count_first = _reach(signals, num_needed, new)
    yield Rule(
        "more_of_drift",
        "retrain" if is_enough else "wait",
        (
            f"{new:,} new examples since {since}, {'enough for' if is_enough else 'fewer than'}"
            f" {num_needed:,} beside the {num_learned:,} that showed it a drift"
        ),
        count_first,
    )


def _score(state: State, signals: Signals, settings: RetrainingSettings) -> Rule:
    limit = f"max_score_drop = {settings.max_score_drop:g}"
    if signals.live_drop >= settings.max_score_drop:
        reason = (
            f"the champion's accuracy is {signals.live_drop:.3f} lower on labelled production documents than"
            f" at release ({limit})"
        )
        return _with_labels(state, signals, settings, "score", reason)
    if signals.score_drop is None:
        return Rule("score", "wait", "the champion's score on newer rows is unknown")
    if signals.score_drop < settings.max_score_drop:
        return Rule(
            "score",
            "wait",
            f"the champion's score changed by {0 - signals.score_drop:+.3f} on newer rows, within {limit}",
        )
    if signals.num_drop_errors < CERTAIN:
        errors = f"{signals.num_drop_errors:.1f}" if signals.num_drop_errors > 0 else "an unknown number of"
        return Rule(
            "score",
            "wait",
            f"the champion's score fell by {signals.score_drop:.3f} on newer rows, which may be chance"
            f" ({errors} standard errors of {CERTAIN:g})",
        )
    reason = f"the champion's score fell by {signals.score_drop:.3f} on newer rows ({limit})"
    if signals.num_live_errors < 0:
        return Rule(
            "score",
            "wait",
            f"{reason}, but it is right about labelled production documents as often as at release",
        )
    return _with_labels(state, signals, settings, "score", reason)


def _with_labels(
    state: State,
    signals: Signals,
    settings: RetrainingSettings,
    name: Literal["drift", "score"],
    reason: str,
    most: float = math.inf,
) -> Rule:
    """Return a retrain if there are labels to learn from, else a request for them.

    Args:
        most: labelled examples that count at most.
    """
    new, _ = new_examples(state, signals)
    num_needed = max(settings.min_new_examples_on_drift, 1)
    available = min(new, most)
    is_enough, count_first = _reach(signals, num_needed, available)
    if is_enough:
        return Rule(
            name, "retrain", f"{reason}, and {available:,} new labelled examples are there to learn from"
        )
    if any(attempt.outcome == "in_flight" for attempt in state.attempts):
        return Rule(name, "wait", f"{reason}; an attempt is in flight")
    if count_first and most >= num_needed:
        return Rule(
            name,
            "wait",
            f"{reason}; a snapshot has yet to count {signals.num_uncounted:,} delivered examples",
            True,
        )
    # A person who cancelled a retrain, or whose data made it fail, has labelled enough.
    last = attempt_of_most_rows(state, signals)
    num_labels = min(num_not_learned(state, signals), most)
    if last is not None and last.outcome in ("failed", "cancelled") and num_labels >= num_needed:
        return Rule(
            name,
            "wait",
            f"{reason}, and {num_labels:,} labelled examples are there to learn from, but the attempt of"
            f" {date(last.started_at)} that had them {what_became_of(last)}",
        )
    return Rule(
        name,
        "request_labels",
        f"{reason}, but only {available:,} of {num_needed:,} new labelled examples",
        instruction=_LABEL_AT_RANDOM if name == "drift" else "label more documents like those of today",
    )


def _age(state: State, signals: Signals, settings: RetrainingSettings) -> Rule:
    if state.champion_since is None:
        return Rule("age", "wait", "there is no champion yet, so it has no age")
    # A training since then that did not beat the champion has used the newer data, too.
    since = max(state.champion_since, state.trained_at or 0.0)
    reason = (
        f"the champion was trained or challenged on {date(since)} (max_age_days = {settings.max_age_days:g})"
    )
    is_young = signals.now - since < settings.max_age_days * DAY_SECONDS
    return (
        Rule("age", "wait", reason) if is_young else _if_there_is_something_new(state, signals, "age", reason)
    )


def _schedule(state: State, signals: Signals) -> Iterator[Rule]:
    due = signals.scheduled_at
    if due is None:
        return
    if max([state.trained_at or 0.0, *(attempt.started_at for attempt in state.attempts)]) >= due:
        yield Rule("schedule", "wait", f"nothing is due by the schedule since {date(due)}")
    else:
        yield _if_there_is_something_new(
            state, signals, "schedule", f"scheduled retraining is due since {date(due)}"
        )


def _if_there_is_something_new(
    state: State, signals: Signals, name: Literal["age", "schedule"], reason: str
) -> Rule:
    """Return a retrain, or why it waits: delivered rows are not counted yet, there are no new rows, or an
    attempt has had them.
    """
    if signals.num_uncounted:
        return Rule(
            name,
            "wait",
            f"{reason}; a snapshot has yet to count {signals.num_uncounted:,} delivered examples",
            True,
        )
    attempts = [attempt for attempt in state.attempts if attempt.evidence == retrain_evidence(signals)]
    last = max(attempts, key=lambda attempt: attempt.started_at, default=None)
    is_learned = signals.data_version == state.trained_on or not signals.num_examples
    if is_learned or (last is not None and last.outcome == "succeeded"):
        return Rule(name, "wait", f"{reason}, but there is nothing new to learn")
    if last is not None:
        end = "is in flight" if last.outcome == "in_flight" else what_became_of(last)
        return Rule(
            name,
            "wait",
            f"{reason}, but the attempt of {date(last.started_at)} to learn from the rows of today {end}",
        )
    return Rule(name, "retrain", reason)


def _reach(signals: Signals, num_needed: int, available: float) -> tuple[bool, bool]:
    """Return whether the available examples are enough, and whether the delivered ones that no snapshot has
    yet could make them enough.
    """
    return available >= num_needed, available < num_needed <= available + signals.num_uncounted


#: Wait before the first retry; it doubles.
_RETRY_HOURS = 1.0
#: Wait after an attempt that gave no champion, or that did not end a drift. It doubles with each further one
#: in a row, up to the longest.
_BACKOFF_HOURS = 48.0
_MAX_BACKOFF_DAYS = 90.0


class Obstacle(NamedTuple):
    """Something that keeps a retrain from starting now, and why."""

    name: Literal["in flight", "wait", "month"]
    reason: str


def find_obstacles(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[Obstacle]:
    """Yield why a retrain may not start now."""
    if signals.num_runs_in_flight:
        yield Obstacle(
            "in flight", f"{signals.num_runs_in_flight} run(s) of the model or of its snapshot are in flight"
        )
    past = in_order(state)
    if past:
        until, why = _next_start(past, state, signals, settings)
        # A fixed time, not "3 h ago": the reasons of a repeated tick stay the same, and are recorded once.
        if signals.now < until:
            yield Obstacle(
                "wait",
                f"the last attempt was on {date(past[-1].started_at)}, and the next may start on"
                f" {date(until)} ({why})",
            )
    hours = hours_spent(state, signals)
    if hours + signals.estimated_hours > settings.max_hours_per_month:
        yield Obstacle(
            "month",
            f"{hours:.1f} h were spent this month and the next run takes about"
            f" {signals.estimated_hours:.1f} h (max_hours_per_month = {settings.max_hours_per_month:g})",
        )
    usd = hours * signals.hourly_usd
    next_usd = signals.estimated_hours * signals.hourly_usd
    if settings.max_usd_per_month is not None and usd + next_usd > settings.max_usd_per_month:
        yield Obstacle(
            "month",
            f"{usd:.2f} USD were spent this month and the next run costs about {next_usd:.2f} USD"
            f" (max_usd_per_month = {settings.max_usd_per_month:g})",
        )


def _next_start(
    past: Sequence[Attempt], state: State, signals: Signals, settings: RetrainingSettings
) -> tuple[float, str]:
    number = num_transient(state, signals)
    if 0 < number <= MAX_RETRIES:
        return past[-1].started_at + _RETRY_HOURS * 2 ** (number - 1) * HOUR_SECONDS, "a retry"
    cooldown = (
        past[-1].started_at + settings.cooldown_hours * HOUR_SECONDS,
        f"cooldown_hours = {settings.cooldown_hours:g}",
    )
    number = num_unproductive(state, signals, settings)
    if not number:
        return cooldown
    # 2 ** 60 is beyond any bound.
    hours = min(_BACKOFF_HOURS * 2.0 ** min(number - 1, 60), _MAX_BACKOFF_DAYS * 24)
    last = [attempt for attempt in past if attempt.outcome != "cancelled"][-1]
    return max(
        cooldown,
        (
            last.started_at + hours * HOUR_SECONDS,
            f"{number} in a row gained nothing",
        ),
    )


#: A run is in flight for too long after so many times what the next retrain is estimated to take, and at
#: least so many hours.
_HANGS_TIMES = 3.0
_HANGS_HOURS = 24.0
#: Attempts in a row that gained nothing after which a person is alerted.
_ATTEMPTS_IN_VAIN = 3
#: Days without a verdict on a window after which a person is alerted.
_DAYS_WITHOUT_VERDICT = 30.0
#: Days after which an incident is raised again while its reason lasts.
_REMIND_DAYS = 30.0


class Incident(NamedTuple):
    """Something that a person has to do.

    Attributes:
        key: names the reason: an incident is raised once while it lasts.
        action: what the person is asked to do.
    """

    key: str
    kind: Literal["alert", "request_labels"]
    reason: str
    action: str


def find_incidents(
    state: State,
    signals: Signals,
    settings: RetrainingSettings,
    rules: Sequence[Rule],
    obstacles: Sequence[Obstacle],
) -> Iterator[Incident]:
    """Yield the incidents that need a person, the most urgent first.

    Args:
        rules: the results of all rules.
        obstacles: what keeps a retrain from starting that a rule calls for; none where none does.
    """
    yield from _in_vain(state, signals, settings)
    yield from _hangs(signals)
    if any(rule.action == "retrain" for rule in rules):
        yield from _budget(state, signals, settings, obstacles)
    yield from _without_verdict(state, signals)
    # A drift and the lower score that follows from it are one reason to label.
    requests = [rule for rule in rules if rule.action == "request_labels"]
    if requests:
        is_random = any(rule.name == RANDOM_LABELS for rule in requests)
        yield Incident(
            RANDOM_LABELS if is_random else "labels",
            "request_labels",
            "; ".join(rule.reason for rule in requests),
            # The first one is the drift's: a random sample of production has documents like those of today.
            requests[0].instruction,
        )


def _in_vain(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[Incident]:
    """Yield that attempts gained nothing, or that the newest one failed and is not repeated by itself: one
    incident at a time.
    """
    if not state.attempts:
        return
    last = in_order(state)[-1]
    failure = f"the attempt of {date(last.started_at)} failed ({last.failure or 'unknown'})"
    what_to_fix = "open the newest failed run of the model job, which says what to fix"
    is_failed = last.outcome == "failed" and has_same_settings(last, signals) and not is_settled(last, state)
    number = num_unproductive(state, signals, settings)
    if number >= _ATTEMPTS_IN_VAIN:
        reason = f"{number} attempts in a row gained nothing, so that others come ever more rarely"
        if is_failed:
            yield Incident("attempts in vain", "alert", f"{reason}; {failure}", what_to_fix)
        else:
            yield Incident("attempts in vain", "alert", reason, "read their evaluation reports")
    elif is_failed and (last.failure not in TRANSIENT or num_transient(state, signals) > MAX_RETRIES):
        yield Incident(f"failed attempt of {date(last.started_at)}", "alert", failure, what_to_fix)


def _hangs(signals: Signals) -> Iterator[Incident]:
    run = signals.oldest_run
    limit = max(_HANGS_HOURS, _HANGS_TIMES * signals.estimated_hours)
    if run is None or signals.now - run.since <= limit * HOUR_SECONDS:
        return
    # A fixed number, so that the reasons of a repeated tick stay the same.
    yield Incident(
        f"run {run.run_id} in flight",
        "alert",
        (
            f"the run {run.run_id} of {run.job}, asked for on {date(run.since)}, has not"
            f" {'ended' if run.has_started else 'begun'} in {limit:,.0f} h and holds retrains back"
        ),
        "open it, and terminate it if it hangs" if run.has_started else "look at Dagster's daemon and queue",
    )


def _budget(
    state: State, signals: Signals, settings: RetrainingSettings, obstacles: Sequence[Obstacle]
) -> Iterator[Incident]:
    """Yield that the next run needs more than a whole month's budget, or that only the budget that remains of
    this month keeps a retrain from starting.
    """
    hours = signals.estimated_hours
    usd = hours * signals.hourly_usd
    excesses = []
    if hours > settings.max_hours_per_month:
        excesses.append(
            f"takes about {hours:.1f} h, more than max_hours_per_month = {settings.max_hours_per_month:g}"
        )
    if settings.max_usd_per_month is not None and usd > settings.max_usd_per_month:
        excesses.append(
            f"costs about {usd:.2f} USD, more than max_usd_per_month = {settings.max_usd_per_month:g}"
        )
    if excesses:
        yield Incident(
            "budget",
            "alert",
            f"the next run {' and '.join(excesses)}",
            "raise that, make the training shorter, or launch the model job by hand if the estimate is wrong",
        )
        return
    # A run in flight is no other reason: the evaluations of each day would end the incident, and raise it
    # again.
    is_waiting = any(obstacle.name == "wait" for obstacle in obstacles)
    reasons = [obstacle.reason for obstacle in obstacles if obstacle.name == "month"]
    if reasons and not is_waiting and state.frozen is None:
        yield Incident(
            "month's budget",
            "alert",
            f"{' and '.join(reasons)}, so that the retrain that is called for waits for the next month",
            "raise that, or launch the model job by hand, which is not booked",
        )


def _without_verdict(state: State, signals: Signals) -> Iterator[Incident]:
    if not signals.is_monitored or state.champion_since is None:
        return
    # The first windows under a champion make the reference that the next are compared with.
    verdict_times = [window.at for window in signals.windows if window.status in (*VERDICTS, "warming_up")]
    last = max([state.champion_since, *verdict_times])
    number = sum(window.at > last for window in signals.windows)
    if number >= MOST_WITHOUT_VERDICT or signals.now - last > _DAYS_WITHOUT_VERDICT * DAY_SECONDS:
        seen_windows = (
            "no window came"
            if not number
            else f"no verdict on {'one window' if number == 1 else f'{number} windows'}"
        )
        yield Incident(
            "production is not seen",
            "alert",
            f"{seen_windows} since {date(last)}",
            "look at what delivers production documents, and at monitoring.min_window_rows",
        )


def is_due(incident: Incident, state: State, signals: Signals) -> bool:
    """Return whether an incident is to be raised now: for the first time, or once more."""
    # What a run has learned, and may release in a moment, is no reason to label more.
    if incident.kind == "request_labels" and signals.num_runs_in_flight:
        return False
    at = state.raised.get(incident.key)
    return at is None or signals.now - at >= _REMIND_DAYS * DAY_SECONDS


def decide(state: State, signals: Signals, settings: RetrainingSettings) -> Decision:
    """Decide what to do.

    What costs nothing comes first: an alert, or a request for labels where no run is in flight, is raised
    once, and again after 30 days while its reason lasts. A retrain needs a rule that calls for it, rows
    that no attempt had, and no obstacle (frozen, a run in flight, cooldown or backoff, the month's budget).
    """
    rules = apply_rules(state, signals, settings)
    calls = [rule for rule in rules if rule.action == "retrain"]
    obstacles = list(find_obstacles(state, signals, settings)) if calls else []
    incidents = list(find_incidents(state, signals, settings, rules, obstacles))
    count_first = signals.num_uncounted > 0 and not calls and any(rule.count_first for rule in rules)

    def decided(action: Action, reasons: list[str], incident: Incident | None = None) -> Decision:
        return Decision(
            action=action,
            reasons=reasons,
            evidence=retrain_evidence(signals) if incident is None else incident.key,
            instruction="" if incident is None else incident.action,
            incidents=[incident.key for incident in incidents],
            count_first=count_first,
        )

    for incident in incidents:
        if is_due(incident, state, signals):
            return decided(incident.kind, [incident.reason], incident)
    reasons = [rule.reason for rule in calls or rules]
    for incident in incidents:
        step = (
            "labels were asked for"
            if incident.kind == "request_labels"
            else f"a person was alerted, as {incident.reason},"
        )
        at = state.raised.get(incident.key)
        reasons.append(
            f"{step} on {date(at)}"
            if at is not None
            else "labels are asked for once the run that is in flight has ended"
        )
    if state.frozen is not None:
        return decided("hold", [state.frozen, *reasons])
    if not calls:
        return decided("wait", reasons)
    reasons += [f"but {obstacle.reason}" for obstacle in obstacles]
    return decided("wait" if obstacles else "retrain", reasons)


def run_key(state: State, decision: Decision) -> str:
    """Return the run key of a retrain, which Dagster remembers forever: a repeated tick has the same one
    until there is a run of it.
    """
    return f"retrain-{decision.evidence}-{len(state.attempts)}"


def raised_after(state: State, signals: Signals, decision: Decision) -> dict[str, float]:
    """Return `State.raised` after a decision: incidents whose reason is gone are closed."""
    times = {key: at for key, at in state.raised.items() if key in decision.incidents}
    return times | (
        {decision.evidence: signals.now} if decision.action in ("alert", "request_labels") else {}
    )
