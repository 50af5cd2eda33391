"""planning: does it fit, what will it cost, and does a pilot predict a gain over the baselines.

The planning workload measures real training steps on the training machine; the functions here decide from
these measurements.
"""

from fullft_assets.planning.metadata import BaselinesMetadata, Measured, PilotMetadata, PlanMetadata
from fullft_assets.planning.pilot import Point, pilot_check, pilot_rows, predict_score
from fullft_assets.planning.plan import (
    PILOT_CHECKS,
    PLAN_CHECKS,
    VERSION,
    fitting_note,
    plan_checks,
    refusal,
    state_bytes,
    stop_note,
)
