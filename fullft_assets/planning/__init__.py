"""planning: does it fit, what will it cost, and does a pilot predict a gain over the cheaper ways."""

from fullft_assets.planning.gates import (
    VERSION,
    Measured,
    Point,
    extrapolate,
    hardware,
    next_rung,
    pilot_check,
    pilot_rows,
    plan_checks,
    state_bytes,
    stop_note,
)

__all__ = [
    "Measured",
    "Point",
    "VERSION",
    "extrapolate",
    "hardware",
    "next_rung",
    "pilot_check",
    "pilot_rows",
    "plan_checks",
    "state_bytes",
    "stop_note",
]
