"""What a decision to train again depends on, and the decision: values that a log can keep. Times are in
seconds since the epoch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fullft_assets.errors import FailureClass
from fullft_assets.monitoring import Status

Action = Literal["wait", "retrain", "request_labels", "alert", "hold"]
Outcome = Literal["in_flight", "succeeded", "failed", "cancelled"]


class _Frozen(BaseModel):
    """A value: numbers that are not finite are errors, never the reason of an action."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
        score_fell: `score_fell` then.
        is_better: whether its candidate was promoted as better than the champion by more than chance. None:
            it was not promoted, or nobody knows.
        failure: the class of its failure.
    """

    started_at: float
    ended_at: float | None = None
    hours: float = Field(ge=0)
    num_examples: int = Field(ge=0)
    evidence: str
    settings_version: str = ""
    num_drift_examples: int = Field(default=0, ge=0)
    score_fell: bool = False
    is_better: bool | None = None
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
        now, month_start, month_end: seconds since the epoch; the calendar month of the budget. No month_end:
        nobody knows.
        num_examples: rows of the newest snapshot. Only a snapshot knows what of a delivery is new: copies,
            near-duplicates, older versions and rows over a group's cap are not in it.
        num_uncounted: valid examples of batches that it does not have yet.
        data_version: its content digest.
        settings_version: digest of the YAML sections that shape the model.
        windows: the windows, oldest first.
        is_monitored: whether windows are expected.
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
        hours_beside: of this month's runs that no attempt is: automatic evaluations, windows of production
            and snapshots.
        hourly_usd: price of the training machine.
        usd_per_point: what a point (0.01) of the primary metric is worth in a year; None: nothing is weighed
            against the cost of a run.
        predicted_gain: of the primary metric, what a learning curve predicts of the rows that are new; None =
            unknown.
        scheduled_at: when `retraining.schedule` came due last; None = there is no schedule.
        num_runs_in_flight: queued or started runs that train the model or freeze a snapshot.
        oldest_run: the one of them that was asked for first.
    """

    now: float
    month_start: float
    month_end: float | None = None
    num_examples: int = Field(ge=0)
    num_uncounted: int = Field(default=0, ge=0)
    data_version: str
    settings_version: str = ""
    windows: list[Window] = []
    is_monitored: bool = False
    num_labels_since_drift: int = Field(default=0, ge=0)
    score_drop: float | None = None
    num_drop_errors: float = 0.0
    num_live_errors: float = 0.0
    num_live_labels: int | None = Field(default=None, ge=0)
    live_drop: float = Field(default=0.0, ge=0)
    estimated_hours: float = Field(ge=0)
    hours_beside: float = Field(default=0.0, ge=0)
    hourly_usd: float = Field(default=0.0, ge=0)
    usd_per_point: float | None = Field(default=None, gt=0)
    predicted_gain: float | None = None
    scheduled_at: float | None = None
    num_runs_in_flight: int = Field(default=0, ge=0)
    oldest_run: RunInFlight | None = None


class Decision(_Frozen):
    """What to do, and why; `wait` has reasons too.

    Attributes:
        evidence: of a retrain, the digest of data and settings; of an alert or a request, the name of its
            incident.
        instruction: what an alert or a request asks of a person.
        is_about_attempt: whether the run of the last attempt says more about an alert.
        incidents: names of all incidents that are open now.
        count_first: whether the delivered examples that no snapshot has yet could change the decision: a
            snapshot counts them.
        notes: what was wrong with the records that the decision rests on.
    """

    action: Action
    reasons: list[str] = Field(min_length=1)
    evidence: str
    instruction: str = ""
    is_about_attempt: bool = False
    incidents: list[str] = []
    count_first: bool = False
    notes: list[str] = []


class RecordedDecision(_Frozen):
    """One line of the decision log."""

    case: str
    time: float = Field(description="Seconds since the epoch.")
    signals: Signals
    decision: Decision
