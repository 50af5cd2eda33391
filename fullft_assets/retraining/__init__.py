"""retraining: when to train again, when a person is needed, and when to wait: a pure function.

Sensors and schedules gather what happened, call `decide`, carry out the decision and record it. Nothing here
reads a clock, a store or Dagster, so a year of operation can be simulated in milliseconds.
"""

from fullft_assets.retraining.history import (
    DAY_SECONDS,
    HOUR_SECONDS,
    Action,
    Attempt,
    Decision,
    Outcome,
    RecordedDecision,
    RunInFlight,
    Signals,
    State,
    Window,
    drift_began,
    drift_examples,
    hours_spent,
    num_unproductive,
    retrain_evidence,
)
from fullft_assets.retraining.policy import decide, raised_after, run_key
