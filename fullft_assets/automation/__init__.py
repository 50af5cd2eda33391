"""automation: jobs, sensors and schedules. They gather signals and carry decisions out; what to do is decided elsewhere."""

from fullft_assets.automation.schedules import (
    INGEST,
    MODEL,
    MONITOR,
    build_jobs,
    build_schedules,
    build_sensors,
    decide_and_record,
    read_state,
)
from fullft_assets.resources import latest_by_partition

__all__ = [
    "INGEST",
    "MODEL",
    "MONITOR",
    "build_jobs",
    "build_schedules",
    "build_sensors",
    "decide_and_record",
    "latest_by_partition",
    "read_state",
]
