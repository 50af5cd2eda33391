"""retraining: when to train again, when to ask for labels, and when to wait: a pure function."""

from fullft_assets.retraining.policy import (
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

__all__ = [
    "Ask",
    "Attempt",
    "DAY_SECONDS",
    "Decision",
    "HOUR_SECONDS",
    "RecordedDecision",
    "Signals",
    "State",
    "Window",
    "decide",
    "run_key",
]
